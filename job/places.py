"""What a `--data` URI stands for: a folder of images, or import files. No TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from job.config import is_manifest
from job.errors import ConfigError
from job.storage import Store

Open = Callable[[str], Store]


class Place(NamedTuple):
    """A source of images by its URI: an import file, or else a folder."""

    uri: str
    is_file: bool


def expanded(uri: str, open_at: Open) -> list[Place]:
    """Give the import files that a URI with a `*` in its last part stands for, or the URI itself.

    That is how Vertex AI names the files of a data set: `gs://bucket/folder/training-*`. Raises
    ConfigError when there is none.
    """
    base, pattern = parent(uri)
    if "*" not in pattern or Path(uri.removeprefix("file://")).exists():
        return [Place(uri, is_manifest(uri))]
    names = [entry.name for entry in open_at(base).list(pattern.partition("*")[0])]
    wanted = pattern.replace("[", "[[]")
    files = [name for name in names if "/" not in name and fnmatchcase(name, wanted)]
    if not files:
        raise ConfigError(
            f"{uri} fits no file", hint="give a folder of images, or the pattern of import files"
        )
    return [Place(f"{base}/{name}", True) for name in files]


def parent(uri: str) -> tuple[str, str]:
    """Give the folder that a file is in, and its name there."""
    folder, _, name = uri.rpartition("/")
    return folder or ("/" if uri.startswith("/") else "."), name
