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

import job
from job.config import RunConfig
from job.distort import DISTORTION_VERSION
from job.embed import Embeddings
from job.images import PREPROCESSING_VERSION
from job.labelling import Thresholds
from job.result import Result
from job.seal import canonical, describe_files, seal, sha256

PACKAGES = ("tensorflow", "tensorflow-hub", "numpy", "scipy", "google-cloud-storage")

# The options that change what is trained, beside those of the solver; the others say where it goes
# and what may pass.
TRAINING_OPTIONS = (
    "validation_percent", "test_percent", "max_skipped", "image_size", "exact_decode", "max_pixels",
    "cache_dtype",
)  # fmt: skip


def inputs_digest(
    config: RunConfig,
    labels: tuple[str, ...],
    checksums: Mapping[str, str],
    backbone: str,
) -> str:
    """Give the SHA-256 of all that decides what is trained.

    `checksums` has the CRC32C of every file, unreadable ones included, by name relative to the data
    URI; `backbone` is the backbone's digest. Where the data lies does not matter.
    """
    parts = {
        "regraft": job.__version__,
        "preprocessing": PREPROCESSING_VERSION,
        "options": {name: getattr(config, name) for name in TRAINING_OPTIONS},
        "fit": config.decisions(),
        "distortion": DISTORTION_VERSION if config.is_distorted else None,
        "labels": labels,
        "files": sorted(checksums.items()),
        "backbone": backbone,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_manifest(
    folder: Path,
    config: RunConfig,
    embeddings: Embeddings,
    backbone: str,
    result: Result,
    *,
    features: str,
    temperature: float,
    thresholds: Thresholds,
    golden: dict[str, Any],
) -> None:
    """Write both files into a bundle, after everything else: the manifest lists every file.

    `examples.csv` has a row an image: name, label, split and SHA-256; where an image has any number
    of labels, `labels` is a JSON array of them. The manifest holds the
    digest of that file, so the two together pin every input. `backbone` is the backbone's digest,
    `features` that of the one inside, which fine-tuning changes; `golden` is what the trained model
    answered to the images in the warm-up records. `thresholds` are in the order of the labels.
    """
    _write_examples(folder / "examples.csv", embeddings, config.task)
    manifest = {
        "regraft": job.__version__,
        "inputs": _inputs(config, embeddings, backbone, result, sha256(folder / "examples.csv")),
        "features": features,
        "configuration": config.as_json(),
        "packages": packages(),
        "labels": list(embeddings.index.labels),
        "metrics": result.metrics,
        "temperature": temperature,
        **({} if thresholds is None else {"thresholds": thresholds.tolist()}),
        "golden": golden,
        "files": describe_files(folder),
    }
    (folder / "manifest.json").write_text(canonical(seal(manifest)), "utf-8")


def _inputs(
    config: RunConfig, embeddings: Embeddings, backbone: str, result: Result, examples: str
) -> dict[str, Any]:
    """Give what a version was made from; `examples` is the digest of its `examples.csv`."""
    options, labels = config.as_json(), embeddings.index.labels
    skipped = [{"name": item.name, "reason": item.reason} for item in embeddings.skipped]
    return {
        "digest": inputs_digest(config, labels, embeddings.checksums, backbone),
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
    return {"python": platform.python_version(), **versions}


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
