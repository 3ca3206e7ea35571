"""Archives of modules, unpacked without letting anything escape."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zlib
from pathlib import Path

from job.errors import ConfigError, brief

SUFFIXES = (".tar.gz", ".tgz", ".tar")

# What damaged archives raise, by the layer that notices first.
ERRORS = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError)


def unpack(data: bytes, target: Path) -> None:
    """Unpack a tar archive, gzipped or not, into the folder `target`, which is made.

    Files and folders only: a module needs no links, and they are how archives escape.

    Raises ConfigError when it is damaged, or when something in it leads elsewhere.
    """
    target.mkdir()
    try:
        if data.startswith(b"\x1f\x8b"):
            # tarfile stops at the last member; gzip's checksum comes after it.
            with gzip.open(io.BytesIO(data)) as stream:
                while stream.read(2**20):
                    pass
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                _extract(archive, member, target)
    except ERRORS as error:
        raise broken_archive(error) from error


def broken_archive(error: Exception) -> ConfigError:
    """Give the error for an archive that could not be unpacked."""
    return ConfigError(
        f"not a whole and safe .tar.gz archive: {brief(error)}",
        hint="pack the module again: tar -C FOLDER -czf NAME.tar.gz .",
    )


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
