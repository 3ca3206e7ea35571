"""Vertex AI, SageMaker and Kubeflow: what they put around a job is all that the job needs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, jpeg, write_colours
from modules import write_pooling

from job.cli import main
from job.config import RunConfig
from job.errors import PublishError
from job.importfile import ML_USE
from job.platforms import FAILURE_LENGTH, failure_note, recognise, sagemaker, vertex_ai
from job.seal import canonical, describe_files, seal
from job.storage import open_store

Captured = pytest.CaptureFixture[str]
OPTIONS = {spec.name for spec in fields(RunConfig)}


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone."""
    return write_pooling(tmp_path_factory.mktemp("backbone") / "module")


def run(capsys: Captured, *arguments: object) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    """Run a command in this process; gives its exit code, its result and its log."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    log = [json.loads(line) for line in said.err.splitlines() if line.startswith("{")]
    return code, json.loads(said.out.splitlines()[-1]), log


def told(log: list[dict[str, Any]]) -> dict[str, str]:
    """Give the options that the log says a platform gave; it says so once."""
    (line,) = (line for line in log if "platform" in line and "options" in line)
    return dict(line["options"])


def labels_of(capsys: Captured, model: str, image: Path) -> str:
    """Ask a delivered model, as any reader of SavedModels gets it, for an image's label."""
    capsys.readouterr()
    assert main(["predict", "--model", model, str(image), "--log-format", "json"]) == 0
    return str(json.loads(capsys.readouterr().out.splitlines()[-1])["label"])


# --- Vertex AI ---------------------------------------------------------------------------------


