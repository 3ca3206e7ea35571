"""Whole runs by each solver, with what they leave for those who watch them."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from conftest import COLOURS
from modules import CONV_SIZE, write_conv, write_pooling_tf1
from PIL import Image
from test_pipeline import names_its_colours

from job.checkpoints import Checkpoints
from job.cli import main
from job.config import TFLITE
from job.guard import Terminated
from job.tflite import FORMATS

Captured = pytest.CaptureFixture[str]
DISTORTED = ("--flip-left-right", "--random-crop", 10, "--random-brightness", 5)


class Job:
    """Runs over the colours into one models folder."""

    def __init__(self, data: Path, models: Path, module: Path, capsys: Captured) -> None:
        self.models = models / "squares"
        self._options = ["--data", data, "--models", models, "--backbone", module]
        self._capsys = capsys

    def run(self, *flags: object) -> tuple[int, dict[str, Any]]:
        """Run it: the exit code and the result."""
        self._capsys.readouterr()
        options = map(str, [*self._options, *flags])
        code = main(["run", "--name", "squares", *options])
        return code, json.loads(self._capsys.readouterr().out.splitlines()[-1])

    def begin(self, models: Path) -> None:
        """Go on from a copy of another models folder."""
        shutil.copytree(models, self.models.parent)

    def weights(self, result: dict[str, Any]) -> str:
        """Give the SHA-256 of a version's weights and labels."""
        folder = self.models / str(result["version"])
        names = ("variables/variables.data-00000-of-00001", "labels.txt")
        return hashlib.sha256(b"".join((folder / n).read_bytes() for n in names)).hexdigest()


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional module in TF2 format, which can be trained."""
    return write_conv(tmp_path_factory.mktemp("module") / "tf2")


@pytest.fixture
def job(colours: Path, module: Path, tmp_path: Path, capsys: Captured) -> Job:
    """Runs into an empty models folder."""
    return Job(colours, tmp_path / "models", module, capsys)


SOLVERS: dict[str, tuple[object, ...]] = {
    "lbfgs": ("--class-weights", "balanced"),
    "sgd": ("--solver", "sgd", "--steps", 300, "--learning-rate", 0.5, "--schedule", "cosine"),
    "finetune": ("--solver", "finetune", "--epochs", 2, "--unfreeze", 1, "--flip-left-right"),
}


Trained = tuple[Path, dict[str, Any]]
Train = Callable[[str], Trained]


@pytest.fixture(scope="module")
def trained(colours: Path, module: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """A function that gives a models folder with a solver's version, read only, and its result."""

    @functools.cache
    def train(solver: str) -> Trained:
        folder = tmp_path_factory.mktemp(solver)
        places = ["--data", colours, "--models", folder / "models", "--backbone", module]
        flags = [*places, "--result-file", folder / "result.json", *SOLVERS[solver]]
        assert main(["run", "--name", "squares", *map(str, flags)]) == 0
        return folder / "models", json.loads((folder / "result.json").read_text())

    return train


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_solver_publishes_what_names_the_colours(
    solver: str, job: Job, trained: Train
) -> None:
    """The same inputs are then `unchanged`, another option of the solver is not."""
    models, result = trained(solver)
    job.begin(models)
    assert result["status"] == "published"
    assert result["metrics"]["test_accuracy"] == 1.0
    version = job.models / str(result["version"])
    names_its_colours(version)
    manifest = json.loads((version / "manifest.json").read_text())
    of_inputs = manifest["inputs"]["backbone"]["digest"]
    assert (manifest["features"] == of_inputs) == (solver != "finetune")
    assert job.run(*SOLVERS[solver])[1]["status"] == "unchanged"
    other = job.run(*SOLVERS[solver], "--l2", 0.3)[1]
    assert other["status"] == "published"
    assert job.weights(other) != job.weights(result)


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_a_run_that_is_stopped_in_fit_goes_on_to_the_same_bytes(
    solver: str,
    job: Job,
    trained: Train,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGTERM saves what was reached; the next run begins there and leaves nothing behind."""
    models, whole = trained(solver)
    job.begin(models)
    reached, loaded = Checkpoints.reached, Checkpoints.load
    calls: list[str] = []

    def stop(self: Checkpoints, stage: str, state: Any) -> None:
        reached(self, stage, state)
        calls.append(stage)
        if len(calls) == 3:
            raise Terminated

    def load(self: Checkpoints, stage: str) -> Any:
        found = loaded(self, stage)
        calls.append("nothing" if found is None else f"found {stage}")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "reached", stop)
        code, stopped = job.run(*SOLVERS[solver], "--force")
    assert (code, stopped["status"]) == (143, "preempted")
    assert list((job.models / ".checkpoints").glob("*/*"))
    monkeypatch.setattr(Checkpoints, "load", load)
    code, again = job.run(*SOLVERS[solver], "--force")
    assert code == 0
    assert f"found {solver}" in calls
    assert job.weights(again) == job.weights(whole)
    assert not list((job.models / ".checkpoints").glob("*/*"))


def test_fine_tuning_goes_on_where_it_was_stopped(
    job: Job, trained: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the third of its steps, to the same bytes of the head and of the backbone."""
    models, whole = trained("finetune")
    job.begin(models)
    flags = (*SOLVERS["finetune"], "--checkpoint-interval", 0)
    saved, steps = Checkpoints.save, []

    def stop(self: Checkpoints, stage: str, state: Any) -> None:
        saved(self, stage, state)
        steps.append(stage)
        if steps.count("finetune") == 3:
            raise Terminated

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        assert job.run(*flags, "--force")[0] == 143
    assert len(list((job.models / ".checkpoints").glob("*/*/finetune"))) == 1
    steps.clear()
    monkeypatch.setattr(Checkpoints, "save", lambda self, stage, state: steps.append(stage))
    code, again = job.run(*flags, "--force")
    assert code == 0
    images = whole["images"]["train"]
    assert steps.count("finetune") == 2 * -(-images // 32) - 3
    assert job.weights(again) == job.weights(whole)
    graphs = [job.models / str(r["version"]) / "frozen_graph.pb" for r in (whole, again)]
    assert graphs[0].read_bytes() == graphs[1].read_bytes()


def test_a_tuned_version_is_compared_by_its_own_backbone(job: Job, trained: Train) -> None:
    """A later head on the untuned backbone is held against what the version really answers."""
    job.begin(trained("finetune")[0])
    code, result = job.run("--force")
    assert (code, result["status"]) == (0, "published")
    report = job.models / str(result["version"]) / "report/metrics.json"
    comparison = json.loads(report.read_text())["comparison"]
    assert (comparison["accuracy_before"], comparison["accuracy_after"]) == (1.0, 1.0)


def test_a_module_that_cannot_be_trained_is_refused(job: Job, tmp_path: Path) -> None:
    """TF1 Hub's format has no gradients: exit code 2, before any image is embedded."""
    module = write_pooling_tf1(tmp_path / "tf1")
    code, result = job.run("--solver", "finetune", "--backbone", module)
    assert code == 2
    assert "cannot be trained" in result["error"]["message"]
    assert "lbfgs" in result["error"]["hint"]
    assert "embed" not in result["seconds"]


def test_views_are_embedded_once(job: Job) -> None:
    """A second run takes them from the cache; another distortion is another data set."""
    code, first = job.run(*DISTORTED, "--views", 2)
    assert (code, first["metrics"]["test_accuracy"]) == (0, 1.0)
    training = first["images"]["train"]
    assert first["cache"] == {"hits": 0, "misses": 120, "saved": 120 + 2 * training}
    code, again = job.run(*DISTORTED, "--views", 2, "--force")
    assert again["cache"] == {"hits": 120, "misses": 0, "saved": 0}
    assert job.weights(again) == job.weights(first)
    assert job.run(*DISTORTED, "--views", 2)[1]["status"] == "unchanged"
    code, more = job.run(*DISTORTED, "--views", 3)
    assert (more["status"], more["cache"]["saved"]) == ("published", training)
    assert job.weights(more) != job.weights(first)


def test_tflite_models_are_published_with_their_scores(job: Job) -> None:
    """Each names the colours to LiteRT's own interpreter, and the report says how good it is."""
    code, result = job.run("--formats", ",".join(TFLITE))
    assert code == 0
    assert set(result["metrics"]["formats"]) == {form.file for form in FORMATS.values()}
    folder = job.models / str(result["version"])
    manifest = json.loads((folder / "manifest.json").read_text())
    labels = (folder / "labels.txt").read_text().splitlines()
    page = (folder / "report/index.html").read_text("utf-8")
    for form in FORMATS.values():
        figures = result["metrics"]["formats"][form.file]
        assert figures["test_accuracy"] == 1.0
        assert figures["bytes"] == (folder / form.file).stat().st_size
        assert form.file in manifest["files"]
        assert form.file in page
        runner = Interpreter(str(folder / form.file)).get_signature_runner("serving_default")
        for label, colour in COLOURS.items():
            pixels = np.full((1, CONV_SIZE, CONV_SIZE, 3), colour, np.uint8)
            image = pixels if form.integers else np.float32(pixels) / 255
            assert labels[runner(image=image)["prediction"].argmax()] == label
    assert job.run("--formats", "tflite-int8, saved_model")[1]["status"] == "published"


def test_the_formats_that_options_know_are_those_that_there_are() -> None:
    """The names are written twice, since options are read without TensorFlow."""
    assert tuple(FORMATS) == TFLITE


def test_a_run_leaves_summaries_and_graphs_on_the_way(job: Job, tmp_path: Path) -> None:
    """Scores of both sides, weights, the graph and the confusion matrix; a graph every 100 steps.

    What lies in the folder already stays.
    """
    place = tmp_path / "summaries"
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    flags = (*SOLVERS["sgd"], "--summaries", place, "--intermediate-interval", 100)
    assert job.run(*flags)[0] == 0
    assert (place / "notes.txt").read_text() == "mine"
    (run,) = (path for path in place.iterdir() if path.is_dir())
    tags: dict[str, set[str]] = {}
    for side in ("train", "validation"):
        (file,) = (run / side).iterdir()
        events = [
            tf.compat.v1.Event.FromString(record.numpy())
            for record in tf.data.TFRecordDataset(str(file))
        ]
        tags[side] = {value.tag for event in events for value in event.summary.value}
        if side == "train":
            assert any(event.graph_def for event in events)
            steps = [e.step for e in events for v in e.summary.value if v.tag == "loss"]
            assert steps == list(range(10, 301, 10))
        else:
            (picture,) = (v.image for e in events for v in e.summary.value if v.HasField("image"))
            assert Image.open(io.BytesIO(picture.encoded_image_string)).width > 100
    assert tags["train"] == {"loss", "accuracy", "learning_rate", "kernel", "bias"}
    assert tags["validation"] == {"loss", "accuracy", "final_accuracy", "confusion"}
    graphs = sorted(job.models.glob(".intermediate/*/*.pb"), key=lambda path: int(path.stem))
    assert [path.stem for path in graphs] == ["100", "200", "300"]
    definition = tf.compat.v1.GraphDef.FromString(graphs[0].read_bytes())
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.import_graph_def(definition, name="")
        pixels = np.full((1, CONV_SIZE, CONV_SIZE, 3), (0, 1, 1), np.float32)
        assert session.run("final_result:0", {"image:0": pixels}).argmax() == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps", 100), "--steps means nothing to --solver lbfgs"),
        (("--views", 2), "--views 2 without a distortion would be 2 copies"),
        (("--flip-left-right",), "--flip-left-right with --views 0 would distort nothing"),
        (("--formats", "tflite-int9"), "did you mean tflite-int8?"),
        (("--summaries", "s3://bucket"), "no store for s3://"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    flags: tuple[object, ...], message: str, job: Job
) -> None:
    """With exit code 2 and what to do instead, before anything is embedded."""
    code, result = job.run(*flags)
    assert code == 2
    assert message in result["error"]["message"]
    assert result["error"]["hint"]


def test_summaries_inside_the_data_are_refused(job: Job, colours: Path) -> None:
    """Their images would become training images."""
    code, result = job.run("--summaries", colours / "logs")
    assert (code, "lies inside --data" in result["error"]["message"]) == (2, True)


def test_fine_tuning_leaves_graphs_of_the_backbone_as_it_is(job: Job, tmp_path: Path) -> None:
    """The graph of the last step names the colours, and each step's is another one."""
    flags = ("--summaries", tmp_path / "s", "--intermediate-interval", 2, "--patience", "never")
    code, result = job.run(*SOLVERS["finetune"], *flags)
    assert code == 0
    graphs = sorted(job.models.glob(".intermediate/*/*.pb"), key=lambda path: int(path.stem))
    steps = 2 * -(-result["images"]["train"] // 32)
    assert [path.stem for path in graphs] == [str(step) for step in range(2, steps + 1, 2)]
    assert len({path.read_bytes() for path in graphs}) == len(graphs)
    definition = tf.compat.v1.GraphDef.FromString(graphs[-1].read_bytes())
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.import_graph_def(definition, name="")
        pixels = np.full((1, CONV_SIZE, CONV_SIZE, 3), (0, 1, 1), np.float32)
        assert session.run("final_result:0", {"image:0": pixels}).argmax() == 0
