"""What a run tells TensorBoard is in its event files; what cannot be written is only a warning."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from job.guard import Terminated
from job.storage import Store, download, open_store
from job.summaries import BUCKETS, MOST_BYTES, histogram, open_summaries, outline

RUN = "1795421320-ab12cd"
WEIGHTS = np.arange(MOST_BYTES, dtype=np.float32)


@pytest.fixture(params=["local", "gcs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty place of each kind."""
    if request.param == "gcs":
        return f"gs://{request.getfixturevalue('bucket')}/logs"
    (tmp_path / "logs").mkdir()
    return str(tmp_path / "logs")


def contents(uri: str) -> dict[str, bytes]:
    """Give every file of a place by its name."""
    store: Store = open_store(uri)
    return {e.name: store.read(e.name, e) for e in store.list() if not e.name.endswith("/")}


@pytest.fixture
def events(tmp_path: Path) -> Any:
    """A function that reads what a side of a run was told: TensorFlow's reader checks each CRC."""

    def read(uri: str, side: str, run: str = RUN) -> Iterator[Any]:
        store, folder = open_store(uri).child(run), tmp_path / "read"
        found = list(store.list(f"{side}/"))
        download(store, found, folder)
        paths = [str(folder / entry.name) for entry in found]
        assert paths
        for record in tf.data.TFRecordDataset(paths).as_numpy_iterator():
            yield tf.compat.v1.Event.FromString(record)

    return read


def points(found: Iterator[Any]) -> list[tuple[int, str, float]]:
    """Give the scalars among events as (step, tag, value)."""
    values = ((event.step, value) for event in found for value in event.summary.value)
    return [(s, v.tag, v.simple_value) for s, v in values if v.HasField("simple_value")]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Give the warnings about summaries that were logged."""
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    return [message for message in said if "summaries" in message]


def test_scalars_are_on_their_side(place: str, events: Any) -> None:
    """Each call is one point of each name at its step, infinities included; the sides are two."""
    with open_summaries(place, RUN) as summaries:
        for step in (0, 10):
            summaries.scalars("train", step, loss=2.5 - step, accuracy=0.25)
        summaries.scalars("validation", 10, loss=np.float64("inf"))
    assert points(events(place, "train")) == [
        (0, "loss", 2.5),
        (0, "accuracy", 0.25),
        (10, "loss", -7.5),
        (10, "accuracy", 0.25),
    ]
    assert points(events(place, "validation")) == [(10, "loss", np.inf)]
    assert all(name.startswith((f"{RUN}/train/", f"{RUN}/validation/")) for name in contents(place))


def test_a_side_that_is_none_is_refused(place: str) -> None:
    """A misspelt side does not make a folder of its own."""
    with (
        open_summaries(place, RUN) as summaries,
        pytest.raises(ValueError, match="expected train or validation"),
    ):
        summaries.scalars("test", 0, loss=1.0)
    assert contents(place) == {}


def test_histograms_are_of_the_weights(place: str, events: Any) -> None:
    """Each array is counted whole, whatever its shape."""
    kernel = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    with open_summaries(place, RUN) as summaries:
        summaries.histograms(7, kernel=kernel, bias=np.zeros(8, np.float32))
    (event,) = [event for event in events(place, "train") if event.summary.value]
    found = {value.tag: value.histo for value in event.summary.value}
    assert (event.step, list(found)) == (7, ["kernel", "bias"])
    assert (found["kernel"].num, found["bias"].num) == (128, 8)
    assert found["kernel"].min == kernel.min()
    assert found["kernel"].sum == pytest.approx(kernel.sum(dtype=np.float64))


@given(
    arrays.arrays(
        np.float32, arrays.array_shapes(min_side=0, max_dims=2), elements=st.floats(width=32)
    )
)
def test_a_histogram_counts_every_finite_value(array: np.ndarray) -> None:
    """Of any float32 values, huge, tiny, equal or not finite; the edges rise and hold them all."""
    finite = array[np.isfinite(array)]
    made = histogram(array)
    assert sum(made.bucket) == made.num == finite.size
    if finite.size:
        assert len(made.bucket) == len(made.bucket_limit) == BUCKETS
        assert (np.diff(made.bucket_limit) > 0).all()
        assert (made.min, made.max) == (finite.min(), finite.max())
        assert made.bucket_limit[-1] >= made.max
        below = (finite.astype(np.float64) < made.bucket_limit[0]).sum()
        assert made.bucket[0] == below


@tf.function(input_signature=[tf.TensorSpec([None, MOST_BYTES], tf.float32, "image")])
def weighed(image: tf.Tensor) -> tf.Tensor:
    """Multiply by weights that are a large constant."""
    return tf.identity(image * tf.constant(WEIGHTS, name="weights"), name="weighed")


def test_the_graph_has_its_nodes_and_no_weights(place: str, events: Any) -> None:
    """A function's nodes and edges are there; a large constant keeps its type and its shape."""
    with open_summaries(place, RUN) as summaries:
        summaries.graph(weighed.get_concrete_function())
    (event,) = [event for event in events(place, "train") if event.graph_def]
    assert len(event.graph_def) < MOST_BYTES
    nodes = {node.name: node for node in tf.compat.v1.GraphDef.FromString(event.graph_def).node}
    assert {"image", "weights", "mul", "weighed"} <= set(nodes)
    assert list(nodes["mul"].input) == ["image", "weights"]
    tensor = nodes["weights"].attr["value"].tensor
    assert (tensor.dtype, tensor.tensor_content) == (tf.float32.as_datatype_enum, b"")
    assert tf.TensorShape(tensor.tensor_shape) == [MOST_BYTES]


