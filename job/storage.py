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
from job.guard import beat

# What an operating system says for good, and what may help. Whatever else it says may pass.
REFUSED = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)
FOR_GOOD = {
    **dict.fromkeys(REFUSED, "check that user {user} may read and write there"),
    errno.EROFS: "mount it for writing",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ELOOP: "remove the link that leads back to itself",
}
LATER = "make room there, or mend the mount; then the same command may work"
PROBE = ".regraft-probe-"  # how the names that `check_writable` tries begin


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


class Readable(Protocol):
    """A place to read objects from by name; like a `Store`, it is safe to use from many threads."""

    uri: str

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Give every object whose name starts with `prefix`, sorted by name, dot files included."""

    def read(self, name: str, entry: Entry | None = None) -> bytes:
        """Give an object's bytes, with its `entry` that generation's; or FileNotFoundError."""


class Store(Readable, Protocol):
    """A place that holds objects by name. Safe to use from many threads."""

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

    `connections` is how many requests to a bucket may be under way at once, `deadline` how many
    seconds each of them is tried for before it is an UnavailableError.

    Raises ConfigError for another scheme or a URI without a bucket.
    """
    parts = urlsplit(uri)
    if parts.scheme == "gs":
        if not parts.netloc:
            raise ConfigError(f"{uri!r} names no bucket", hint="write gs://bucket/prefix")
        # Imported here because the SDK takes a second that a local run need not pay.
        from job.gcs import GcsStore, open_bucket

        # Not urlsplit's path: `?` and `#` may be in a prefix.
        bucket, _, prefix = uri.removeprefix("gs://").partition("/")
        return GcsStore(open_bucket(bucket, connections), prefix.strip("/"), deadline)
    if parts.scheme == "file":
        return LocalStore(Path(parts.path))
    if "://" in uri:
        raise ConfigError(
            f"{uri!r}: no store for {parts.scheme}://",
            hint="use gs://bucket/prefix, file:///path or a path",
        )
    if not uri:
        raise ConfigError("an empty string is no store", hint="use gs://bucket/prefix")
    return LocalStore(Path(uri))


def crc32c(data: bytes) -> str:
    """Give the CRC32C of `data` as GCS writes it: base64 of the big-endian 4 bytes."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def download(store: Store, entries: Iterable[Entry], folder: Path) -> None:
    """Write objects to files of the same names below a local folder.

    Raises ConfigError for a name that leads outside, FileNotFoundError for an object that is gone.
    """
    target = LocalStore(folder)
    for entry in entries:
        target.path(entry.name)  # before it is fetched
        if not entry.name.endswith("/"):
            target.write(entry.name, store.read(entry.name, entry))


def check_writable(store: Store) -> None:
    """Write and remove a probe object, so that a bad target is found out before training.

    Raises ConfigError when the store may not be written to, UnavailableError when it is out.
    """
    probe = f"{PROBE}{uuid.uuid4().hex}"
    try:
        store.write(probe, b"", if_absent=True)
    except (FileNotFoundError, FileExistsError) as error:  # in /proc, or below a file
        what = f"{store.uri} cannot be written to: {error.strerror}"
        raise ConfigError(what, hint="give a folder, or a path where one can be made") from error
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
            entries = sorted(self._walk(self.root, "", prefix), key=lambda entry: entry.name)
        beat()
        yield from entries

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
        """Give the file's bytes; with its `entry`, only if it still is that very file."""
        with self._translated(name), self.path(name).open("rb") as file:
            data = file.read()
            # Asked after reading, so that no half of what another program writes is believed.
            if entry and _described(name, os.fstat(file.fileno())).generation != entry.generation:
                raise FileNotFoundError(errno.ENOENT, "replaced since it was listed", name)
        beat()
        return data

    def write(self, name: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        """Store bytes, or a local file's, by a rename (a link where `if_absent` is set)."""
        target = self.path(name)
        temporary = target.with_name(f".{uuid.uuid4().hex}.part")
        with self._translated(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data.read_bytes() if isinstance(data, Path) else data)
                if if_absent:
                    os.link(temporary, target)  # a link, unlike a rename, never replaces
                else:
                    temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        beat()

    def replace(self, name: str, data: bytes, entry: Entry | None) -> None:
        """Compare and store under a lock that other processes on this machine respect."""
        with self._translated(name):
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
        """Copy a folder's files, one after the other."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.write(f"{name}/{path.relative_to(folder).as_posix()}", path, if_absent=True)

    def move_tree(self, source: str, target: str, *, order: Callable[[str], Any]) -> None:
        """Rename a folder: it appears whole, in one moment, so the order does not matter."""
        new = self.path(target)
        with self._translated(target):
            # A rename onto an empty folder would succeed, so that is asked about first.
            if new.exists():
                raise FileExistsError(errno.EEXIST, "exists", str(new))
            new.parent.mkdir(parents=True, exist_ok=True)
            self.path(source).rename(new)

    def delete_tree(self, name: str, *, first: str = "") -> None:
        """Rename a folder out of sight, then remove it: it vanishes in one moment."""
        # The folder stays for good: one that comes and goes is pulled from under other jobs.
        doomed = self.root / ".staging" / f"deleted-{uuid.uuid4().hex}"
        with self._translated(name):
            doomed.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self.path(name).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is fine."""
        with self._translated(name):
            self.path(name).unlink(missing_ok=True)

    def child(self, name: str) -> LocalStore:
        """Give the store rooted at the subfolder `name`."""
        return LocalStore(self.path(name))

    def path(self, name: str) -> Path:
        """Give the file that `name` stands for; raises ConfigError where that is outside."""
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise ConfigError(f"{self.uri}: {name!r} leads outside its folder")
        return self.root / name

    @contextlib.contextmanager
    def _translated(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            # The name that was asked for, not that of a temporary file.
            where = self.root / name if name else error.filename or self.uri
            hint = FOR_GOOD.get(error.errno or 0, LATER).format(user=os.getuid())
            kind = ConfigError if error.errno in FOR_GOOD else UnavailableError
            raise kind(f"{where}: {error.strerror}", hint=hint) from error


def _described(name: str, stat: os.stat_result) -> Entry:
    # A file system's clock ticks every few milliseconds; a rename changes the inode at once. The
    # inode's own time cannot be set back, as an unpacked archive sets the other one.
    generation = (stat.st_mtime_ns << 84) ^ (stat.st_ctime_ns << 20) ^ stat.st_ino
    return Entry(name, 0 if name[-1:] == "/" else stat.st_size, generation, modified=stat.st_mtime)
