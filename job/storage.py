"""The seam to object storage: one `Store` protocol, a folder or a bucket behind it.

Existence is told in Python's own words (`FileNotFoundError`, `FileExistsError`); everything else
that a store can answer is translated here, once, into `job.errors`. A store is rooted: names are
relative to its URI, `/` between parts, never absolute.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import google_crc32c

from job.errors import ConfigError, UnavailableError


@dataclass(frozen=True, slots=True)
class Entry:
    """One object as a listing shows it.

    `name` is relative to the store; a name ending in `/` is an empty folder (or its placeholder).
    `size` is in bytes. `generation` changes whenever the content may have: the object's generation
    in a bucket, the modification time in nanoseconds in a folder. `crc32c` is the base64 checksum
    of the content as GCS writes it, empty where a listing does not give one.
    """

    name: str
    size: int
    generation: int
    crc32c: str = ""


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

    def put_tree(self, folder: Path, name: str, *, last: str) -> None:
        """Store a local folder's files below `name`, the file `last` being the last to appear.

        Raises FileExistsError when something is there already.
        """

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""

    def child(self, name: str) -> Store:
        """Give the store rooted at `name` below this one."""


def open_store(uri: str, *, connections: int = 32) -> Store:
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
            entries = sorted(self._walk(self.root, ""), key=lambda entry: entry.name)
        yield from (entry for entry in entries if entry.name.startswith(prefix))

    def _walk(self, folder: Path, base: str) -> Iterator[Entry]:
        empty = True
        with os.scandir(folder) as children:
            for child in children:
                empty = False
                name = base + child.name
                if child.is_dir():
                    yield from self._walk(Path(child.path), name + "/")
                elif child.is_file():
                    stat = child.stat()
                    yield Entry(name, stat.st_size, stat.st_mtime_ns)
        if empty and base:
            yield Entry(base, 0, folder.stat().st_mtime_ns)

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

    def put_tree(self, folder: Path, name: str, *, last: str) -> None:
        """Copy a folder next to its place, then rename it: it appears whole, in one moment."""
        staging = self.root / ".staging" / uuid.uuid4().hex
        with self._translated():
            try:
                shutil.copytree(folder, staging)
                # A rename onto an empty folder would succeed, so that is asked about first.
                if (self.root / name).exists():
                    raise FileExistsError(errno.EEXIST, "exists", str(self.root / name))
                staging.rename(self.root / name)
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:
                    raise FileExistsError(errno.EEXIST, "exists", str(self.root / name)) from error
                raise
            finally:
                shutil.rmtree(staging, ignore_errors=True)
                with contextlib.suppress(OSError):  # another job's bundle may be in there
                    staging.parent.rmdir()

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
