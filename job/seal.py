"""A version's files against its manifest: one changed byte anywhere is found. No TensorFlow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from job.documents import parse_object

MANIFEST = "manifest.json"


def canonical(manifest: dict[str, Any]) -> str:
    """Give the only text by which `manifest.json` may say this: keys sorted, ASCII, a newline."""
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """Give the manifest with its own SHA-256, hexadecimal, of the text without it, as `digest`."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return rest | {"digest": hashlib.sha256(canonical(rest).encode()).hexdigest()}


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


def file_problems(folder: Path) -> list[str]:
    """Hold every file of a version against its manifest, and the manifest against its seal.

    Gives a sentence for each file that is missing, not listed or changed; [] when all is as it was
    when the manifest was written.
    """
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError) as error:
        return [f"{MANIFEST}: {error}"]
    return list(_differences(describe_files(folder), manifest["files"]))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a sealed manifest with its `files`; OSError or ValueError when it is not that."""
    contents = (folder / MANIFEST).read_bytes()
    manifest = parse_object(contents)
    if canonical(manifest).encode() != contents:
        raise ValueError("it is not in the form in which it is written, so it was changed")
    found, expected = manifest.get("digest"), seal(manifest)["digest"]
    if found != expected:
        raise ValueError(f"its digest is {found}, expected {expected}")
    if not isinstance(manifest.get("files"), dict):
        raise ValueError("it has no list of files")
    return manifest


def _differences(found: dict[str, Any], listed: dict[str, Any]) -> Iterator[str]:
    # It cannot hold its own digest among the files'; that is what the seal is for.
    for name in sorted((found.keys() | listed.keys()) - {MANIFEST}):
        if name not in listed:
            yield f"{name} is not listed in {MANIFEST}"
        elif name not in found:
            yield f"{name} is missing, {MANIFEST} lists it"
        elif found[name] != listed[name]:
            yield f"{name} has {found[name]}, {MANIFEST} lists {listed[name]}"