def test_a_graph_def_is_taken_as_it_is(place: str, events: Any) -> None:
    """What was made of nodes by hand is shown too, and is not changed itself."""
    outer = tf.function(lambda image: weighed(image)).get_concrete_function(
        tf.TensorSpec([1, MOST_BYTES], tf.float32)
    )
    graph_def = outer.graph.as_graph_def()
    before = graph_def.SerializeToString(deterministic=True)
    with open_summaries(place, RUN) as summaries:
        summaries.graph(graph_def)
    (event,) = [event for event in events(place, "train") if event.graph_def]
    shown = tf.compat.v1.GraphDef.FromString(event.graph_def)
    assert [node.name for node in shown.node] == [node.name for node in graph_def.node]
    assert WEIGHTS.tobytes() in before  # inside the function that it calls
    assert WEIGHTS.tobytes() not in event.graph_def
    assert graph_def.SerializeToString(deterministic=True) == before


def test_small_constants_keep_their_values() -> None:
    """An axis or a shape tells something on the Graphs page."""
    with tf.Graph().as_default() as graph:
        tf.constant([1, 2, 3], name="axes")
    assert outline(graph.as_graph_def()) == graph.as_graph_def()


@pytest.mark.parametrize("count", [2, 30])
def test_the_confusion_matrix_is_a_picture(place: str, events: Any, count: int) -> None:
    """It decodes as a PNG, and its size is the one that was written beside it."""
    labels = tuple(f"label {i}" for i in range(count))
    with open_summaries(place, RUN) as summaries:
        summaries.confusion("validation", 3, np.eye(count, dtype=np.int64) * 5, labels)
    (event,) = [event for event in events(place, "validation") if event.summary.value]
    (value,) = event.summary.value
    picture = Image.open(io.BytesIO(value.image.encoded_image_string))
    picture.load()
    assert (event.step, value.tag, picture.format) == (3, "confusion", "PNG")
    assert picture.size == (value.image.width, value.image.height)
    assert len(picture.getbands()) == value.image.colorspace
    assert picture.convert("RGB").getcolors(1 << 20) != [
        (picture.width * picture.height, (255,) * 3)
    ]


def test_what_is_there_stays(place: str, events: Any) -> None:
    """A resumed run adds files; those of before and those of strangers keep their bytes."""
    store = open_store(place)
    store.write(f"{RUN}/train/notes.txt", b"mine")
    store.write("other/train/events.out.tfevents.1.host", b"theirs")
    with open_summaries(place, RUN) as summaries:
        summaries.scalars("train", 0, loss=1.0)
    before = contents(place)
    with open_summaries(place, RUN) as summaries:
        summaries.scalars("train", 0, loss=2.0)
    after = contents(place)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    assert before[f"{RUN}/train/notes.txt"] == b"mine"
    store.delete(f"{RUN}/train/notes.txt")
    assert points(events(place, "train")) == [(0, "loss", 1.0), (0, "loss", 2.0)]


