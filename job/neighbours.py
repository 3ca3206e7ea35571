"""Who is next to whom: the nearest neighbours of embeddings by cosine similarity.

Free of TensorFlow, which takes seconds to import; faiss is imported when it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

# Up to so many rows every pair is compared: 2 s on one core for 1,280 features.
EXACT_ROWS = 8192

# Rows that a thread works on at once: with 20 neighbours each, three times 28 MB of 1,280 features.
BLOCK = 256

# Beyond, rows are searched by their principal axes, so many of them, found from so many rows.
AXES = 128
SAMPLE = 16_384

# An inverted file of n rows has at most 4 sqrt(n) lists, learnt from so many rows each, and a
# search goes through so many of them.
ROWS_A_LIST = 40
PROBES = 24

# The mean is taken with so many rows of zeros beside. Without, two copies of one picture, alone in
# their data set, would be opposites.
ZEROS = 8


def nearest(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the `k` nearest other rows of each row of embeddings `[n,d]`, the nearest first.

    The indices are int64 `[n,k]`, the cosine similarities of centred rows float32 `[n,k]` in
    [-1,1]; there are fewer columns where n <= k. Where fewer were found the index is -1 and the
    similarity -1. Equally near rows are in the order of their indices.

    Up to `EXACT_ROWS` rows the answer is exact. Beyond, candidates come from an inverted file over
    principal axes, which misses some, and their similarities are computed from the rows themselves.
    The same features give the same answer on one machine, whatever the number of threads: seeds are
    fixed, and no sum depends on how work is shared out. Another processor or version of the
    libraries may round otherwise, and so find other candidates.

    `features` may be a view or a memory map: they are read in blocks, and above `EXACT_ROWS`
    memory grows by 0.6 KiB a row.
    """
    n = len(features)
    k = min(k, n - 1)
    if k < 1:
        return np.empty((n, 0), np.int64), np.empty((n, 0), np.float32)
    indices = np.empty((n, k), np.int64)
    similarities = np.empty((n, k), np.float32)

    def fill(block: slice) -> None:
        found = search(rows.units(block), k + 1)
        indices[block], similarities[block] = _ranked(rows, block, found)

    # One BLAS and one OpenMP thread for each of ours, for the reasons given in `job.lbfgs`.
    with threadpool_limits(1), _pool() as pool:
        rows = _Rows(features)
        search = _inverted_file(rows) if n > EXACT_ROWS else _flat(rows)
        for _ in pool.map(fill, rows.blocks()):
            pass
    return indices, similarities


def _pool() -> ThreadPoolExecutor:
    """Give a thread for each core; OpenMP's number of threads is one of each thread that asks."""
    import faiss

    cores = len(os.sched_getaffinity(0))
    return ThreadPoolExecutor(cores, "nearest", faiss.omp_set_num_threads, (1,))


class _Rows:
    """Embeddings `[n,d]` as float32 of length 1 around their mean, made when they are asked for."""

    def __init__(self, features: np.ndarray) -> None:
        self._features = features
        total = np.zeros(features.shape[1])
        for block in self.blocks():
            total += features[block].sum(axis=0, dtype=np.float64)
        self._mean = (total / (len(features) + ZEROS)).astype(np.float32)

    def __len__(self) -> int:
        return len(self._features)

    def blocks(self) -> Iterator[slice]:
        """Give the rows as slices of `BLOCK`."""
        return (slice(i, i + BLOCK) for i in range(0, len(self), BLOCK))

    def units(self, which: slice | np.ndarray) -> np.ndarray:
        """Give some rows, float32 `[...,d]`; one that is the mean is all zeros."""
        centred = self._features[which].astype(np.float32) - self._mean
        length = np.linalg.norm(centred, axis=-1, keepdims=True)
        centred /= np.maximum(length, np.finfo(np.float32).tiny)
        return centred

    def spread(self, count: int) -> Iterator[np.ndarray]:
        """Give at least `count` rows from all over, or all of them, in blocks."""
        step = max(1, len(self) // count)
        for start in range(0, len(self), BLOCK * step):
            yield self.units(slice(start, start + BLOCK * step, step))


Search = Callable[[np.ndarray, int], np.ndarray]


def _flat(rows: _Rows) -> Search:
    """Give the function from units to the nearest rows' indices, by comparing with all."""
    import faiss

    units = rows.units(slice(None))
    index = faiss.IndexFlatIP(units.shape[1])
    index.add(units)
    return lambda queries, k: index.search(queries, k)[1]


def _inverted_file(rows: _Rows) -> Search:
    """Give the function from units to nearby rows' indices, by comparing with rows around them."""
    import faiss

    _, axes = np.linalg.eigh(sum(units.T @ units for units in rows.spread(SAMPLE)))
    axes = axes[:, -AXES:]
    lists = min(round(4 * len(rows) ** 0.5), len(rows) // ROWS_A_LIST)
    coarse = faiss.IndexFlatIP(axes.shape[1])
    index = faiss.IndexIVFFlat(coarse, axes.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = PROBES
    sample = [units @ axes for units in rows.spread(lists * ROWS_A_LIST)]
    index.train(np.concatenate(sample))
    for block in rows.blocks():
        index.add(rows.units(block) @ axes)
    return lambda queries, k: index.search(queries @ axes, k)[1]


def _ranked(rows: _Rows, block: slice, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give a block's neighbours found, int64 `[b,k+1]`, less the rows themselves and in order.

    Gives indices int64 `[b,k]` and similarities float32 `[b,k]`.
    """
    queries = rows.units(block)
    near = rows.units(found)
    similarity = np.clip(np.einsum("bd,bkd->bk", queries, near), -1, 1)
    similarity[found < 0] = -1
    themselves = np.arange(block.start, block.start + len(queries))[:, np.newaxis]
    similarity[found == themselves] = -np.inf
    order = np.lexsort((found, -similarity))[:, :-1]
    return np.take_along_axis(found, order, 1), np.take_along_axis(similarity, order, 1)
