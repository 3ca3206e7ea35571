"""Archives of modules, unpacked without letting anything escape."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

from job.errors import ConfigError, brief

SUFFIXES = (".tar.gz", ".tgz", ".tar")

# Twice what a billion float32 weights take: more than that is meant to fill the disk.
MAX_BYTES = 8 * 2**30
BLOCK = 4096  # what even an empty file may take on a disk

# What damaged archives raise, by the layer that notices first.
ERRORS = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError)


# And what is no fault of the archive.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def unpack(file: BinaryIO, target: Path) -> None:
    """Unpack a tar archive, gzipped or not, into the folder `target`, which is made.

    Files and folders only: a module needs no links, and they are how archives escape.

    Raises ConfigError when it is damaged, when something in it leads elsewhere, or when it is a
    bomb: more than `MAX_BYTES` come out of it. OSError when the disk is full or read-only.
    """
    target.mkdir()
    try:
        _check_whole(file)
        with tarfile.open(fileobj=file) as archive:
            room = MAX_BYTES
            for member in archive:
                room -= max(member.size, BLOCK)  # a sparse file's size is what it is unpacked
                _check_room(room)
                _extract(archive, member, target)
    except ERRORS as error:
        if getattr(error, "errno", None) in DISK:
            raise
        raise broken_archive(error) from error


def copy(source: BinaryIO | gzip.GzipFile, target: BinaryIO) -> None:
    """Copy a stream to its end; ValueError when more than `MAX_BYTES` come out of it."""
    room = MAX_BYTES
    while data := source.read(2**20):
        room -= len(data)
        _check_room(room)
        target.write(data)


def broken_archive(error: Exception) -> ConfigError:
    """Give the error for an archive that could not be unpacked."""
    return ConfigError(
        f"not a whole and safe .tar.gz archive: {brief(error)}",
        hint="pack the module again: tar -C FOLDER -czf NAME.tar.gz .",
    )


def _check_whole(file: BinaryIO) -> None:
    """Read a gzip to its checksum, which comes after the last member, where tarfile stops."""
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if zipped:
        with gzip.GzipFile(fileobj=file) as stream, Path(os.devnull).open("wb") as nothing:
            copy(stream, nothing)
        file.seek(0)


def _check_room(room: int) -> None:
    if room < 0:
        raise ValueError(f"more than {MAX_BYTES / 2**30:g} GiB come out of it")


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write one member below `target`; by hand, as Python 3.11.2 has no extraction filters."""
    path = target / member.name.lstrip("/")
    if not path.resolve().is_relative_to(target.resolve()):
        raise ValueError(f"{member.name} leads outside its folder")
    content = archive.extractfile(member) if member.isfile() else None
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with content, path.open("wb") as file:
            shutil.copyfileobj(content, file)
    elif member.isdir():
        path.mkdir(parents=True, exist_ok=True)
    else:
        raise ValueError(f"{member.name} is neither a file nor a folder")
