"""What TensorBoard shows of a run: event files in a folder, or copied to a bucket.

    <uri>/<run>/train/events.out.tfevents.…            scalars, histograms, the graph
    <uri>/<run>/validation/events.out.tfevents.…       scalars and images

TensorBoard takes each of these folders for a run of its own and draws scalars of one name into one
chart. The files hold the messages of tensorflow/core/framework/summary.proto, made here:
`tf.summary.scalar` and its like are parts of the tensorboard package, which the job does without.

Summaries never fail a run: what cannot be written is lost, and the log has one warning.
"""

from __future__ import annotations

import contextlib
import io
import uuid
from collections.abc import Iterator
from itertools import chain
from logging import WARNING
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from job.errors import RegraftError, brief
from job.plots import plot_confusion
from job.progress import log
from job.storage import LocalStore, Store, open_store
from job.workdir import work_folder

SIDES = ("train", "validation")

# Buckets of a histogram, as many as tf.summary.histogram makes.
BUCKETS = 30

# Values that differ by less, relative to the largest, are drawn as one: float32 has only noise.
RESOLUTION = 1e-6

# Bytes above which a constant is left out of a graph. TensorBoard shows no more of them, and the
# weights of a backbone would be tens of megabytes in every event file.
MOST_BYTES = 1024

# Seconds that one request to a bucket is tried for: half of what a job that is stopped has left.
DEADLINE = 10.0

FAILURES = (tf.errors.OpError, RegraftError, OSError)

_Value = tf.compat.v1.Summary.Value


