"""What the tests of the embedding cache share: files that were never on a disk, and their rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from job.cache import EmbeddingCache, Known, space_name
from job.shards import list_shards
from job.storage import Entry, Store, crc32c

SPACE = space_name(test=1)
WIDTH = 6


@dataclass(frozen=True, slots=True)
class File:
    """A file as a listing shows it, what is known of it once it was read, and its embedding."""

    entry: Entry
    known: Known
    row: NDArray[np.float32]


def make_file(number: int, width: int = WIDTH) -> File:
    """Make the file of a number; every number has its own content and embedding."""
    content = b"image %d" % number
    entry = Entry(f"label/{number}.jpg", len(content), 1000 + number, crc32c(content), 1.0)
    known = Known(hashlib.sha256(content).hexdigest(), entry.crc32c)
    row = np.random.default_rng(number).standard_normal(width).astype(np.float32)
    return File(entry, known, row)


def files(*numbers: int) -> list[File]:
    """Make the files of `range(*numbers)`."""
    return [make_file(number) for number in range(*numbers)]


def opened(store: Store, dtype: str = "float32") -> EmbeddingCache:
    """Open the cache as a new job does."""
    cache = EmbeddingCache(store, SPACE, dtype, threads=4)
    cache.refresh()
    return cache


def fill(store: Store, some: list[File], dtype: str = "float32") -> EmbeddingCache:
    """Put files into the cache, as one shard."""
    cache = opened(store, dtype)
    for file in some:
        cache.add(file.entry, file.known, file.row)
    cache.flush()
    return cache


def fetched(cache: EmbeddingCache, some: list[File]) -> NDArray[np.float32]:
    """Fetch the embeddings of files, `[n,d]`; NaN where there is none."""
    out = np.full((len(some), WIDTH), np.nan, np.float32)
    missing = cache.fetch({file.known.digest: [row] for row, file in enumerate(some)}, out)
    gone = [file.known.digest in missing for file in some]
    assert np.isnan(out).any(axis=1).tolist() == gone
    return out


def rows_of(some: list[File]) -> NDArray[np.float32]:
    """Give the embeddings that files should have, `[n,d]`."""
    return np.stack([file.row for file in some])


def shard_names(store: Store) -> list[str]:
    """List `<space>/<id>` of all whole shards."""
    return [shard.name for shard in list_shards(store) if shard.is_whole]
