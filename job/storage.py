"""The seam to object storage: one `Store` protocol, a folder or a bucket behind it.

Existence is told in Python's own words (`FileNotFoundError`, `FileExistsError`); everything else
that a store can answer is translated here, once, into `job.errors`. A store is rooted: names are
relative to its URI, `/` between parts, never absolute.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import google_crc32c

from job.errors import ConfigError, UnavailableError


@dataclass(frozen=True, slots=True)
class Entry:
    """One object as a listing shows it.

    `name` is relative to the store; a name ending in `/` is an empty folder (or its placeholder).
    `size` is in bytes. `generation` changes whenever the content may have: the object's generation
    in a bucket, made of the inode and its times in a folder. `crc32c` is the base64 checksum
    of the content as GCS writes it, empty where a listing does not give one. `modified` is the time
    of the last change in epoch seconds.
    """

    name: str
    size: int
    generation: int
    crc32c: str = ""
    modified: float = 0.0


class Store(Protocol):
    """A place that holds objects by name. Safe to use from many threads."""

    uri: str

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Give every object whose name starts with `prefix`, sorted by name, dot files included."""

    def read(self, name: str, entry: Entry | None = None) -> bytes:
        """Give the object's bytes; with its `entry`, that very generation and checksum.

        Raises FileNotFoundError when it is not there (any more).
        """

    def write(self, name: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        """Store bytes, or a local file's, whole or not at all.

        Raises FileExistsError when `if_absent` is set and the object exists.
        """

    def replace(self, name: str, data: bytes, entry: Entry | None) -> None:
        """Store bytes where the object still is what `entry` says (None: where there is none).

        Raises FileExistsError when it has changed since.
        """

    def put_tree(self, folder: Path, name: str) -> None:
        """Store a local folder's files below `name`, where nothing is yet."""

    def move_tree(self, source: str, target: str, *, order: Callable[[str], Any]) -> None:
        """Move everything below `source` to `target`, in one moment or in the order of a sort key.

        Raises FileExistsError when something is at `target` already.
        """

    def delete_tree(self, name: str, *, first: str = "") -> None:
        """Remove everything below `name`, the file `first` first; nothing there is fine."""

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""

    def child(self, name: str) -> Store:
        """Give the store rooted at `name` below this one."""


def open_store(uri: str, *, connections: int = 32, deadline: float = 300.0) -> Store:
    """Open `gs://bucket/prefix`, `file:///path` or a path; nothing is read or made yet.

    `connections` is how many requests to a bucket may be under way at once.

    Raises ConfigError for another scheme or a URI without a bucket.
    """
    parts = urlsplit(uri)
    if parts.scheme == "gs":
        if not parts.netloc:
            raise ConfigError(f"{uri!r} names no bucket", hint="write gs://bucket/prefix")
        # Imported here because the SDK takes a second that a local run need not pay.
        from job.gcs import GcsStore, open_bucket

        return GcsStore(open_bucket(parts.netloc, connections), parts.path.strip("/"))
    if parts.scheme == "file":
        return LocalStore(Path(parts.path))
    if "://" in uri:
        raise ConfigError(
            f"{uri!r}: no store for {parts.scheme}://",
            hint="use gs://bucket/prefix, file:///path or a path",
        )
    if not uri:
        raise ConfigError("an empty string is no store", hint="use gs://bucket/prefix or a path")
    return LocalStore(Path(uri))


def crc32c(data: bytes) -> str:
    """Give the CRC32C of `data` as GCS writes it: base64 of the big-endian 4 bytes."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def download(store: Store, entries: Iterable[Entry], folder: Path) -> None:
    """Write objects to files of the same names below a local folder.

    Raises ConfigError for a name that leads outside, FileNotFoundError for an object that is gone.
    """
    for entry in entries:
        target = folder / entry.name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{store.uri}: {entry.name!r} leads outside its folder")
        if not entry.name.endswith("/"):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(store.read(entry.name, entry))


def check_writable(store: Store) -> None:
    """Write and remove a probe object, so that a bad target is found out before training.

    Raises ConfigError when the store may not be written to, UnavailableError when it is out.
    """
    probe = f".regraft-probe-{uuid.uuid4().hex}"
    try:
        store.write(probe, b"", if_absent=True)
    except FileNotFoundError as error:  # /proc and its like: folders in which nothing can be made
        raise ConfigError(f"{store.uri} cannot be written to: {error.strerror}") from error
    store.delete(probe)


class LocalStore:
    """A folder as a store. Writes go through a temporary file and a rename."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Give every file below the folder, and every empty folder as a name ending in `/`."""
        if not self.root.is_dir():
            found = "is a file" if self.root.exists() else "does not exist"
            raise ConfigError(
                f"{self.uri} {found}, expected a folder", hint="check the path and the mount"
            )
        with self._translated():
            yield from sorted(self._walk(self.root, "", prefix), key=lambda entry: entry.name)

    def _walk(self, folder: Path, base: str, prefix: str) -> Iterator[Entry]:
        empty = True
        # What another job removes while this goes on is left out, as a bucket's listing would.
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as children:
            for child in children:
                empty = False
                name = base + child.name
                with contextlib.suppress(FileNotFoundError):
                    if child.is_dir():
                        if f"{name}/".startswith(prefix) or prefix.startswith(f"{name}/"):
                            yield from self._walk(Path(child.path), name + "/", prefix)
                    elif child.is_file() and name.startswith(prefix):
                        yield _described(name, child.stat())
            if empty and base:
                yield _described(base, folder.stat())

    def read(self, name: str, entry: Entry | None = None) -> bytes:
        """Give the file's bytes; `entry` is not needed, a local file is read in one go."""
        with self._translated():
            return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        """Store bytes, or a local file's, by a rename (a link where `if_absent` is set)."""
        target = self.root / name
        temporary = target.with_name(f".{uuid.uuid4().hex}.part")
        with self._translated():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data.read_bytes() if isinstance(data, Path) else data)
                if if_absent:
                    os.link(temporary, target)  # a link, unlike a rename, never replaces
                else:
                    temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)

    def replace(self, name: str, data: bytes, entry: Entry | None) -> None:
        """Compare and store under a lock that other processes on this machine respect."""
        with self._translated():
            self.root.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.root, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                found = next((e for e in self.list(name) if e.name == name), None)
                if (found and found.generation) != (entry and entry.generation):
                    raise FileExistsError(errno.EEXIST, "changed since it was read", name)
                self.write(name, data)
            finally:
                os.close(lock)

    def put_tree(self, folder: Path, name: str) -> None:
        """Copy a folder."""
        with self._translated():
            shutil.copytree(folder, self.root / name)

    def move_tree(self, source: str, target: str, *, order: Callable[[str], Any]) -> None:
        """Rename a folder: it appears whole, in one moment, so the order does not matter."""
        with self._translated():
            # A rename onto an empty folder would succeed, so that is asked about first.
            if (self.root / target).exists():
                raise FileExistsError(errno.EEXIST, "exists", str(self.root / target))
            (self.root / target).parent.mkdir(parents=True, exist_ok=True)
            (self.root / source).rename(self.root / target)

    def delete_tree(self, name: str, *, first: str = "") -> None:
        """Rename a folder out of sight, then remove it: it vanishes in one moment."""
        # The folder stays for good: one that comes and goes is pulled from under other jobs.
        doomed = self.root / ".staging" / f"deleted-{uuid.uuid4().hex}"
        with self._translated():
            doomed.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                (self.root / name).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is fine."""
        with self._translated():
            (self.root / name).unlink(missing_ok=True)

    def child(self, name: str) -> LocalStore:
        """Give the store rooted at the subfolder `name`."""
        return LocalStore(self.root / name)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except (PermissionError, NotADirectoryError, IsADirectoryError) as error:
            raise ConfigError(
                f"{error.filename or self.uri}: {error.strerror}",
                hint=f"check that user {os.getuid()} may read and write there",
            ) from error
        except OSError as error:
            # A read-only mount is for a person to mend; a full disk or a stale mount may pass.
            kind = ConfigError if error.errno == errno.EROFS else UnavailableError
            raise kind(f"{error.filename or self.uri}: {error.strerror}") from error


def _described(name: str, stat: os.stat_result) -> Entry:
    # The clock of a file system ticks every few milliseconds; a rename changes the inode at once.
    # The time of the last change of the inode cannot be set back, as an unpacked archive sets the
    # other one.
    generation = (stat.st_mtime_ns << 84) ^ (stat.st_ctime_ns << 20) ^ stat.st_ino
    size = 0 if name.endswith("/") else stat.st_size
    return Entry(name, size, generation, modified=stat.st_mtime)