def test_a_flush_brings_what_there_is(place: str, events: Any) -> None:
    """Everything written so far can be read while the run goes on."""
    with open_summaries(place, RUN) as summaries:
        summaries.scalars("train", 0, loss=1.0)
        summaries.flush()
        assert points(events(place, "train")) == [(0, "loss", 1.0)]
        summaries.scalars("train", 1, loss=2.0)
    assert points(events(place, "train")) == [(0, "loss", 1.0), (1, "loss", 2.0)]


def test_only_what_grew_is_uploaded(bucket: str) -> None:
    """A file without news is not written again: its generation stays."""

    def generations() -> dict[str, int]:
        listed = open_store(f"gs://{bucket}/logs/{RUN}").list()
        return {entry.name.split("/")[0]: entry.generation for entry in listed}

    with open_summaries(f"gs://{bucket}/logs", RUN) as summaries:
        summaries.scalars("train", 0, loss=1.0)
        summaries.scalars("validation", 0, loss=1.0)
        summaries.flush()
        first = generations()
        summaries.scalars("train", 1, loss=1.0)
        summaries.flush()
        second = generations()
    assert first["validation"] == second["validation"]
    assert first["train"] != second["train"]
    assert generations() == second


def test_without_a_place_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call is taken, and there is no file anywhere."""
    monkeypatch.chdir(tmp_path)
    with open_summaries(None, RUN) as summaries:
        summaries.scalars("train", 0, loss=1.0)
        summaries.histograms(0, kernel=WEIGHTS)
        summaries.graph(weighed.get_concrete_function())
        summaries.confusion("validation", 0, np.eye(2, dtype=int), ("a", "b"))
        summaries.flush()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, Terminated])
def test_a_run_that_ends_early_leaves_what_it_told(
    place: str, events: Any, error: type[BaseException]
) -> None:
    """After an error or a signal everything is written, and the error goes on."""

    def run() -> None:
        with open_summaries(place, RUN) as summaries:
            summaries.scalars("train", 5, loss=1.0)
            raise error

    with pytest.raises(error):
        run()
    assert points(events(place, "train")) == [(5, "loss", 1.0)]


@pytest.mark.parametrize("uri", ["s3://bucket/logs", "gs://no-such-bucket/logs", "FILE/logs", ""])
def test_a_place_that_fails_is_one_warning(
    uri: str, tmp_path: Path, gcs_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No store, no bucket, no folder: the run goes on, and the log says so once."""
    (tmp_path / "file").touch()
    with open_summaries(uri.replace("FILE", str(tmp_path / "file")), RUN) as summaries:
        for step in range(3):
            summaries.scalars("train", step, loss=1.0)
            summaries.flush()
    assert len(warnings(caplog)) == 1
    assert (tmp_path / "file").read_bytes() == b""


def test_a_bucket_that_comes_back_gets_everything(
    gcs_server: str, events: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be uploaded is uploaded by a later flush."""
    bucket = f"later-{uuid.uuid4().hex}"
    with open_summaries(f"gs://{bucket}/logs", RUN) as summaries:
        summaries.scalars("train", 0, loss=1.0)
        summaries.flush()
        assert len(warnings(caplog)) == 1
        storage.Client("test", AnonymousCredentials()).create_bucket(bucket)
        summaries.scalars("train", 1, loss=2.0)
    assert points(events(f"gs://{bucket}/logs", "train")) == [(0, "loss", 1.0), (1, "loss", 2.0)]
    assert len(warnings(caplog)) == 1


# A job's process: its log is all that may be on stderr.
ALONE = """
import os, resource, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as job/cli.py does
from job.progress import import_tensorflow, set_up_logging
set_up_logging("json")
import_tensorflow()
import numpy as np
from job.summaries import open_summaries
with open_summaries(sys.argv[1], "run") as summaries:
    summaries.scalars("validation", 0, loss=1.0)
    summaries.confusion("validation", 0, np.eye(2, dtype=int), ("a", "b"))
    summaries.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))
    for step in range(300):
        summaries.histograms(step, kernel=np.arange(10.0))
    summaries.flush()
print("went on")
"""


def test_stderr_is_json_on_a_full_disk_too(tmp_path: Path) -> None:
    """TensorFlow adds no notes of its own; a disk that takes no more is one warning."""
    command = [sys.executable, "-c", ALONE, str(tmp_path / "logs")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (line,) = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (ended.returncode, ended.stdout) == (0, "went on\n")
    assert line["severity"] == "WARNING"
    assert "File too large" in line["message"]
