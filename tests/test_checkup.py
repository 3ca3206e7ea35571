"""What the doctor is given of a version: some of its embeddings, and no more than it needs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from job.cache import EmbeddingCache, Known, space_name
from job.checkup import MOST_BEFORE, data_before
from job.dataset import Example, Index, Split
from job.embed import Embeddings
from job.storage import Entry, LocalStore
from job.traits import TRAITS

WIDTH = 4


def digest(number: int) -> str:
    """Give the digest of an image's content."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def row(number: int) -> np.ndarray:
    """Give an image's row: its embedding, and traits behind it."""
    return np.full(WIDTH + TRAITS, number, np.float32)


def embedded(numbers: range) -> Embeddings:
    """Give the embeddings of images."""
    table = np.stack([row(number) for number in numbers])
    examples = tuple(Example(Entry(f"{n}.jpg", 1, 1), (0,), Split.TRAIN) for n in numbers)
    digests = tuple(digest(number) for number in numbers)
    features, traits = table[:, :WIDTH], table[:, WIDTH:]
    return Embeddings(Index(("a", "b"), examples), features, traits, digests, (), {}, 0)


def published(store: LocalStore, numbers: range) -> None:
    """Write the examples of version 5."""
    lines = [f"{number}.jpg,a,train,{digest(number)}" for number in numbers]
    store.write("5/examples.csv", "\r\n".join(["name,label,split,sha256", *lines]).encode())


def test_images_that_are_still_here_need_no_cache(tmp_path: Path) -> None:
    """Their embeddings are taken from there, of MOST_BEFORE at most."""
    store = LocalStore(tmp_path)
    published(store, range(2 * MOST_BEFORE))
    before = data_before(store, 5, None, embedded(range(100, 2 * MOST_BEFORE + 100)))
    assert before is not None
    assert len(before.names) == 2 * MOST_BEFORE
    assert len(before.rows) == len(before.features) == MOST_BEFORE
    assert np.array_equal(before.features[:, 0], before.rows)


def test_images_that_are_gone_come_from_the_cache(tmp_path: Path) -> None:
    """Those that it has, beside those that are here."""
    store, cache = LocalStore(tmp_path), EmbeddingCache(LocalStore(tmp_path), space_name(x=1))
    published(store, range(30))
    for number in range(20):
        cache.add(None, Known(digest(number), "", ""), row(number))
    cache.flush()
    before = data_before(store, 5, cache, embedded(range(10, 25)))
    assert before is not None
    assert sorted(before.rows.tolist()) == list(range(25))
    assert np.array_equal(before.features[:, 0], before.rows)


@pytest.mark.parametrize(
    "contents", [b"", b"\xff", b"name,split\r\na,test\r\n", b"name,label,sha256\r\na,b,c\r\n"]
)
def test_a_version_that_does_not_tell_is_not_compared_with(tmp_path: Path, contents: bytes) -> None:
    """Its table is another tool's, or damaged: the run goes on."""
    store = LocalStore(tmp_path)
    now = embedded(range(3))
    assert data_before(store, None, None, now) is None
    assert data_before(store, 5, None, now) is None
    store.write("5/examples.csv", contents)
    assert data_before(store, 5, None, now) is None
