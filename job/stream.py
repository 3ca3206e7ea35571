"""A stream of batches out of a store: fetching, decoding and what is done with them overlap."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from job.dataset import Example
from job.images import UnreadableImage
from job.storage import Store, crc32c

# Maps a file's bytes to pixels, float32 `[h,w,3]` in [0,1]; raises UnreadableImage.
Decode = Callable[[bytes], np.ndarray]


@dataclass(frozen=True, slots=True)
class Skipped:
    """An example that could not be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """One fetched file, the `place`-th of those asked for.

    `digest` is the SHA-256 of its bytes in hexadecimal, `checksum` their CRC32C as `Entry` has it,
    both empty where the object was gone. `pixels` are float32 `[h,w,3]` in [0,1]; where there are
    none, `reason` says why, and is empty for a file that was not decoded because its content is
    held already. `read_at` is when reading it began, in epoch seconds.
    """

    place: int
    example: Example
    read_at: float
    digest: str = ""
    checksum: str = ""
    pixels: np.ndarray | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Files that were fetched together: those with pixels, and those without."""

    readable: list[Loaded]
    other: list[Loaded]

    def pixels(self) -> list[np.ndarray]:
        """Give the readable images, float32 `[h,w,3]` in [0,1]."""
        return [loaded.pixels for loaded in self.readable if loaded.pixels is not None]

    def skipped(self) -> list[Skipped]:
        """Give the unreadable ones with their reasons."""
        return [Skipped(item.example.name, item.reason) for item in self.other if item.reason]


def load_batches(
    store: Store,
    examples: Sequence[Example],
    decode: Decode,
    *,
    batch_size: int,
    threads: int,
    advance: Callable[[int], None] = lambda count: None,
    held: Callable[[str], bool] = lambda digest: False,
) -> Iterator[Batch]:
    """Fetch and decode examples, in order; every batch but the last has `batch_size` readable ones.

    A file whose digest is `held` is not decoded. `advance` is told of every example. What is
    fetched ahead is bounded: a batch and a round of threads. Raises what the store raises.
    """
    batch = Batch([], [])
    ahead = batch_size + threads
    for loaded in _load_all(store, examples, decode, held, threads, ahead):
        (batch.other if loaded.pixels is None else batch.readable).append(loaded)
        # Files without pixels may be many, and what is known of them is worth saving as well.
        if len(batch.readable) == batch_size or len(batch.other) == ahead:
            yield batch
            batch = Batch([], [])
        advance(1)
    if batch.readable or batch.other:
        yield batch


def _load_all(
    store: Store,
    examples: Sequence[Example],
    decode: Decode,
    held: Callable[[str], bool],
    threads: int,
    ahead: int,
) -> Iterator[Loaded]:
    """Fetch and decode in `threads`, in order, at most `ahead` files ahead."""
    decode = _one_at_a_core(decode)
    pending: deque[Future[Loaded]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="load") as pool:
        try:
            for place, example in enumerate(examples):
                pending.append(pool.submit(_load, store, place, example, decode, held))
                if len(pending) == ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _one_at_a_core(decode: Decode) -> Decode:
    """Let as many threads decode at once as there are cores; the others may wait for the network.

    More would only take turns, and on a busy node their switching costs half the throughput.
    """
    free = threading.Semaphore(len(os.sched_getaffinity(0)))

    def decode_in_turn(contents: bytes) -> np.ndarray:
        with free:
            return decode(contents)

    return decode_in_turn


def _load(
    store: Store, place: int, example: Example, decode: Decode, held: Callable[[str], bool]
) -> Loaded:
    now = time.time()
    try:
        contents = store.read(example.name, example.entry)
    except FileNotFoundError:
        return Loaded(place, example, now, reason="removed or replaced since it was listed")
    digest = hashlib.sha256(contents).hexdigest()
    checksum = example.entry.crc32c or crc32c(contents)
    if held(digest):
        return Loaded(place, example, now, digest, checksum)
    try:
        return Loaded(place, example, now, digest, checksum, decode(contents))
    except UnreadableImage as error:
        return Loaded(place, example, now, digest, checksum, None, str(error))
