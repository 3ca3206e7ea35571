"""Training images in their order: which ones a step takes, decoded ahead of it in threads.

What a step sees depends on the seed and the number of the step alone, so that a run that goes on
from a checkpoint sees what one that was never stopped does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from job.errors import UnavailableError
from job.images import UnreadableImage
from job.stream import LEAVE_ALONE, Decode, one_at_a_core

# Batches that are decoded while a step goes on; more would only take memory.
AHEAD = 2


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a split: which images `rows` int64 `[n]` are, and their `classes` int64 `[n]`.

    `decode` is what `images.loader` gives, for the size of the backbone; for the training side, for
    the size that distortions are cut out of. No row is on both sides.
    """

    rows: np.ndarray
    classes: np.ndarray
    decode: Decode


@dataclass(frozen=True, slots=True)
class FinetuneData:
    """The images to train and to validate on, as files.

    `read` gives the bytes of the image of a row, and may be called from many threads.
    """

    read: Callable[[int], bytes]
    train: Side
    validation: Side


def draw(seed: int, epoch: int, classes: np.ndarray, *, balanced: bool) -> np.ndarray:
    """Give the places int64 `[n]` among n training images that an epoch takes, in its order.

    Each once in a random order; `balanced`: n times a label, uniformly, and then an image of it.
    """
    random = np.random.default_rng([seed, epoch])
    if not balanced:
        return random.permutation(len(classes))
    labels, counts = np.unique(classes, return_counts=True)
    starts = np.cumsum(counts) - counts
    label = random.integers(len(labels), size=len(classes))
    place = starts[label] + random.integers(counts[label])
    chosen: np.ndarray = np.argsort(classes, kind="stable")[place]
    return chosen


def split_evenly(places: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut an epoch into steps of at most `batch_size` whose sizes differ by one at most."""
    return np.array_split(places, -(-len(places) // batch_size))


class Feed:
    """Decoded images, uint8 `[n,h,w,3]`: the precision of the files, a quarter of float32's bytes.

    Up to `memory` bytes of them are kept; any others are read and decoded each time. What a batch
    has does not depend on that.
    """

    def __init__(self, data: FinetuneData, *, threads: int, memory: int) -> None:
        self._read = data.read
        self._threads = threads
        self._room = memory
        self._lock = threading.Lock()
        self._kept: dict[int, np.ndarray] = {}

    def batches(self, side: Side, batches: Iterator[np.ndarray]) -> Generator[np.ndarray]:
        """Give the images of batches of a side's rows, in order, `AHEAD` of them decoded ahead."""
        decode = one_at_a_core(side.decode)
        pending: deque[Sequence[Future[np.ndarray]]] = deque()
        # No `with`: leaving that would wait for what is under way.
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="feed")
        try:
            for rows in batches:
                pending.append([pool.submit(self._image, int(row), decode) for row in rows])
                if len(pending) > AHEAD:
                    yield _stack(pending.popleft())
            while pending:
                yield _stack(pending.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _image(self, row: int, decode: Decode) -> np.ndarray:
        kept = self._kept.get(row)
        if kept is not None:
            return kept
        try:
            pixels = decode(self._read(row))
        except (FileNotFoundError, UnreadableImage) as error:
            raise UnavailableError(
                f"an image cannot be read any more: {error}",
                hint=LEAVE_ALONE,
            ) from error
        image: np.ndarray = np.round(pixels * 255).astype(np.uint8)
        with self._lock:  # images of the two sides may differ in size
            if row not in self._kept and image.nbytes <= self._room:
                self._room -= image.nbytes
                self._kept[row] = image
        return image


def _stack(images: Sequence[Future[Any]]) -> np.ndarray:
    return np.stack([image.result() for image in images])