class Summaries:
    """Writes a run's summaries; made by `open_summaries`. To be used from one thread.

    `side` is "train" or "validation" everywhere, anything else is a ValueError. `step` is an
    integer that rises while the run goes on.
    """

    def __init__(self, uri: str, folder: Path | None, store: Store | None) -> None:
        """Write below `folder` (None: nowhere), and copy to `store` (None: no copies).

        `uri` is what a warning names.
        """
        self._uri = uri
        self._folder = folder
        self._store = store
        self._open = folder is not None
        self._writers: dict[str, Any] = {}
        self._sent: dict[str, int] = {}  # the size in bytes of each copy in the store
        self._warned = False

    def scalars(self, side: str, step: int, **values: float) -> None:
        """Write one point in the chart of each name; NaN and infinities are shown as such."""
        found = [_Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._write(side, step, found)

    def histograms(self, step: int, **arrays: np.ndarray) -> None:
        """Write how the values of each array, float32 of any shape, are distributed (side train).

        Values that are not finite are left out.
        """
        if self._open:
            found = [_Value(tag=name, histo=histogram(array)) for name, array in arrays.items()]
            self._write("train", step, found)

    def confusion(self, side: str, step: int, matrix: np.ndarray, labels: tuple[str, ...]) -> None:
        """Write a confusion matrix, int `[c,c]`, as the image that the report has of it."""
        if self._open:
            png = io.BytesIO()
            plot_confusion(png, matrix, labels)
            self._write(side, step, [_Value(tag="confusion", image=_image(png.getvalue()))])

    def graph(self, function: Any) -> None:
        """Write a concrete function or a GraphDef for the Graphs page (side train).

        Constants of more than MOST_BYTES are there without their values.
        """
        with self._surviving():
            if writer := self._writer("train"):
                is_graph = isinstance(function, tf.compat.v1.GraphDef)
                graph_def = function if is_graph else function.graph.as_graph_def(add_shapes=True)
                with writer.as_default():
                    tf.summary.graph(outline(graph_def))

    def flush(self) -> None:
        """Bring what was written so far to the folder, and to the bucket the files that grew.

        To a folder TensorFlow brings it every two minutes by itself, and after ten calls. A bucket
        takes whole objects, a request for each file: once a minute is often enough. One that is
        out is tried again at the next flush.
        """
        with self._surviving():
            for writer in self._writers.values():
                writer.flush()
        if self._store is not None and self._folder is not None:  # the disk may be full by now
            try:
                self._upload(self._folder, self._store)
            except FAILURES as error:
                self._warn(error)

    def close(self) -> None:
        """Flush for the last time; afterwards nothing is written any more."""
        self.flush()
        with self._surviving():
            for writer in self._writers.values():
                writer.close()
        self._stop()

    def _write(self, side: str, step: int, values: list[Any]) -> None:
        """Write values as one event: a fifth of the time that an event each takes."""
        with self._surviving():
            if writer := self._writer(side):
                summary = tf.compat.v1.Summary(value=values).SerializeToString()
                with writer.as_default():
                    tf.summary.experimental.write_raw_pb(summary, step=step)

    def _writer(self, side: str) -> Any:
        """Give the writer of a side, which is made on first use; None where nothing is written."""
        if side not in SIDES:
            raise ValueError(f"{side!r} is no side of a run, expected {' or '.join(SIDES)}")
        if self._open and self._folder is not None and side not in self._writers:
            # TensorFlow's own name has the second and the process: not enough to be a new one.
            suffix = f".{uuid.uuid4().hex[:12]}.v2"
            folder = str(self._folder / side)
            self._writers[side] = tf.summary.create_file_writer(folder, filename_suffix=suffix)
        return self._writers.get(side)

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Stop writing, for good, where the disk does not take it."""
        try:
            yield
        except FAILURES as error:
            self._warn(error)
            self._stop()

    def _stop(self) -> None:
        self._open = False
        self._writers.clear()

    def _upload(self, folder: Path, store: Store) -> None:
        for path in sorted(folder.glob("*/*")):
            name = path.relative_to(folder).as_posix()
            size = path.stat().st_size
            if size != self._sent.get(name):
                store.write(name, path)
                self._sent[name] = size

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            hint = getattr(error, "hint", "")
            message = f"the summaries {self._uri} are not complete: {brief(error)}"
            log(message, level=WARNING, **({"hint": hint} if hint else {}))


@contextlib.contextmanager
def open_summaries(uri: str | None, run: str) -> Iterator[Summaries]:
    """Give what writes the summaries of `run`, a name for a folder; None for `uri`: nothing.

    Nothing that is there is changed or removed. A run that is resumed under its name adds files to
    its folders, which TensorBoard reads in the order of their start. Steps that were done twice are
    in both: its default reader forgets the earlier ones, the one of `--load_fast=false` draws both,
    a line that goes back.

    Raises nothing for a place that cannot be written to or is none: the log has a warning then.
    """
    with contextlib.ExitStack() as stack:
        summaries = _opened(uri, run, stack)
        try:
            yield summaries
        finally:
            summaries.close()


def _opened(uri: str | None, run: str, stack: contextlib.ExitStack) -> Summaries:
    if uri is None:
        return Summaries("", None, None)
    try:
        store = open_store(uri, deadline=DEADLINE).child(run)
        if isinstance(store, LocalStore):
            return Summaries(store.uri, store.root, None)
        # TensorFlow's own gs:// knows neither emulators nor the job's retries.
        return Summaries(store.uri, stack.enter_context(work_folder(None)), store)
    except FAILURES as error:
        nothing = Summaries(uri, None, None)
        nothing._warn(error)
        return nothing


def histogram(array: np.ndarray) -> Any:
    """Give a HistogramProto of the finite values of a float32 array, BUCKETS equally wide.

    Without any it is empty.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold is left out as infinite
        values = np.asarray(array, np.float32).ravel()
    values = values[np.isfinite(values)].astype(np.float64)
    if not values.size:
        return tf.compat.v1.HistogramProto()
    low, high = values.min(), values.max()
    least = RESOLUTION * max(high, -low)
    margin = max(0.5, least) if high - low <= least else 0.0
    counts, edges = np.histogram(values, BUCKETS, (low - margin, high + margin))
    return tf.compat.v1.HistogramProto(
        min=low,
        max=high,
        num=values.size,
        sum=values.sum(),
        sum_squares=(values**2).sum(),
        bucket_limit=edges[1:],
        bucket=counts,
    )


def outline(graph_def: Any) -> Any:
    """Give a copy of a GraphDef in which large constants have a type and a shape and no value."""
    copy = tf.compat.v1.GraphDef()
    copy.CopyFrom(graph_def)
    functions = (function.node_def for function in copy.library.function)
    for node in chain(copy.node, *functions):
        if node.op == "Const" and node.attr["value"].tensor.ByteSize() > MOST_BYTES:
            tensor = node.attr["value"].tensor
            tensor.CopyFrom(type(tensor)(dtype=tensor.dtype, tensor_shape=tensor.tensor_shape))
    return copy


def _image(png: bytes) -> Any:
    """Give an Image message of an RGBA PNG: width and height are its bytes 16 to 23 (RFC 2083)."""
    width, height = (int.from_bytes(png[start : start + 4]) for start in (16, 20))
    return tf.compat.v1.Summary.Image(
        width=width, height=height, colorspace=4, encoded_image_string=png
    )
