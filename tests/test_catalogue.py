"""Millions of keys are found by a few bytes of each, and none is found that is not there."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from job.catalogue import Catalogue, Finder
from job.shards import as_bytes

# Two letters only, so that keys begin alike, end alike and come twice.
KEYS = st.lists(st.text("ab", min_size=10, max_size=10).map(str.encode), max_size=12, unique=True)


def column(keys: list[bytes]) -> np.ndarray:
    """Give keys as a column, uint8 `[n,10]`."""
    return as_bytes(b"".join(keys), 10)


@given(KEYS, KEYS, KEYS)
def test_what_is_found_is_right(
    first: list[bytes], second: list[bytes], other: list[bytes]
) -> None:
    """Whatever is found is the key itself; one is missed only where another begins alike."""
    keys = first + second
    finder, lines = Finder(), np.arange(len(keys), dtype=np.int32)
    finder.add(column(first), lines[: len(first)])
    finder.add(column(second), lines[len(first) :])
    asked = keys + other
    found = finder.find_all(column(asked), column(keys))
    assert [finder.find(key, column(keys)) for key in asked] == found.tolist()
    for key, line in zip(asked, found, strict=True):
        if line >= 0:
            assert keys[line] == key
        elif key in keys:
            assert any(one[:8] == key[:8] and one != key for one in keys)


def test_an_empty_catalogue_has_nothing() -> None:
    """No shard, no record, no place."""
    catalogue = Catalogue()
    catalogue.add([])
    assert catalogue.known(bytes(16)) is None
    assert not catalogue.holds(bytes(32))
    assert catalogue.locate(as_bytes(bytes(64), 32)).shards.tolist() == [-1, -1]
    assert catalogue.locate(as_bytes(b"", 32)).by_shard() == []
