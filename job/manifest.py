"""`manifest.json` and `examples.csv`: where a version comes from, down to each input's digest."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

import job
from job.config import RunConfig
from job.dataset import Index
from job.distort import DISTORTION_VERSION
from job.divide import Divided
from job.embed import Embeddings
from job.images import PREPROCESSING_VERSION
from job.labelling import Thresholds
from job.ledger import write_ledger
from job.result import Result
from job.seal import canonical, describe_files, seal, sha256
from job.unknown import Threshold

PACKAGES = ("tensorflow-hub", "numpy", "scipy", "google-cloud-storage")

# The options that change what is trained, beside those of the solver; the others say where it goes
# and what may pass.
TRAINING_OPTIONS = (
    "validation_percent", "test_percent", "group_regex", "keep_copies_apart", "drop_suspects",
    "max_skipped",
    "image_size", "exact_decode", "max_pixels", "cache_dtype",
)  # fmt: skip


def inputs_digest(
    config: RunConfig, index: Index, checksums: Mapping[str, str], backbone: str
) -> str:
    """Give the SHA-256 of all that decides what is trained.

    `index` is of the whole data set, as it is listed, and `checksums` has the CRC32C of every file
    in it that can be fetched, by name; `backbone` is the backbone's digest. Where the data lies
    does not matter, and neither does who went where before: those that were there stay.
    """
    parts = {
        "regraft": job.__version__,
        "preprocessing": PREPROCESSING_VERSION,
        "options": {name: getattr(config, name) for name in TRAINING_OPTIONS},
        "fit": config.decisions(),
        "distortion": DISTORTION_VERSION if config.is_distorted else None,
        "labels": index.labels,
        "files": sorted(
            (e.name, checksums.get(e.name, ""), e.targets, e.key, e.use) for e in index.examples
        ),
        "backbone": backbone,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def split_digest(index: Index) -> str:
    """Give 32 hexadecimal digits of the SHA-256 of who is on which side."""
    sides = [(example.name, example.split) for example in index.examples]
    return hashlib.sha256(json.dumps(sides).encode()).hexdigest()[:32]


def write_manifest(
    folder: Path,
    config: RunConfig,
    divided: Divided,
    backbone: str,
    result: Result,
    *,
    inputs: str,
    features: str,
    temperature: float,
    thresholds: Thresholds,
    golden: dict[str, Any],
    unknown: Threshold | None,
) -> None:
    """Write the tables and the manifest into a bundle, after everything else: it lists every file.

    `examples.csv` has a row for each image that takes part: name, label or `labels` as a JSON
    array, split and SHA-256. The manifest holds the digest of that file, so the two together pin
    every input. `ledger.csv` is for the versions to come. `backbone` is the backbone's digest,
    `features` that of the one inside, which fine-tuning changes, `inputs` is from `inputs_digest`.
    `golden` is what the trained model answered to the images in the warm-up records.
    """
    _write_examples(folder / "examples.csv", divided.embeddings, config.task)
    write_ledger(folder, divided.ledger)
    origin = _inputs(config, divided.embeddings, backbone, result, sha256(folder / "examples.csv"))
    manifest = {
        "regraft": job.__version__,
        "inputs": {"digest": inputs, **origin},
        "features": features,
        "configuration": config.as_json(),
        "packages": packages(),
        "labels": list(divided.embeddings.index.labels),
        "metrics": result.metrics,
        "temperature": temperature,
        **_limits(thresholds, unknown),
        "golden": golden,
        "files": describe_files(folder),
    }
    (folder / "manifest.json").write_text(canonical(seal(manifest)), "utf-8")


def _limits(thresholds: Thresholds, unknown: Threshold | None) -> dict[str, Any]:
    """Give what an answer is told by from the scores, where there is more to it than the best."""
    limits = {} if thresholds is None else {"thresholds": thresholds.tolist()}
    return limits if unknown is None else limits | {"unknown": unknown.as_json()}


def _inputs(
    config: RunConfig, embeddings: Embeddings, backbone: str, result: Result, examples: str
) -> dict[str, Any]:
    """Give what a version was made from; `examples` is the digest of its `examples.csv`."""
    options = config.as_json()
    skipped = [{"name": item.name, "reason": item.reason} for item in embeddings.skipped]
    return {
        "data": {
            "uri": options["data"],
            "digest": examples,
            "images": result.images,
            "skipped": skipped,
        },
        "backbone": {"handle": options["backbone"], "digest": backbone},
        "preprocessing": PREPROCESSING_VERSION,
    }


def packages() -> dict[str, str]:
    """Give the versions of Python and of the packages that decide the result."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    # TensorFlow's own word: the package may be called tensorflow-cpu.
    return {"python": platform.python_version(), "tensorflow": tf.__version__, **versions}


# The column of an image's labels by task, and what it holds of their names.
LABEL_COLUMNS: dict[str, tuple[str, Callable[[list[str]], str]]] = {
    "single": ("label", lambda names: names[0]),
    "multilabel": ("labels", lambda names: json.dumps(names, ensure_ascii=False)),
}


def _write_examples(path: Path, embeddings: Embeddings, task: str) -> None:
    column, write = LABEL_COLUMNS[task]
    labels = embeddings.index.labels
    # Names are bytes to an object store; one that is no Unicode is shown escaped, not lost.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        # RFC 4180's line ends, because Python quotes only those that it writes itself.
        rows = csv.writer(file, lineterminator="\r\n")
        rows.writerow(["name", column, "split", "sha256"])
        for example, digest in zip(embeddings.index.examples, embeddings.digests, strict=True):
            names = [labels[i] for i in example.targets]
            rows.writerow([example.name, write(names), example.split, digest])
