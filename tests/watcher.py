"""Watches a model's base path as a server would, and notes every version it must not have seen.

    python tests/watcher.py BASE_PATH [--seconds 0.05]

A version counts from the moment its `saved_model.pb` is there. From then on all of it must be there
and nothing else: every file of its `manifest.json` with the SHA-256 that stands there, and the same
token in every file, so that a mix of two publications shows; and it must stay as it is. On SIGTERM
it looks once more and prints a report as JSON, the fields of `Report`.

It reads the store by its own means, not by the code it watches.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

VERSION = re.compile(r"[0-9]+", re.ASCII)
# What the files of a synthetic bundle carry.
TOKEN = re.compile(rb"<token:([^>]*)>")
LAST_FILE = "saved_model.pb"

# Relative names with something that changes whenever the content may have.
Files = dict[str, str]


@dataclass(slots=True)
class Report:
    """What was seen: `whole` has the token of each whole version."""

    polls: int = 0
    looks: int = 0
    not_loadable: set[int] = field(default_factory=set)
    whole: dict[int, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


class Place(Protocol):
    """A base path."""

    def versions(self) -> dict[int, Files]:
        """List every integer-named child with its files."""

    def read(self, name: str) -> bytes:
        """Give a file's bytes; raises FileNotFoundError."""


class Folder:
    """A base path on a file system."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def versions(self) -> dict[int, Files]:
        """Walk the folder of every version."""
        names = [p.name for p in self.path.iterdir()] if self.path.exists() else []
        return {int(name): self._walk(name) for name in names if VERSION.fullmatch(name)}

    def _walk(self, name: str) -> Files:
        files: Files = {}
        with contextlib.suppress(FileNotFoundError):  # removed while it was walked
            for path in (self.path / name).rglob("*"):
                stat = path.stat()
                if path.is_file():
                    key = path.relative_to(self.path / name).as_posix()
                    files[key] = f"{stat.st_ino} {stat.st_mtime_ns} {stat.st_size}"
        return files

    def read(self, name: str) -> bytes:
        """Read a file."""
        return (self.path / name).read_bytes()


class Bucket:
    """A base path in the emulator at STORAGE_EMULATOR_HOST."""

    def __init__(self, uri: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        bucket, _, prefix = uri.removeprefix("gs://").partition("/")
        client = storage.Client(project="watcher", credentials=AnonymousCredentials())
        self.bucket = client.bucket(bucket)
        self.base = f"{prefix.rstrip('/')}/"

    def versions(self) -> dict[int, Files]:
        """List the objects below the base path."""
        found: dict[int, Files] = {}
        for blob in self.bucket.list_blobs(prefix=self.base):
            child, _, name = blob.name.removeprefix(self.base).partition("/")
            if VERSION.fullmatch(child):
                found.setdefault(int(child), {})[name] = f"{blob.generation} {blob.crc32c}"
        return found

    def read(self, name: str) -> bytes:
        """Download an object."""
        from google.api_core.exceptions import NotFound

        try:
            content: bytes = self.bucket.blob(self.base + name).download_as_bytes()
        except NotFound as error:
            raise FileNotFoundError(name) from error
        return content


class Watcher:
    """Looks at a place again and again; `report` is what it saw."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.report = Report()
        self.known: dict[int, Files] = {}

    def poll(self) -> None:
        """Look once, reading what is new."""
        self.report.polls += 1
        found = self.place.versions()
        for version, files in self.known.items():
            if found.get(version) != files:
                self.blame(version, "changed or vanished after it could be loaded")
        self.known = {v: found[v] for v in self.known if LAST_FILE in found.get(v, {})}
        new = {v for v, files in found.items() if LAST_FILE in files} - self.known.keys()
        self.report.not_loadable |= {v for v, files in found.items() if LAST_FILE not in files}
        if not new:
            return
        # A listing is no snapshot: only one that began after saved_model.pb was seen must be whole.
        found = self.place.versions()
        for version in sorted(new):
            self.known[version] = found.get(version, {})
            self.look(version, self.known[version])

    def look(self, version: int, files: Files) -> None:
        """Read a whole version and judge it."""
        self.report.looks += 1
        try:
            contents = {name: self.place.read(f"{version}/{name}") for name in files}
            manifest = json.loads(contents["manifest.json"])
        except (FileNotFoundError, KeyError, ValueError) as error:
            self.blame(version, f"cannot be read: {error!r}")
            return
        expected = manifest["files"]
        if missing := expected.keys() - contents.keys():
            self.blame(version, f"lacks {sorted(missing)}")
        if extra := contents.keys() - expected.keys() - {"manifest.json"}:
            self.blame(version, f"has {sorted(extra)} besides what its manifest lists")
        for name in sorted(expected.keys() & contents.keys()):
            if hashlib.sha256(contents[name]).hexdigest() != expected[name]["sha256"]:
                self.blame(version, f"has other bytes in {name} than its manifest says")
        tokens = Counter(
            match[1].decode() if (match := TOKEN.search(content)) else "none"
            for content in contents.values()
        )
        if len(tokens) != 1:
            self.blame(version, f"is a mix of {dict(sorted(tokens.items()))}")
        self.report.whole[version] = next(iter(tokens))

    def blame(self, version: int, what: str) -> None:
        """Record a violation."""
        self.report.violations.append(f"version {version} {what}")
        self.report.whole.pop(version, None)


def main() -> None:
    """Watch until SIGTERM."""
    options = argparse.ArgumentParser()
    options.add_argument("base_path")
    options.add_argument("--seconds", type=float, default=0.05)
    given = options.parse_args()
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    place: Place = (Bucket if given.base_path.startswith("gs://") else Folder)(given.base_path)
    watcher = Watcher(place)
    print("watching", flush=True)  # noqa: T201
    while not stopped:
        start = time.monotonic()
        watcher.poll()
        time.sleep(max(0.0, given.seconds - (time.monotonic() - start)))
    watcher.poll()
    report = dataclasses.asdict(watcher.report)
    print(json.dumps(report, default=sorted))  # noqa: T201


if __name__ == "__main__":
    main()
