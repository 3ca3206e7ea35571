"""Fine-tuning on more than one device: the GPUs of a node, and the workers that $TF_CONFIG names.

Each replica takes the gradient of its share of a step's images, and the sums over all of them move
the weights of each process in the same way. TensorFlow's strategies run the replicas and add up;
docs/adr/0014 says what is left to them and what is not.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from job.cluster import Cluster, find_cluster
from job.config import RunConfig
from job.errors import UnavailableError
from job.guard import GUARD, beat
from job.progress import log
from job.rendezvous import meet

Found = TypeVar("Found")

# Maps tensors to tensors that are sums over their first dimension.
Sums = Callable[..., Sequence[tf.Tensor]]

# Seconds between two looks at signals while another thread waits for the other workers.
TICK = 0.2

# Seconds that TensorFlow may take to connect workers who have just met.
CONNECT_TIMEOUT = 60

LOST = "the job goes on from its last checkpoint once all workers are started again"


@dataclass(frozen=True, slots=True)
class Replicas:
    """This process among those that train together: worker `index` of `count`; 0 is the chief.

    `strategy` is what the gradients are taken and added up with, None for one device alone; `add`
    adds a tensor up over all workers.
    """

    strategy: Any = None
    add: Callable[[tf.Tensor], tf.Tensor] | None = None
    index: int = 0
    count: int = 1

    @property
    def local(self) -> int:
        """Give the number of devices of this process that work at once."""
        return 1 if self.strategy is None else len(self.strategy.extended.worker_devices)

    @property
    def is_chief(self) -> bool:
        """Tell whether this one keeps the state and publishes; the others only help it to train."""
        return self.index == 0

    def cut(self, count: int, piece: int) -> slice:
        """Give where this worker's share of so many images of a step is, as even as can be.

        Where the pieces of so many images, in which one worker alone would add up, can be dealt
        out evenly, they are: then the sums round alike. A share is never empty, which not every
        operation can take; `total` leaves out what is too much.
        """
        pieces = -(-count // piece)
        if pieces % self.count == 0:
            size = pieces // self.count * piece
            return slice(self.index * size, (self.index + 1) * size)
        start, stop, _ = _bounds(count, self.index, self.count)
        return slice(start, stop)

    def spread(self, function: Sums) -> Sums:
        """Have a function do a part of its images on each device of this process.

        It maps two tensors `[n,...]`, and others that all parts are given, to sums over the n.
        """
        if self.local == 1:
            return function

        def whole(images: tf.Tensor, targets: tf.Tensor, *rest: tf.Tensor) -> list[tf.Tensor]:
            count = tf.shape(images)[0]

            def part() -> Sequence[tf.Tensor]:
                context = tf.distribute.get_replica_context()
                mine = context.replica_id_in_sync_group % self.local
                start, stop, counts = _bounds(count, mine, self.local, tf.maximum)
                sums = function(images[start:stop], targets[start:stop], *rest)
                return [tf.where(counts, part, 0.0) for part in sums]

            results = self.strategy.run(part)
            return [tf.add_n(self.strategy.experimental_local_results(sums)) for sums in results]

        return whole

    def total(self, sums: Sequence[tf.Tensor], count: int) -> list[tf.Tensor]:
        """Add up float32 tensors over all workers, each of which calls this with the same shapes.

        They are sums over the shares of `count` images. All get the same bytes. Raises
        UnavailableError when one is lost.
        """
        if self.count == 1:
            return list(sums)
        if not _bounds(count, self.index, self.count)[2]:
            sums = [tf.zeros_like(part) for part in sums]
        flat = tf.concat([tf.reshape(part, [-1]) for part in sums], axis=0)
        parts = tf.split(self._reduce(flat), [int(tf.size(part)) for part in sums])
        return [tf.reshape(part, whole.shape) for part, whole in zip(parts, sums, strict=True)]

    def from_chief(
        self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Give what the chief has: arrays of the same names, shapes and dtypes, and an object."""
        if self.count == 1:
            return dict(arrays), dict(meta)
        text = np.frombuffer(json.dumps(meta).encode(), np.uint8).astype(np.int32)
        size = int(self._chiefs(np.array([text.size], np.int32))[0])
        padded = np.zeros(size, np.int32)
        if self.is_chief:
            padded[:] = text
        told = json.loads(self._chiefs(padded).astype(np.uint8).tobytes())
        found: dict[str, np.ndarray] = {}
        for kind in sorted({array.dtype.str for array in arrays.values()}):
            some = {name: array for name, array in arrays.items() if array.dtype.str == kind}
            flat = self._chiefs(np.concatenate([array.ravel() for array in some.values()]))
            ends = np.cumsum([array.size for array in some.values()])[:-1]
            parts = zip(some.items(), np.split(flat, ends), strict=True)
            found |= {name: part.reshape(array.shape) for (name, array), part in parts}
        return found, told

    def require_same(self, digest: str) -> None:
        """See to it that all workers train on the same; `digest`, in hex, says on what.

        Raises UnavailableError when they do not.
        """
        if self.count == 1:
            return
        mine = np.frombuffer(bytes.fromhex(digest), np.uint8)
        rows = np.zeros((self.count, mine.size), np.int32)
        rows[self.index] = mine
        rows = self._reduce(tf.constant(rows)).numpy()
        if (rows != rows[0]).any():
            others = [str(i) for i in range(self.count) if (rows[i] != rows[0]).any()]
            raise UnavailableError(
                f"worker {', '.join(others)} found other images or options than worker 0",
                hint="give all workers the same options, and start them again when nothing is "
                "being written to --data",
            )

    def wait(self) -> None:
        """Wait until all workers have come to this point.

        Raises UnavailableError when one is lost.
        """
        if self.count > 1:
            self._reduce(tf.zeros([1]))

    def _chiefs(self, array: np.ndarray) -> np.ndarray:
        mine = array if self.is_chief else np.zeros_like(array)
        found: np.ndarray = self._reduce(tf.constant(mine)).numpy()
        return found

    def _reduce(self, value: tf.Tensor) -> tf.Tensor:
        add = self.add
        assert add is not None  # noqa: S101 - where there are several workers
        try:
            return heeding_signals(lambda: add(value))
        except tf.errors.OpError as error:
            first = str(error.message).strip().splitlines()[-1]
            raise UnavailableError(f"another worker was lost: {first}", hint=LOST) from error


