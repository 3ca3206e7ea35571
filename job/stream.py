"""A stream of batches out of a store: fetching, decoding and what is done with them overlap."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from job.dataset import Example
from job.errors import UnavailableError
from job.images import UnreadableImage
from job.storage import Entry, Readable, crc32c

# Maps a file's bytes to pixels, float32 `[h,w,3]` in [0,1]; raises UnreadableImage.
Decode = Callable[[bytes], np.ndarray]

# Maps a file's bytes and its pixels to what else is kept of it.
Describe = Callable[[bytes, np.ndarray], np.ndarray]

LEAVE_ALONE = "run again; leave the images alone while a job runs"

# Bytes of a file above which it is left alone, by its listing: no photograph has as many.
LARGEST_FILE = 2**30

# Bytes that files may hold between being fetched and being decoded, all threads together.
IN_MEMORY = 2**28


@dataclass(frozen=True, slots=True)
class Skipped:
    """An example that could not be read, and why."""

    name: str
    reason: str


def require_all(skipped: Sequence[Skipped]) -> None:
    """Raise UnavailableError where images that could be read before cannot be read any more."""
    if skipped:
        raise UnavailableError(
            f"{skipped[0].name} cannot be read any more: {skipped[0].reason}", hint=LEAVE_ALONE
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """One fetched file, the `place`-th of those asked for.

    `example` is the one asked for; where its object was replaced since the listing, its entry is
    that of the object which was read. `digest` is the SHA-256 of its bytes in hexadecimal,
    `checksum` their CRC32C as `Entry` has it, both empty where the object was gone. `pixels` are
    float32 `[h,w,3]` in [0,1]; where there are none, `reason` says why, and is empty for a file
    that was not decoded because its content is held already. `read_at` is when reading it began, in
    epoch seconds. `traits` are what `describe` made of it.
    """

    place: int
    example: Example
    read_at: float
    digest: str = ""
    checksum: str = ""
    pixels: np.ndarray | None = None
    reason: str = ""
    traits: np.ndarray | None = None


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
    store: Readable,
    examples: Sequence[Example],
    decode: Decode,
    *,
    batch_size: int,
    threads: int,
    advance: Callable[[int], None] = lambda count: None,
    held: Callable[[str], bool] = lambda digest: False,
    describe: Describe | None = None,
) -> Iterator[Batch]:
    """Fetch and decode examples, in order; every batch but the last has `batch_size` readable ones.

    A file whose digest is `held` is not decoded. `advance` is told of every example. What is
    fetched ahead is bounded: a batch and a round of threads, and `IN_MEMORY` bytes not decoded yet
    (or one file). An object that was replaced since it was listed is read as it is now. Raises what
    the store raises; requests that are under way then are not waited for.
    """
    batch = Batch([], [])
    ahead = batch_size + threads
    load = _Loader(store, one_at_a_core(decode), held, describe)
    for loaded in _load_all(load, examples, threads, ahead):
        (batch.other if loaded.pixels is None else batch.readable).append(loaded)
        # Files without pixels may be many, and what is known of them is worth saving as well.
        if len(batch.readable) == batch_size or len(batch.other) == ahead:
            yield batch
            batch = Batch([], [])
        advance(1)
    if batch.readable or batch.other:
        yield batch


def _load_all(
    load: _Loader, examples: Sequence[Example], threads: int, ahead: int
) -> Iterator[Loaded]:
    """Fetch and decode in `threads`, in order, at most `ahead` files ahead."""
    pending: deque[Future[Loaded]] = deque()
    # No `with`: leaving that would wait for what is under way.
    pool = ThreadPoolExecutor(threads, thread_name_prefix="load")
    try:
        for place, example in enumerate(examples):
            pending.append(pool.submit(load, place, example))
            if len(pending) == ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def one_at_a_core(decode: Decode) -> Decode:
    """Let as many threads decode at once as there are cores; the others may wait for the network.

    More would only take turns, and on a busy node their switching costs half the throughput.
    """
    free = threading.Semaphore(len(os.sched_getaffinity(0)))

    def decode_in_turn(contents: bytes) -> np.ndarray:
        with free:
            return decode(contents)

    return decode_in_turn


class _Room:
    """So many bytes, shared by threads; what needs more than there are has all of it for itself."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._change = threading.Condition()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Take bytes while the block runs, once there is room for them."""
        with self._change:
            self._change.wait_for(lambda: not self._taken or self._taken + size <= self._size)
            self._taken += size
        try:
            yield
        finally:
            with self._change:
                self._taken -= size
                self._change.notify_all()


class _Loader:
    """Fetches and decodes one file, in any thread."""

    def __init__(
        self,
        store: Readable,
        decode: Decode,
        held: Callable[[str], bool],
        describe: Describe | None,
    ) -> None:
        self._store = store
        self._decode = decode
        self._held = held
        self._describe = describe
        self._room = _Room(IN_MEMORY)

    def __call__(self, place: int, example: Example) -> Loaded:
        loaded = self._load(place, example)
        if loaded is not None:
            return loaded
        entry = self._listed_now(example.name)
        if entry is None:
            return _without(place, example, "it is not there, or not any more")
        fresh = replace(example, entry=entry)
        return self._load(place, fresh) or _without(place, fresh, "replaced while it was read")

    def _load(self, place: int, example: Example) -> Loaded | None:
        """Fetch and decode one file; None where its object is not there any more."""
        now = time.time()
        entry = example.entry
        if entry.size > LARGEST_FILE:
            found = f"{entry.size} bytes, expected at most {LARGEST_FILE}"
            return Loaded(place, example, now, reason=found)
        with self._room.hold(entry.size):
            try:
                contents = self._store.read(entry.name, entry)
            except FileNotFoundError:
                return None
            digest = hashlib.sha256(contents).hexdigest()
            checksum = entry.crc32c or crc32c(contents)
            if self._held(digest):
                return Loaded(place, example, now, digest, checksum)
            try:
                pixels = self._decode(contents)
            except UnreadableImage as error:
                return Loaded(place, example, now, digest, checksum, None, str(error))
            traits = self._describe(contents, pixels) if self._describe else None
            return Loaded(place, example, now, digest, checksum, pixels, traits=traits)

    def _listed_now(self, name: str) -> Entry | None:
        # Of the names that begin like this one, it is the first itself.
        entry = next(iter(self._store.list(name)), None)
        return entry if entry is not None and entry.name == name else None


def _without(place: int, example: Example, reason: str) -> Loaded:
    return Loaded(place, example, time.time(), reason=reason)
