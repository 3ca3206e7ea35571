"""A batch in pieces: what does not fit into memory at once, or what several cores share."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow as tf

from job.errors import ConfigError
from job.guard import beat
from job.progress import log
from job.replicas import Sums

# On a CPU a core works on so many images at once: more are no faster and take more memory. It is
# the same on every machine, because sums round otherwise in another order.
CPU_PIECE = 8


class MicroBatches:
    """Adds up over a batch, `size` examples at once; halved for good when memory runs out.

    On a CPU several pieces go on at once, one a core, since `progress.import_tensorflow` gives an
    operation one thread. They are added in pairs, and the pairs in pairs, whichever is done first:
    so the halves of a batch, each added up by itself, have the batch's own sum.
    """

    def __init__(self, batch_size: int, accumulate: int | None) -> None:
        """Cut batches of `batch_size` into `accumulate` pieces; None: 1 on a GPU, or of 8."""
        on_gpu = bool(tf.config.list_physical_devices("GPU"))
        pieces = accumulate or (1 if on_gpu else -(-batch_size // CPU_PIECE))
        self.size = -(-batch_size // pieces)
        self._workers = 1 if on_gpu else len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="step")

    def total(self, function: Sums, *batch: tf.Tensor) -> list[tf.Tensor]:
        """Give the sums of what `function` gives for the pieces of a batch, tensors `[n,...]`.

        Raises ConfigError when not even one example fits into the device's memory.
        """
        while True:
            try:
                return self._total(function, batch)
            except tf.errors.ResourceExhaustedError as error:
                self._shrink(error)

    def close(self) -> None:
        """Let go of the threads; what is under way is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _total(self, function: Sums, batch: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        starts = range(0, len(batch[0]), self.size)
        sums: list[tuple[int, Sequence[tf.Tensor]]] = []  # with how many pieces are in each
        for first in range(0, len(starts), self._workers):
            pieces = [
                [part[start : start + self.size] for part in batch]
                for start in starts[first : first + self._workers]
            ]
            many: Any = self._pool.map if len(pieces) > 1 else map
            for found in many(lambda piece: function(*piece), pieces):
                beat()
                sums.append((1, found))
                while len(sums) > 1 and sums[-1][0] == sums[-2][0]:
                    sums.append(_added(sums.pop(), sums.pop()))
        while len(sums) > 1:
            sums.append(_added(sums.pop(), sums.pop()))
        return list(sums[0][1])

    def _shrink(self, error: tf.errors.ResourceExhaustedError) -> None:
        if self.size == 1:
            raise ConfigError(
                "one image does not fit into the device's memory while its gradient is computed",
                hint="use a device with more memory, a smaller --backbone or --image-size, or "
                "--unfreeze fewer layers",
            ) from error
        half = self.size // 2
        message = f"out of memory with {self.size} images at once: going on with {half}"
        log(message, level=logging.WARNING, micro_batch=half)
        self.size = half


def _added(
    last: tuple[int, Sequence[tf.Tensor]], before: tuple[int, Sequence[tf.Tensor]]
) -> tuple[int, Sequence[tf.Tensor]]:
    return before[0] + last[0], [a + b for a, b in zip(before[1], last[1], strict=True)]