SOLO = Replicas()


@contextlib.contextmanager
def join_workers(config: RunConfig) -> Iterator[Replicas]:
    """Bring the devices and processes together that train one model, before TensorFlow is used.

    Where the block ends well, it ends in all processes at once: Kubernetes never starts a worker
    again that has succeeded, and a chief that is preempted while it publishes needs them all. Once
    it has published it needs nobody.

    Raises UnavailableError when the others do not come within `--workers-timeout`, or are lost.
    """
    replicas = (
        _join(find_cluster(), config.workers_timeout) if config.solver == "finetune" else SOLO
    )
    yield replicas
    try:
        replicas.wait()
    except UnavailableError:
        if not replicas.is_chief:
            raise


def _join(cluster: Cluster | None, timeout: float) -> Replicas:
    if cluster is None:
        gpus = tf.config.list_physical_devices("GPU")
        return Replicas(tf.distribute.MirroredStrategy()) if len(gpus) > 1 else SOLO
    log(f"worker {cluster.index} of {cluster.count} waits for the others", workers=cluster.count)
    meet(cluster, timeout)
    with GUARD.deaf_for(CONNECT_TIMEOUT):
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    # As a graph: a call takes 3 ms instead of 10.
    add = tf.function(lambda value: strategy.reduce("SUM", value, axis=None), autograph=False)
    return Replicas(strategy, add, cluster.index, cluster.count)


def heeding_signals(function: Callable[[], Found]) -> Found:
    """Call a function in another thread, so that a signal ends the wait for it.

    TensorFlow waits for other workers in C, where no handler of Python's is run.
    """
    found: list[Found] = []
    failed: list[BaseException] = []

    def call() -> None:
        try:
            found.append(function())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=call, name="workers", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(TICK)
        beat()
    if failed:
        raise failed[0]
    return found[0]


def _bounds(count: Any, part: Any, parts: int, larger: Any = max) -> tuple[Any, Any, Any]:
    """Give where a part of `count` rows starts and stops, and whether it counts.

    One that would be empty has a row all the same, and does not count. For tensors `larger` is
    TensorFlow's.
    """
    start, stop = count * part // parts, count * (part + 1) // parts
    return start, larger(stop, start + 1), stop > start