def export_data_set(folder: Path, images: str) -> None:
    """Write JSON Lines as Vertex AI exports a managed data set: a few files for each side."""
    sides = {"training": 24, "validation": 8, "test": 8}
    start = 0
    for side, count in sides.items():
        for part, half in enumerate(
            (range(start, start + count // 2), range(start + count // 2, start + count))
        ):
            rows = [
                {
                    "imageGcsUri": f"{images}/{label}/{number:03}.jpg",
                    "classificationAnnotation": {
                        "displayName": label,
                        "annotationResourceLabels": {
                            "aiplatform.googleapis.com/annotation_set_name": "colours"
                        },
                    },
                    "dataItemResourceLabels": {ML_USE: side},
                }
                for label in ("cyan", "magenta", "yellow")
                for number in half
            ]
            text = "".join(f"{json.dumps(row)}\n" for row in rows)
            (folder / f"{side}-{part:05}-of-00002.jsonl").write_text(text)
        start += count


def test_vertex_ai_needs_the_backbone_alone(
    colours: Path, module: Path, bucket: str, upload: Callable[[Path, str], str], tmp_path: Path,
    capsys: Captured, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its variables say where images and sides come from; the model is where its upload looks."""
    images = upload(colours, "images")
    export_data_set(tmp_path, images)
    data = upload(tmp_path, "export")
    monkeypatch.setenv("AIP_DATA_FORMAT", "jsonl")
    for side in ("training", "validation", "test"):
        monkeypatch.setenv(f"AIP_{side.upper()}_DATA_URI", f"{data}/{side}-*")
    for name, folder in {
        "MODEL_DIR": "model", "CHECKPOINT_DIR": "checkpoints", "TENSORBOARD_LOG_DIR": "logs"
    }.items():  # fmt: skip
        monkeypatch.setenv(f"AIP_{name}", f"gs://{bucket}/base/{folder}/")
    code, result, log = run(capsys, "run", "--backbone", module)
    assert (code, result["status"]) == (0, "published")
    assert told(log).keys() == {"data", "models", "name", "deliver", "summaries"}
    assert result["uri"].startswith(f"gs://{bucket}/base/checkpoints/models/model/")
    sides = {side: result["images"][side] for side in ("train", "validation", "test")}
    assert sides == {"train": 72, "validation": 24, "test": 24}
    assert list(open_store(f"gs://{bucket}/base/logs").list())

    place = open_store(f"gs://{bucket}/base/model")
    written = {entry.name: entry.generation for entry in place.list()}
    published = {entry.name for entry in open_store(result["uri"]).list()}
    assert written.keys() == published
    assert max(written, key=lambda name: written[name]) == "saved_model.pb"
    image = colours / "magenta" / "000.jpg"
    assert labels_of(capsys, place.uri, image) == "magenta"

    # A try that goes on after a restart finds nothing to train; its model is delivered again.
    place.delete_tree("variables", first="saved_model.pb")
    place.delete("saved_model.pb")
    code, result, _ = run(capsys, "run", "--backbone", module)
    assert (code, result["status"]) == (0, "unchanged")
    assert {entry.name for entry in place.list()} == published


@pytest.mark.parametrize("given", ["csv", "bigquery"])
def test_what_vertex_ai_says_in_vain_is_told(
    given: str, colours: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set in another format is not read, and the log says so."""
    monkeypatch.setenv("AIP_DATA_FORMAT", given)
    monkeypatch.setenv("AIP_TRAINING_DATA_URI", "gs://nobody/training-*")
    places = ["--data", colours, "--models", tmp_path / "m", "--name", "x"]
    code, _, log = run(capsys, "plan", *places)
    assert code == 0
    assert told(log) == {}
    assert [line for line in log if f"AIP_DATA_FORMAT is {given}" in line["message"]]


def test_other_variables_make_no_platform() -> None:
    """A container that serves on Vertex AI has AIP_ variables too; folders come with training."""
    assert vertex_ai({"AIP_MODE": "PREDICTION", "AIP_HTTP_PORT": "8080"}) is None
    assert recognise({"HOME": "/", "SAGEMAKER_BASE_DIR": "/nowhere"}) is None
    assert failure_note({"type": "", "message": "", "hint": ""}, {}) == {}


# --- SageMaker ---------------------------------------------------------------------------------


class OptMl:
    """A folder as SageMaker mounts it at /opt/ml."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.channel = base / "input/data/training"
        (base / "input/config").mkdir(parents=True)
        for folder in (self.channel, base / "model", base / "output", base / "checkpoints"):
            folder.mkdir(parents=True)
        self.configure("resourceconfig", hosts=["algo-1"], current_host="algo-1")

    def configure(self, kind: str, **values: Any) -> None:
        """Write a file of input/config."""
        (self.base / f"input/config/{kind}.json").write_text(json.dumps(values))

    @property
    def failure(self) -> str:
        """What the job says went wrong."""
        return (self.base / "output/failure").read_text()


@pytest.fixture
def opt_ml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OptMl:
    """A training job's folder without images; the jobs of this process find it."""
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "opt/ml"))
    return OptMl(tmp_path / "opt/ml")


def served(base: Path) -> list[tuple[str, str]]:
    """Find (model, version) as SageMaker's TensorFlow Serving image does: all saved_model.pb."""
    found = sorted(base.glob("model/**/saved_model.pb"))
    return [(str(path.parent.parent.relative_to(base)), path.parent.name) for path in found]


def moved(base: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a new instance's /opt/ml: SageMaker brings it the input and the checkpoints."""
    for folder in ("input", "checkpoints"):
        shutil.copytree(base / folder, other / folder)
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(other))
    return other


def test_sagemaker_goes_on_after_an_interruption_and_finds_a_model(
    opt_ml: OptMl, module: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train` is stopped and goes on elsewhere; a third try finds it done and delivers it again."""
    shutil.rmtree(opt_ml.channel)
    write_colours(opt_ml.channel)
    opt_ml.configure(
        "hyperparameters", backbone=str(module), **{"test-percent": "20"},
        solver='"lbfgs"', sagemaker_region='"eu-west-1"', _tuning_objective_metric="accuracy",
    )  # fmt: skip
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    job = subprocess.Popen(
        [ROOT / "entrypoint.sh", "train"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert job.stderr is not None
    for line in job.stderr:
        if "embed: done" in line:
            break
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=120)
    assert (job.returncode, json.loads(out.splitlines()[-1])["status"]) == (143, "preempted")
    assert opt_ml.failure.startswith("Stopped: stopped by SIGTERM")
    assert served(opt_ml.base) == []

    second = moved(opt_ml.base, tmp_path / "second/opt/ml", monkeypatch)
    code, result, log = run(capsys, "run")
    assert (code, result["status"]) == (0, "published")
    assert result["cache"]["hits"] == 120
    assert result["images"]["test"] > 16
    version = str(result["version"])
    assert result["uri"] == f"{second}/checkpoints/models/model/{version}"
    taken = told(log)
    assert (taken["test_percent"], taken["solver"]) == ("20", "lbfgs")
    assert served(second) == [("model", version)]
    assert not (second / "output/failure").exists()
    image = opt_ml.channel / "yellow" / "000.jpg"
    assert labels_of(capsys, f"{second}/model/{version}", image) == "yellow"

    third = moved(second, tmp_path / "third/opt/ml", monkeypatch)
    code, result, _ = run(capsys, "run")
    assert (code, result["status"]) == (0, "unchanged")
    assert served(third) == [("model", version)]

    (third / f"checkpoints/models/model/{version}/frozen_graph.pb").write_bytes(b"damaged")
    code, result, _ = run(capsys, "run", "--deliver", tmp_path / "twice")
    assert code == 5
    assert "frozen_graph.pb" in (third / "output/failure").read_text()
    assert not (tmp_path / "twice/saved_model.pb").exists()


def test_flag_environment_and_file_beat_a_hyperparameter(
    opt_ml: OptMl, colours: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearer to the hand, the stronger: each is tried against those below it."""
    opt_ml.configure("hyperparameters", name="by_platform", data=str(colours))
    models = opt_ml.base / "checkpoints/models"

    def planned(*flags: object) -> tuple[set[str], dict[str, str]]:
        """Give the names under which a plan has looked for versions, and what the log says."""
        shutil.rmtree(models, ignore_errors=True)
        code, _, log = run(capsys, "plan", *flags)
        assert code == 0
        return {path.name for path in models.iterdir() if path.name[0] != "."}, told(log)

    names, taken = planned()
    assert names == {taken["name"]} == {"by_platform"}
    assert taken["stop_timeout"] == "100"
    file = tmp_path / "job.yaml"
    file.write_text("name: by_file\n")
    names, taken = planned("--config", file)
    assert names == {"by_file"}
    assert "name" not in taken
    assert taken["data"] == str(colours)
    monkeypatch.setenv("REGRAFT_NAME", "by_variable")
    assert planned("--config", file)[0] == {"by_variable"}
    names, taken = planned("--config", file, "--name", "by_flag")
    assert names == {"by_flag"}
    assert "name" not in taken


@pytest.mark.parametrize(
    ("kind", "values", "code", "words"),
    [
        ("hyperparameters", {"solvr": "sgd"}, 2, "no such option: solvr; did you mean solver"),
        ("hyperparameters", {"epochs": "many"}, 2, "--epochs"),
        ("hyperparameters", {"solver": "adam"}, 2, "--solver"),
        ("resourceconfig", {"hosts": ["algo-1", "algo-2"]}, 2, "names 2 hosts, expected one"),
        ("hyperparameters", {}, 3, "cyan"),
    ],
)
def test_a_failure_says_why_where_sagemaker_shows_it(
    kind: str, values: dict[str, Any], code: int, words: str, opt_ml: OptMl, capsys: Captured
) -> None:
    """Usage errors and bad data alike, with what to do about it."""
    for label in ("cyan", "magenta"):  # too little to be split
        (opt_ml.channel / label).mkdir()
        (opt_ml.channel / label / "0.jpg").write_bytes(jpeg((0, 255, 255), 0))
    opt_ml.configure(kind, **values)
    found, result, _ = run(capsys, "run")
    assert found == code
    assert words in opt_ml.failure
    assert result["error"]["hint"] in opt_ml.failure


def test_a_failure_is_as_long_as_sagemaker_shows(opt_ml: OptMl) -> None:
    """It is cut at 1,024 characters, and has no secret in it."""
    message = "https://user:hunter2@host/ is out " * 100
    (note,) = failure_note({"type": "X", "message": message, "hint": "wait"}).values()
    assert len(note) == FAILURE_LENGTH
    assert "hunter2" not in note


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [({}, "channels training and validation"), ({"data": '["gs://b/1", "gs://b/2"]'}, "")],
)
def test_a_channel_of_another_side_is_refused(
    hyperparameters: dict[str, str], message: str, opt_ml: OptMl, capsys: Captured
) -> None:
    """Its images would silently do nothing; where the data is named, channels say nothing."""
    (opt_ml.base / "input/data/validation").mkdir()
    opt_ml.configure("hyperparameters", **hyperparameters)
    if message:
        assert run(capsys, "plan")[0] == 2
        assert message in opt_ml.failure
    else:
        contract = sagemaker(os.environ)
        assert contract is not None
        assert contract.options["data"] == "gs://b/1\ngs://b/2"


def test_the_channel_train_will_do(opt_ml: OptMl) -> None:
    """Both of the names that are in use."""
    opt_ml.channel.rename(opt_ml.channel.with_name("train"))
    contract = sagemaker(os.environ)
    assert contract is not None
    assert contract.options["data"] == f"{opt_ml.base}/input/data/train"


def test_damaged_hyperparameters_are_told(opt_ml: OptMl, capsys: Captured) -> None:
    """What is no JSON object is a ConfigError that names the file."""
    (opt_ml.base / "input/config/hyperparameters.json").write_text("[1")
    assert run(capsys, "plan")[0] == 2
    assert "hyperparameters.json is no JSON object" in opt_ml.failure


# --- Delivery ----------------------------------------------------------------------------------


def test_half_a_delivery_is_no_model(tmp_path: Path) -> None:
    """What was delivered before stops being a model first: no reader gets a mixture of two."""
    from job.release import deliver

    version = tmp_path / "m/x/7"
    (version / "variables").mkdir(parents=True)
    for name in ("saved_model.pb", "labels.txt", "variables/variables.index"):
        (version / name).write_bytes(name.encode())
    sealed = seal({"files": describe_files(version)})
    (version / "manifest.json").write_text(canonical(sealed))
    config = RunConfig(
        data=("d",), models=str(tmp_path / "m"), name="x", deliver=f"{tmp_path}/to/{{version}}"
    )
    models, place = open_store(f"{tmp_path}/m/x"), tmp_path / "to/7"
    deliver(config, models, 7)
    assert (place / "saved_model.pb").read_bytes() == b"saved_model.pb"
    shutil.rmtree(place / "variables")
    (place / "variables").touch()  # where a folder has to be
    with pytest.raises(Exception, match="variables"):
        deliver(config, models, 7)
    assert not (place / "saved_model.pb").exists()
    (version / "labels.txt").write_bytes(b"other")
    with pytest.raises(PublishError, match=r"labels\.txt"):
        deliver(config, models, 7)


# --- Kubeflow, and what the documentation shows ------------------------------------------------


def test_the_kubeflow_component_runs(
    colours: Path, module: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arguments are the job's, and the result is at an output path whose folders are made."""
    component = yaml.safe_load((ROOT / "ci/kubeflow-component.yaml").read_text())
    container = component["implementation"]["container"]
    given = {"data": colours, "models": tmp_path / "models", "name": "squares"}
    values = {
        item["name"]: given.get(item["name"], item.get("default")) for item in component["inputs"]
    }
    output = tmp_path / "kfp/outputs/result"

    def filled(word: Any) -> object:
        if isinstance(word, str):
            return word
        ((kind, name),) = word.items()
        return {"inputValue": lambda: values[name], "outputPath": lambda: output}[kind]()

    assert container["command"] == ["/app/entrypoint.sh", "run"]
    monkeypatch.setenv("REGRAFT_BACKBONE", str(module))
    code, result, _ = run(capsys, "run", *map(filled, container["args"]))
    assert code == 0
    assert json.loads(output.read_text()) == result
    # What docs/platforms.md tells SageMaker to look for in it.
    assert re.search(r'"test_accuracy":([0-9.]+)', output.read_text())
    assert result["status"] == "published"


def test_the_requests_in_the_documentation_are_whole() -> None:
    """Each YAML and JSON block is that, and what it gives the job are options of the job."""
    text = (ROOT / "docs/platforms.md").read_text()
    blocks = [block.partition("\n") for block in text.split("```")[1::2]]
    kinds = Counter(kind for kind, _, _ in blocks)
    assert kinds["yaml"] >= 1
    assert kinds["json"] >= 1
    flags: set[str] = set()
    for kind, _, body in blocks:
        if kind == "yaml":
            (pool,) = yaml.safe_load(body)["workerPoolSpecs"]
            args = pool["containerSpec"]["args"]
            flags |= {word[2:].partition("=")[0] for word in args if word.startswith("--")}
        if kind == "json":
            flags |= set(json.loads(body)["HyperParameters"])
    assert flags
    assert {flag.replace("-", "_") for flag in flags} <= OPTIONS
