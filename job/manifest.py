"""`manifest.json` and `examples.csv`: where a version comes from, down to each input's digest."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import job
from job.config import RunConfig
from job.embed import Embeddings
from job.result import Result

PACKAGES = ("tensorflow", "tensorflow-hub", "numpy", "scipy", "google-cloud-storage")


def write_manifest(
    folder: Path, config: RunConfig, embeddings: Embeddings, backbone: str, result: Result
) -> None:
    """Write both files into a bundle, after everything else: the manifest lists every file.

    `examples.csv` has a row an image: name, label, split and SHA-256. The manifest holds the
    digest of that file, so the two together pin every input. `backbone` is the backbone's digest.
    """
    _write_examples(folder / "examples.csv", embeddings)
    manifest = {
        "regraft": job.__version__,
        "inputs": {
            "data": {
                "uri": config.data,
                "digest": sha256(folder / "examples.csv"),
                "images": result.images,
                "skipped": [{"name": s.name, "reason": s.reason} for s in embeddings.skipped],
            },
            "backbone": {"handle": config.backbone, "digest": backbone},
        },
        "configuration": config.as_json(),
        "packages": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "labels": list(embeddings.index.labels),
        "metrics": result.metrics,
        "files": describe_files(folder),
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (folder / "manifest.json").write_text(text, "utf-8")


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Give the size in bytes and the SHA-256 of every file of a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }


def sha256(path: Path) -> str:
    """Give a file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_examples(path: Path, embeddings: Embeddings) -> None:
    labels = embeddings.index.labels
    # Names are bytes to an object store; one that is no Unicode is shown escaped, not lost.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["name", "label", "split", "sha256"])
        for example, digest in zip(embeddings.index.examples, embeddings.digests, strict=True):
            rows.writerow([example.name, labels[example.class_index], example.split, digest])
