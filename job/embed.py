"""Images to embeddings, in one stream: fetch, decode and forward pass overlap."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from job.backbone import Backbone
from job.dataset import Example, Index
from job.graphs import freeze
from job.images import UnreadableImage, loader
from job.storage import Store, crc32c


@dataclass(frozen=True, slots=True)
class Skipped:
    """An example that could not be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The embeddings of the readable examples of an index.

    `features` is float32 `[n,d]` and `digests` the SHA-256 of each file, hexadecimal; row i of both
    belongs to `index.examples[i]`. `checksums` has the CRC32C of every file that was read, by name,
    those that did not decode included.
    """

    index: Index
    features: np.ndarray
    digests: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    checksums: dict[str, str]


@dataclass(frozen=True, slots=True)
class Loaded:
    """One fetched file: its pixels, float32 `[h,w,3]` in [0,1], or why there are none."""

    example: Example
    digest: str
    checksum: str
    pixels: np.ndarray | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples that were fetched together, those that decoded apart from those that did not."""

    readable: list[Loaded]
    unreadable: list[Loaded]

    def pixels(self) -> list[np.ndarray]:
        """Give the readable images, float32 `[h,w,3]` in [0,1]."""
        return [loaded.pixels for loaded in self.readable if loaded.pixels is not None]

    def skipped(self) -> list[Skipped]:
        """Give the unreadable ones with their reasons."""
        return [Skipped(loaded.example.name, loaded.reason) for loaded in self.unreadable]


def embed(
    store: Store,
    index: Index,
    backbone: Backbone,
    *,
    batch_size: int,
    threads: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Embeddings:
    """Embed every example of `index`; `advance` is told how many more are done.

    An image that does not decode is left out and reported in `skipped`. The embedding of an image
    does not depend on which others are read with it: each forward pass has the same static shape.

    Raises what the store raises; FileNotFoundError becomes a skipped image.
    """
    forward = Forward(backbone, batch_size)
    features = np.empty((len(index.examples), backbone.feature_dim), np.float32)
    digests: list[str] = []
    skipped: list[Skipped] = []
    checksums: dict[str, str] = {}
    batches = load_batches(store, index.examples, backbone.image_size, batch_size, threads, advance)
    for batch in batches:
        for loaded in (*batch.readable, *batch.unreadable):
            if loaded.checksum:
                checksums[loaded.example.name] = loaded.checksum
        skipped += batch.skipped()
        if batch.readable:
            place = slice(len(digests), len(digests) + len(batch.readable))
            features[place] = forward(batch.pixels())
            digests += [loaded.digest for loaded in batch.readable]
    readable = index.without(item.name for item in skipped)
    features = features[: len(digests)]
    return Embeddings(readable, features, tuple(digests), tuple(skipped), checksums)


class Forward:
    """The backbone's frozen graph at one static batch shape."""

    def __init__(self, backbone: Backbone, batch_size: int) -> None:
        self._batch = np.zeros((batch_size, *backbone.image_size, 3), np.float32)
        spec = tf.TensorSpec(self._batch.shape, tf.float32)
        self._function = freeze(tf.function(backbone.embed).get_concrete_function(spec))

    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        """Give float32 `[n,d]` for n images, float32 `[h,w,3]`; n is at most the batch size."""
        np.stack(images, out=self._batch[: len(images)])
        (output,) = self._function(tf.constant(self._batch))
        embedded: np.ndarray = output.numpy()[: len(images)]
        return embedded


def load_batches(
    store: Store,
    examples: tuple[Example, ...],
    image_size: tuple[int, int],
    batch_size: int,
    threads: int,
    advance: Callable[[int], None],
) -> Iterator[Batch]:
    """Fetch and decode examples, in order; every batch but the last has `batch_size` readable ones.

    `advance` is told of every example, readable or not. Raises what the store raises.
    """
    batch = Batch([], [])
    for loaded in _load_all(store, examples, image_size, batch_size, threads):
        (batch.unreadable if loaded.pixels is None else batch.readable).append(loaded)
        if len(batch.readable) == batch_size:
            yield batch
            batch = Batch([], [])
        advance(1)
    if batch.readable or batch.unreadable:
        yield batch


def _load_all(
    store: Store,
    examples: tuple[Example, ...],
    image_size: tuple[int, int],
    batch_size: int,
    threads: int,
) -> Iterator[Loaded]:
    """Fetch and decode in `threads`, in order, at most a batch and a round of threads ahead."""
    decode = _one_at_a_core(loader(image_size))
    ahead = batch_size + threads
    pending: deque[Future[Loaded]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="load") as pool:
        try:
            for example in examples:
                pending.append(pool.submit(_load, store, example, decode))
                if len(pending) == ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _one_at_a_core(decode: Callable[[bytes], np.ndarray]) -> Callable[[bytes], np.ndarray]:
    """Let as many threads decode at once as there are cores; the others may wait for the network.

    More would only take turns, and on a busy node their switching costs half the throughput.
    """
    free = threading.Semaphore(len(os.sched_getaffinity(0)))

    def decode_in_turn(contents: bytes) -> np.ndarray:
        with free:
            return decode(contents)

    return decode_in_turn


def _load(store: Store, example: Example, decode: Callable[[bytes], np.ndarray]) -> Loaded:
    try:
        contents = store.read(example.name, example.entry)
    except FileNotFoundError:
        return Loaded(example, "", "", None, "removed or replaced since it was listed")
    digest = hashlib.sha256(contents).hexdigest()
    checksum = example.entry.crc32c or crc32c(contents)
    try:
        return Loaded(example, digest, checksum, decode(contents))
    except UnreadableImage as error:
        return Loaded(example, digest, checksum, None, str(error))
