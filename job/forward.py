"""The forward pass: a backbone's frozen graph at one static batch shape, on every core at once."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from job.backbone import Backbone
from job.errors import ConfigError
from job.memory import batches_at_once, memory_limit
from job.progress import log
from job.stream import Batch

# On a CPU 16 to 128 images a batch are equally fast (benchmarks/bench.py), so there the size is
# fixed: another one may round otherwise, and a run must give the same bytes wherever it is done.
CPU_BATCH = 32
LARGEST_BATCH = 1024
# A batch twice as big has to be so much faster, per image, to be worth its memory.
WORTHWHILE = 1.1


class Forward:
    """Embeds batches; `batch_size` is halved for good when the device runs out of memory.

    May be called from many threads. On a CPU that is how it uses all cores, a batch in each:
    `progress.import_tensorflow` gives an operation one thread, because threads that share an
    operation wait for each other at its end, and on a node with neighbours they mostly wait.
    """

    def __init__(self, backbone: Backbone, batch_size: int | None = None) -> None:
        """Compile for `batch_size` images; None: 32, on a GPU the size that pays most."""
        self._backbone = backbone
        self._lock = threading.Lock()
        on_gpu = bool(tf.config.list_physical_devices("GPU"))
        self._compile(batch_size or CPU_BATCH)
        cores, size = len(os.sched_getaffinity(0)), backbone.image_size
        room = batches_at_once(memory_limit(), cores, size, self.batch_size)
        self.workers = 1 if on_gpu else room
        if batch_size is None and on_gpu:
            self.grow()

    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        """Give float32 `[n,d]` for n images, float32 `[h,w,3]` in [0,1].

        Raises ConfigError when not even one image fits into the device's memory.
        """
        while True:
            size, function = self.batch_size, self._function
            starts = range(0, len(images), size)
            try:
                return np.concatenate([_run(function, images[i : i + size], size) for i in starts])
            except tf.errors.ResourceExhaustedError as error:
                with self._lock:
                    if size == self.batch_size:  # or else another thread has shrunk it
                        self._shrink(error)

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, np.ndarray | None]]:
        """Embed the readable images of batches, in order, a few batches at once.

        Gives each batch with float32 `[n,d]`, None where it has no readable image.
        """
        pending: deque[tuple[Batch, Future[np.ndarray] | None]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="forward")
        try:
            for batch in batches:
                future = pool.submit(self, batch.pixels()) if batch.readable else None
                pending.append((batch, future))
                if len(pending) > self.workers:
                    yield _done(*pending.popleft())
            while pending:
                yield _done(*pending.popleft())
        finally:
            # Of what is under way nothing is waited for: a large batch takes a minute.
            pool.shutdown(wait=False, cancel_futures=True)

    def grow(self) -> None:
        """Double the batch while that makes an image a good deal cheaper, and memory lasts."""
        rate = self._measure()
        while self.batch_size < LARGEST_BATCH:
            small = self.batch_size
            try:
                self._compile(small * 2)
                faster = self._measure()
            except tf.errors.ResourceExhaustedError:
                faster = 0.0
            if faster < WORTHWHILE * rate:
                return self._compile(small)
            rate = faster
        return None

    def _measure(self) -> float:
        """Give images per second, once the first pass has compiled what there is to compile."""
        images = [np.zeros((*self._backbone.image_size, 3), np.float32)] * self.batch_size
        _run(self._function, images, self.batch_size)
        start = time.perf_counter()
        for _ in range(3):
            _run(self._function, images, self.batch_size)
        return 3 * self.batch_size / (time.perf_counter() - start)

    def _compile(self, batch_size: int) -> None:
        spec = tf.TensorSpec((batch_size, *self._backbone.image_size, 3), tf.float32)
        embed = tf.function(self._backbone.embed, autograph=False)
        self._function = embed.get_concrete_function(spec)
        self.batch_size = batch_size

    def _shrink(self, error: tf.errors.ResourceExhaustedError) -> None:
        if self.batch_size == 1:
            raise ConfigError(
                f"one image of {self._backbone.image_size} does not fit into the device's memory",
                hint="use a device with more memory, a smaller --backbone or --image-size",
            ) from error
        half = self.batch_size // 2
        message = f"out of memory with {self.batch_size} images a batch: going on with {half}"
        log(message, level=logging.WARNING, batch_size=half)
        self._compile(half)


def _run(function: Any, images: list[np.ndarray], size: int) -> np.ndarray:
    """Embed at most `size` images; what a short batch lacks is black, and its rows are dropped."""
    batch = np.zeros((size, *images[0].shape), np.float32)
    np.stack(images, out=batch[: len(images)])
    embedded: np.ndarray = function(tf.constant(batch)).numpy()[: len(images)]
    return embedded


def _done(batch: Batch, future: Future[np.ndarray] | None) -> tuple[Batch, np.ndarray | None]:
    return batch, None if future is None else future.result()
