"""Compiled backbones, kept for later runs: to load and to freeze one takes seconds, to read less.

A file is a SHA-256 of what follows, a line of JSON with the sizes, and the GraphDef. One that is
damaged, or cannot be read now, is not used: the backbone is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from job.errors import RegraftError
from job.progress import log
from job.storage import Store

# Raise it when the same module is compiled to something else than before.
COMPILER_VERSION = 1

_SEAL = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Compiled:
    """A backbone without its module: `graph` is a GraphDef for `graphs.insert`.

    It maps float32 `[n,*image_size,3]` in [0,1] to float32 `[n,feature_dim]`.
    """

    image_size: tuple[int, int]
    feature_dim: int
    graph: Any


def file_name(digest: str, image_size: int | None) -> str:
    """Give the name for the module of this digest, at the image size that was asked for."""
    size = image_size or "own"
    return f"{digest}-{size}-tensorflow-{tf.__version__}-{COMPILER_VERSION}.graph"


def find(shelf: Store, name: str) -> Compiled | None:
    """Give what is kept under a name; None where that is nothing, or nothing whole."""
    with contextlib.suppress(FileNotFoundError, RegraftError, ValueError):
        data = shelf.read(name)
        if data[:_SEAL] == hashlib.sha256(data[_SEAL:]).digest():
            sizes, _, graph = data[_SEAL:].partition(b"\n")
            height, width, feature_dim = json.loads(sizes)
            return Compiled((height, width), feature_dim, tf.compat.v1.GraphDef.FromString(graph))
        log(f"{shelf.uri}/{name} is damaged: the backbone is compiled again", level=logging.WARNING)
    return None


def keep(shelf: Store, name: str, compiled: Compiled) -> None:
    """Keep a compiled backbone; where that is not possible the log says so."""
    sizes = json.dumps([*compiled.image_size, compiled.feature_dim]).encode()
    content = sizes + b"\n" + compiled.graph.SerializeToString(deterministic=True)
    try:
        shelf.write(name, hashlib.sha256(content).digest() + content)
    except (RegraftError, OSError) as error:
        message = f"{shelf.uri}: the compiled backbone is not kept: {error}"
        log(message, level=logging.WARNING)
