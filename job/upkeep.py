"""How big an embedding cache is, and how it is kept small.

Nothing but shards is ever touched, whatever else is in the store; jobs may read and write
meanwhile. A job whose shard is removed under its hands embeds those images again.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from job.errors import RegraftError
from job.shards import DamagedShardError, Listed, list_shards, read_index
from job.storage import Entry, Store

# Seconds after which one half of a shard is taken for what a killed job left behind. A job that
# lives writes the index right after the rows.
STALE_AFTER = 86400.0

DELETES = 16


@dataclass(frozen=True, slots=True)
class Usage:
    """What a space holds: shards, their rows of `dim` values in `dtype`, bytes of all objects.

    `rows`, `dim` and `dtype` are 0 and "" where no index could be read. `oldest` and `newest` are
    the times of the first and the last shard, in epoch seconds.
    """

    space: str
    shards: int
    rows: int
    bytes: int
    dim: int
    dtype: str
    oldest: float
    newest: float


@dataclass(frozen=True, slots=True)
class Pruned:
    """How much was removed."""

    objects: int
    bytes: int


def usage(store: Store) -> list[Usage]:
    """Give what each space holds; one index of each is read. Raises what the store raises."""
    spaces: dict[str, list[Listed]] = {}
    for shard in list_shards(store):
        if shard.is_whole:
            spaces.setdefault(shard.space, []).append(shard)
    return [_describe(store, space, shards) for space, shards in sorted(spaces.items())]


def _describe(store: Store, space: str, shards: list[Listed]) -> Usage:
    times = [shard.modified for shard in shards]
    dim, dtype, rows = 0, "", 0
    for shard in shards:
        try:
            index = read_index(store, shard)
        except (DamagedShardError, FileNotFoundError, RegraftError):
            continue
        if not index.rows:
            continue
        dim, dtype = index.dim, index.dtype
        # All shards of a space have rows of one kind, so their sizes tell how many there are.
        total = sum(shard.rows.size for shard in shards if shard.rows is not None)
        rows = total // (dim * np.dtype(dtype).itemsize)
        break
    size = sum(shard.size for shard in shards)
    return Usage(space, len(shards), rows, size, dim, dtype, min(times), max(times))


def prune(store: Store, *, older_than: float | None, max_bytes: float | None, now: float) -> Pruned:
    """Remove shards older than `older_than` seconds at `now`, then the oldest above `max_bytes`.

    None is no limit. Halves of shards that are older than a day go too: killed jobs left them.
    Raises what the store raises.
    """
    whole: list[Listed] = []
    doomed: list[Listed] = []
    for shard in list_shards(store):
        age = now - shard.modified
        if not shard.is_whole:
            if age > STALE_AFTER:
                doomed.append(shard)
        elif older_than is not None and age > older_than:
            doomed.append(shard)
        else:
            whole.append(shard)
    size = sum(shard.size for shard in whole)
    for shard in sorted(whole, key=lambda shard: (shard.modified, shard.name)):
        if max_bytes is None or size <= max_bytes:
            break
        doomed.append(shard)
        size -= shard.size
    # An index without rows would promise what is not there; rows without an index promise nothing.
    indexes = [shard.index for shard in doomed if shard.index is not None]
    rows = [shard.rows for shard in doomed if shard.rows is not None]
    _delete(store, indexes)
    _delete(store, rows)
    return Pruned(len(indexes) + len(rows), sum(entry.size for entry in (*indexes, *rows)))


def _delete(store: Store, entries: Iterable[Entry]) -> None:
    with ThreadPoolExecutor(DELETES) as pool:
        list(pool.map(store.delete, [entry.name for entry in entries]))
