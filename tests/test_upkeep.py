"""Pruning removes what is old or too much, nothing else, and under the hands of running jobs."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from caches import SPACE, WIDTH, File, fetched, files, fill, opened, rows_of, shard_names

from job.cache import Known, space_name
from job.shards import Listed, list_shards
from job.storage import LocalStore, Store, open_store
from job.upkeep import STALE_AFTER, prune, usage

SPAN = 0.05


@pytest.fixture(params=["local", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty place for a cache of each kind."""
    if request.param == "gcs":
        return open_store(f"gs://{request.getfixturevalue('bucket')}/c")
    return LocalStore(tmp_path / "c")


@pytest.fixture
def batches(store: Store) -> list[list[File]]:
    """Three shards of four files each, one after the other, the oldest first."""
    made = [files(4 * number, 4 * number + 4) for number in range(3)]
    for some in made:
        fill(store, some)
        time.sleep(SPAN)
    return made


def by_age(store: Store) -> list[Listed]:
    """Give the shards, the oldest first."""
    return sorted(list_shards(store), key=lambda shard: shard.modified)


def names(store: Store) -> set[str]:
    """Give the names of all objects; folders that are left empty are none."""
    return {entry.name for entry in store.list() if not entry.name.endswith("/")}


def held(store: Store, batches: list[list[File]]) -> list[bool]:
    """Tell which batches a new job finds."""
    cache = opened(store)
    return [cache.holds(some[0].known.digest) for some in batches]


def test_old_shards_go(store: Store, batches: list[list[File]]) -> None:
    """Older than the limit and not as old: by the time at which the shard was finished."""
    first, second, _ = by_age(store)
    now = second.modified + 100
    pruned = prune(store, older_than=100 + SPAN / 2, max_bytes=None, now=now)
    assert held(store, batches) == [False, True, True]
    assert (pruned.objects, pruned.bytes) == (2, first.size)
    again = prune(store, older_than=100 + SPAN / 2, max_bytes=None, now=now)
    assert (again.objects, again.bytes) == (0, 0)


def test_the_oldest_go_until_the_rest_fits(store: Store, batches: list[list[File]]) -> None:
    """A cache that fits stays whole; one byte less room and its oldest shard goes."""
    size = sum(shard.size for shard in list_shards(store))
    assert prune(store, older_than=None, max_bytes=size, now=time.time()).objects == 0
    assert prune(store, older_than=None, max_bytes=size - 1, now=time.time()).objects == 2
    assert held(store, batches) == [False, True, True]
    last = by_age(store)[-1].size
    assert prune(store, older_than=None, max_bytes=last, now=time.time()).bytes > 0
    assert held(store, batches) == [False, False, True]
    prune(store, older_than=None, max_bytes=0, now=time.time())
    assert names(store) == set()


def test_both_limits_hold(store: Store, batches: list[list[File]]) -> None:
    """What age leaves still has to fit."""
    _, second, third = by_age(store)
    now = second.modified + 100
    prune(store, older_than=100 + SPAN / 2, max_bytes=third.size, now=now)
    assert held(store, batches) == [False, False, True]


def test_leftovers_of_killed_jobs_go_after_a_day(store: Store, batches: list[list[File]]) -> None:
    """Rows without an index, and an index without rows; not those of a job that is at work."""
    rows, index, _ = by_age(store)
    store.delete(f"{rows.name}.index")
    store.delete(f"{index.name}.rows")
    before = names(store)
    now = time.time()
    assert prune(store, older_than=None, max_bytes=10**9, now=now + STALE_AFTER - 60).objects == 0
    assert names(store) == before
    assert prune(store, older_than=None, max_bytes=10**9, now=now + STALE_AFTER + 60).objects == 2
    assert names(store) == before - {f"{rows.name}.rows", f"{index.name}.index"}
    assert held(store, batches) == [False, False, True]


def test_nothing_else_is_touched(store: Store, batches: list[list[File]]) -> None:
    """Models, notes and near misses of our names stay when everything of ours goes."""
    strangers = {
        "flowers/1700000000/saved_model.pb", "channels.json", f"{SPACE}/README", f"{SPACE}.rows",
        f"{SPACE}/{'a' * 31}.rows", f"{SPACE}/{'a' * 32}.rows.bak", f"{SPACE}/{'A' * 32}.index",
        f"sub/{SPACE}/{'a' * 32}.index", f"{'g' * 32}/{'a' * 32}.index",
    }  # fmt: skip
    for name in strangers:
        store.write(name, b"x")
    prune(store, older_than=0, max_bytes=0, now=time.time() + 10 * STALE_AFTER)
    assert names(store) == strangers


def test_a_job_that_reads_meanwhile_survives(store: Store, batches: list[list[File]]) -> None:
    """It is told what is missing, embeds that again, and the next job has it."""
    cache = opened(store)
    prune(store, older_than=0, max_bytes=None, now=time.time() + 100)
    some = [file for batch in batches for file in batch]
    assert np.isnan(fetched(cache, some)).all()
    for file in some:
        cache.add(file.entry, file.known, file.row)
    cache.flush()
    assert np.array_equal(fetched(opened(store), some), rows_of(some))


def test_usage_counts_each_space(store: Store, batches: list[list[File]]) -> None:
    """Shards, rows, bytes and times; halves and strangers are not counted."""
    from job.cache import EmbeddingCache

    other = EmbeddingCache(store, space_name(other=1), "float16")
    (file,) = files(1)
    other.add(file.entry, Known(file.known.digest, file.known.checksum, "no image"), None)
    other.flush()
    for some in (files(3), files(3, 5)):
        for file in some:
            other.add(file.entry, file.known, np.ones(9, np.float32))
        other.flush()
    half = by_age(store)[-1].name.replace(by_age(store)[-1].name[-4:], "0000")
    store.write(f"{half}.rows", b"x" * 1000)
    store.write("README", b"x")
    found = {space.space: space for space in usage(store)}
    mine, its = found[SPACE], found[space_name(other=1)]
    assert (mine.shards, mine.rows, mine.dim, mine.dtype) == (3, 12, WIDTH, "float32")
    assert (its.shards, its.rows, its.dim, its.dtype) == (3, 5, 9, "float16")
    ours = [shard for shard in by_age(store) if shard.is_whole and shard.space == SPACE]
    assert (mine.oldest, mine.newest) == (ours[0].modified, ours[-1].modified)
    assert mine.bytes == sum(shard.size for shard in ours)
    assert len(shard_names(store)) == 6


def test_usage_reads_on_when_an_index_is_damaged(store: Store, batches: list[list[File]]) -> None:
    """Any sound index of a space tells its kind; where there is none, rows are not counted."""
    shards = list(list_shards(store))
    for shard in shards[:2]:
        store.write(f"{shard.name}.index", b"x")
    assert [(space.shards, space.rows) for space in usage(store)] == [(3, 12)]
    store.write(f"{shards[2].name}.index", b"x")
    assert [(space.shards, space.rows, space.dtype) for space in usage(store)] == [(3, 0, "")]
