"""A model that gives an image any number of labels, from an import file to what is published."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from modules import write_pooling
from scenes import (
    LABELS,
    Ran,
    halves,
    read_listing_of,
    run_scenes,
    write_listing,
    write_scenes,
)
from test_release import serving

from job.checkup import data_before
from job.cli import main
from job.config import RunConfig
from job.dataset import Split
from job.errors import DataError, GateRejected
from job.images import loader
from job.progress import LOGGER
from job.publish import read_listing
from job.seal import canonical, describe_files, seal
from job.service import Answered, compare_with_service, read_in_service
from job.serving import compare_answers, wait_available
from job.storage import LocalStore
from job.tflite import FORMATS, TFLiteModel
from job.verify import Golden, find_problems

Captured = pytest.CaptureFixture[str]

# One with floating point and one without.
LITE = ("tflite-float16", "tflite-int8")

# Fresh pictures, and the labels that are in them.
PICTURES = {
    ("cyan", "yellow"): ["cyan", "yellow"],
    ("magenta", "magenta"): ["magenta"],
    ("black", "cyan"): ["cyan"],
    ("black", "black"): [],
}


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pooling module."""
    return write_pooling(tmp_path_factory.mktemp("module") / "pooling")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two halves and their import file; read only."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def ran(manifest: Path, module: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A published version, with everything that can be asked for; read only."""
    folder = tmp_path_factory.mktemp("ran")
    return run_scenes(
        manifest, folder / "m", module, folder, formats=",".join(LITE), views=1,
        flip_left_right=True, class_weights="balanced", summary_file=folder / "summary.md",
        junit_file=folder / "junit.xml", min_accuracy=0.9, summaries=str(folder / "summaries"),
    )  # fmt: skip


def contents() -> tuple[list[bytes], np.ndarray]:
    """Give the fresh pictures, and which of the labels are in each, bool [n,3]."""
    files = [halves(*sides, seed=7) for sides in PICTURES]
    return files, np.array([[label in found for label in LABELS] for found in PICTURES.values()])


def test_the_model_names_every_colour(ran: Ran) -> None:
    """On test images and on fresh pictures: both colours, one, or none."""
    metrics = ran.result.metrics
    assert metrics["test_subset_accuracy"] == 1.0
    assert metrics["test_mean_average_precision"] == metrics["test_macro_f1"] == 1.0
    assert metrics["test_recall"] == dict.fromkeys(LABELS, 1.0)
    assert metrics["gradient_norm"] < 1e-5
    files, expected = contents()
    served = tf.saved_model.load(str(ran.version)).signatures["serve_bytes"]
    answer = {k: v.numpy() for k, v in served(image_bytes=tf.constant(files)).items()}
    assert answer["selected"].dtype == bool
    assert answer["selected"].tolist() == expected.tolist()
    # Each is for itself: two labels are both sure, and none is.
    assert answer["prediction"][0].sum() > 1.5
    assert answer["prediction"][3].sum() < 0.9
    for row, names in enumerate(answer["classes"]):
        columns = [LABELS.index(name.decode()) for name in names]
        assert answer["scores"][row].tolist() == answer["prediction"][row, columns].tolist()
        assert (np.diff(answer["scores"][row]) <= 0).all()


def test_every_door_gives_the_same_scores(ran: Ran) -> None:
    """`serving_default`, the frozen graph and each TFLite file, as the head in memory does."""
    files, expected = contents()
    decode = loader(ran.trained.backbone.image_size)
    pixels = np.stack([decode(item) for item in files])
    features = ran.trained.backbone.embed(tf.constant(pixels)).numpy()
    scores = ran.trained.head.probabilities(features)
    assert ((scores >= ran.trained.thresholds) == expected).all()
    served = tf.saved_model.load(str(ran.version)).signatures["serving_default"]
    assert list(served.structured_outputs) == ["prediction"]
    assert served(image=pixels)["prediction"].numpy() == pytest.approx(scores, abs=1e-5)
    definition = tf.compat.v1.GraphDef.FromString((ran.version / "frozen_graph.pb").read_bytes())
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.import_graph_def(definition, name="")
        old = session.run("final_result:0", {"image:0": pixels})
    assert old == pytest.approx(scores, abs=1e-5)
    for form in (FORMATS[name] for name in LITE):
        lite = TFLiteModel((ran.version / form.file).read_bytes()).probabilities(pixels)
        assert lite == pytest.approx(scores, abs=0.05 if form.integers else 0.01)
    formats = ran.result.metrics["formats"]
    assert list(formats) == [FORMATS[name].file for name in LITE]
    for figures in formats.values():
        assert (figures["test_subset_accuracy"], figures["agreement"]) == (1.0, 1.0)


def test_thresholds_are_in_the_manifest_and_inside(ran: Ran) -> None:
    """The same float32 values in both, in the order of the labels, and strictly in between."""
    thresholds = ran.trained.thresholds
    assert thresholds is not None
    recorded = json.loads((ran.version / "manifest.json").read_text())
    assert np.float32(recorded["thresholds"]).tolist() == thresholds.tolist()
    inside = tf.saved_model.load(str(ran.version)).describe_labels()
    assert inside["thresholds"].numpy().tolist() == thresholds.tolist()
    assert ((thresholds > 0) & (thresholds < 1)).all()
    assert recorded["configuration"]["task"] == "multilabel"


def test_examples_have_all_their_labels(ran: Ran, manifest: Path) -> None:
    """The row of each image holds its labels as a JSON array, the empty one too."""
    expected = read_listing_of(manifest)
    with (ran.version / "examples.csv").open(newline="") as file:
        found = {row["name"]: json.loads(row["labels"]) for row in csv.DictReader(file)}
    assert found == expected
    assert [] in found.values()


def test_the_verifier_finds_another_selection(ran: Ran, tmp_path: Path) -> None:
    """A version is sound; one whose manifest has other thresholds, or none, is not."""
    assert find_problems(ran.version) == []
    copy = Path(shutil.copytree(ran.version, tmp_path / "copy"))
    record = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").unlink()
    for limits, what in (([0.0, 0.0, 0.0], "at least"), (None, "expected no thresholds")):
        changed = {k: v for k, v in record.items() if k not in ("seal", "thresholds")}
        changed |= {"files": describe_files(copy)} | ({"thresholds": limits} if limits else {})
        (copy / "manifest.json").write_text(canonical(seal(changed)))
        problems = find_problems(copy)
        (copy / "manifest.json").unlink()
        assert len(problems) == 2  # one image at a time, and all at once
        assert all("serve_bytes" in problem and what in problem for problem in problems)


def test_predict_names_what_is_selected(
    ran: Ran, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line an image with all its labels, or a table with a column of them."""
    monkeypatch.setattr(LOGGER, "handlers", [])  # the command's own write to what capsys closes
    paths = []
    for number, item in enumerate(contents()[0]):
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(item)
    capsys.readouterr()
    assert main(["predict", "--model", str(ran.version), *map(str, paths)]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [sorted(line["labels"]) for line in said] == list(PICTURES.values())
    assert all(len(line["scores"]) == 3 for line in said)
    flags = ["--log-format", "text", "--model", str(ran.version)]
    assert main(["predict", *flags, str(paths[1])]) == 0
    assert "selected" in capsys.readouterr().out


def test_evaluate_scores_all_labels_of_an_image(
    ran: Ran, manifest: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its test images again, negative ones too; a CSV; folders, which are one label each."""
    monkeypatch.setattr(LOGGER, "handlers", [])

    def evaluate(data: Path, *flags: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["evaluate", "--model", str(ran.version), "--data", str(data), *flags]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    figures = ran.facts.report.as_json("test")
    assert evaluate(manifest) == figures | {"model": str(ran.version), "skipped": []}
    wrong = relabelled(manifest, tmp_path / "wrong", lambda found: {"cyan", *found})
    rows = [",".join([name, *labels]) for name, labels in read_listing_of(wrong).items()]
    (wrong.parent / "import.csv").write_text("\n".join(rows))
    lacking = sum("cyan" not in labels for labels in read_listing_of(manifest).values())
    scores = evaluate(wrong.parent / "import.csv", "--split", "all")
    assert scores["all_subset_accuracy"] == 1 - lacking / 128
    for label in LABELS:
        (tmp_path / "folders" / label).mkdir(parents=True)
        (tmp_path / "folders" / label / "1.jpg").write_bytes(halves(label, label, seed=3))
    (tmp_path / "folders/cyan/2.jpg").write_bytes(halves("cyan", "magenta", seed=4))
    assert evaluate(tmp_path / "folders", "--split", "all")["all_subset_accuracy"] == 0.75


def test_the_report_is_of_labels(ran: Ran) -> None:
    """Thresholds and average precision for each; no confusion matrix, anywhere."""
    folder = ran.version / "report"
    assert {path.name for path in folder.iterdir()} == {
        "index.html", "metrics.json", "reliability.png",
    }  # fmt: skip
    found = json.loads((folder / "metrics.json").read_text())
    assert "confusion" not in found
    assert found["test"]["subset_accuracy"] == 1.0
    assert {"threshold", "average_precision", "f1"} < set(found["labels"][0])
    pairs = sum(item["count"] for item in found["calibration"]["after"]["bins"])
    assert pairs == 3 * found["test"]["n"]
    page = (folder / "index.html").read_text().partition("</head>")[2]
    for text in ("Subset accuracy", "Mean average precision", "threshold, %", "with the label, %"):
        assert text in page
    for text in ("onfusion", "softmax", "taken for"):
        assert text not in page
    summary = (ran.version.parents[2] / "summary.md").read_text()
    assert "Subset accuracy 100.0" in summary
    assert "| label | images | precision | recall | average precision | threshold | F1 |" in summary
    suite = ET.parse(ran.version.parents[2] / "junit.xml").getroot()[0]  # noqa: S314 - ours
    assert (suite.get("tests"), suite.get("failures")) == ("4", "0")


def relabelled(manifest: Path, folder: Path, change: Callable[[list[str]], set[str]]) -> Path:
    """Give the same pictures with another import file, each image's labels being changed."""
    shutil.copytree(manifest.parent, folder)
    rows = read_listing_of(manifest).items()
    changed = {name: sorted(change(labels)) for name, labels in rows}
    return write_listing(folder / manifest.name, changed)


def test_the_gate_compares_label_by_label(
    manifest: Path, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of wrong labels is in service and is beaten; one as wrong may not replace ours."""
    swapped = {"cyan": "magenta", "magenta": "cyan", "yellow": "yellow"}
    wrong = relabelled(manifest, tmp_path / "wrong", lambda found: {swapped[x] for x in found})
    models = tmp_path / "m"
    run_scenes(wrong, models, module, tmp_path / "1", gate_alpha=0)
    better = run_scenes(manifest, models, module, tmp_path / "2")
    compared = better.facts.comparison
    assert compared is not None
    labels = {label.label: (label.fixed, label.broken) for label in compared.per_label}
    assert labels["yellow"] == (0, 0)
    assert labels["cyan"][0] == labels["magenta"][0] > 10
    assert len(compared.fixed) == round((1 - compared.accuracy_before) * compared.n)
    # The same training images as the first one's, asked about the true labels.
    from job import lbfgs

    honest = lbfgs.fit

    def swap(train: Any, validation: Any, *others: Any, **options: Any) -> Any:
        order = [1, 0, 2]
        sides = ((features, targets[:, order]) for features, targets in (train, validation))
        return honest(*sides, *others, **options)

    monkeypatch.setattr(lbfgs, "fit", swap)
    with pytest.raises(GateRejected) as caught:
        run_scenes(manifest, models, module, tmp_path / "3", force=True)
    for part in ("subset accuracy", "'cyan' is recognised", "'magenta' is recognised"):
        assert part in caught.value.message
    assert "'yellow'" not in caught.value.message


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda manifest: manifest["configuration"].update(task="single"), "--task single"),
        (lambda manifest: manifest["configuration"].update(task="segments"), "segments"),
        (lambda manifest: manifest.update(thresholds=[0.5]), "for 3 labels"),
        (lambda manifest: manifest.pop("thresholds"), "'thresholds'"),
    ],
    ids=["another", "unknown", "short", "none"],
)
def test_a_version_that_cannot_be_asked_is_no_comparison(
    change: Any, what: str, ran: Ran, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of another task, or without a threshold for each label: the log says which."""
    shutil.copytree(ran.version.parent, tmp_path / "m/scenes")
    path = tmp_path / "m/scenes" / ran.version.name / "manifest.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    config = RunConfig(data=("d",), models=str(tmp_path / "m"), name="scenes", task="multilabel")
    embeddings, features = ran.trained.embeddings, ran.trained.test[0]
    examples = embeddings.index.examples[embeddings.index.rows(Split.TEST)]
    right = np.ones(ran.trained.test[1].shape, bool)
    tested = Answered(examples, ran.trained.backbone.digest, features, right)
    place = LocalStore(tmp_path / "m/scenes")
    served = read_in_service(place, read_listing(place))
    with caplog.at_level("WARNING", logger="regraft"):
        assert compare_with_service(config, place, place, served, LABELS, tested) is None
    assert what in caplog.text


def test_labels_that_a_version_does_not_know_it_does_not_select(ran: Ran) -> None:
    """Wrong where they are. A label that is gone is nothing to compare, nor is the order."""
    labels = ("new", "yellow", "cyan")  # magenta is gone
    old, tests = ran.trained.embeddings.index, ran.trained.test
    moved = {i: labels.index(label) for i, label in enumerate(old.labels) if label in labels}
    examples = tuple(
        replace(example, targets=tuple(sorted(moved[i] for i in example.targets if i in moved)))
        for example in old.examples[old.rows(Split.TEST)]
    )
    examples = (replace(examples[0], targets=(0, *examples[0].targets)), *examples[1:])
    place = LocalStore(ran.version.parent)
    served = read_in_service(place, read_listing(place))
    config = RunConfig(data=("d",), models=str(place.root.parent), name="scenes", task="multilabel")
    right = np.ones((len(examples), 3), bool)
    tested = Answered(examples, ran.trained.backbone.digest, tests[0], right)
    compared = compare_with_service(config, place, place, served, labels, tested)
    assert compared is not None
    assert [(c.fixed, c.broken) for c in compared.per_label] == [(1, 0), (0, 0), (0, 0)]
    assert compared.fixed == (examples[0].name,)


def test_a_label_of_every_image_ends_the_run(manifest: Path, module: Path, tmp_path: Path) -> None:
    """There is nothing to tell apart: it is refused before anything is fitted."""
    everywhere = relabelled(manifest, tmp_path / "data", lambda found: {"cyan", *found})
    with pytest.raises(DataError, match="every training image has 'cyan'"):
        run_scenes(everywhere, tmp_path / "m", module, tmp_path / "1")


def test_a_server_answers_as_the_model_did(ran: Ran, tmp_path: Path) -> None:
    """Over REST each picture has the scores of the head in memory."""
    decode = loader(ran.trained.backbone.image_size)
    goldens = []
    for sides, item in zip(PICTURES, contents()[0], strict=True):
        features = ran.trained.backbone.embed(decode(item)[None]).numpy()
        goldens.append(Golden("-".join(sides), item, ran.trained.head.probabilities(features)[0]))
    version = int(ran.version.name)
    with serving(ran.version.parent, tmp_path / "log") as url:
        wait_available(url, "squares", version, timeout=120)
        assert compare_answers(url, "squares", version, goldens, tolerance=1e-4) == []


def test_folders_are_images_with_one_label_each(
    colours: Path, module: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command, its verifier too, and the same again is unchanged."""
    monkeypatch.setattr(LOGGER, "handlers", [])
    results = []
    flags = ["--data", colours, "--models", tmp_path / "m", "--backbone", module]
    for _ in range(2):
        code = main(["run", "--name", "squares", "--task", "multilabel", *map(str, flags)])
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        assert code == 0
    assert [result["status"] for result in results] == ["published", "unchanged"]
    assert results[0]["metrics"]["test_subset_accuracy"] == 1.0
    assert main(["versions", "--models", str(tmp_path / "m"), "--name", "squares"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [version["accuracy"] for version in listed] == [1.0]


def test_inspect_looks_at_one_label_an_image(
    ran: Ran, manifest: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several are refused by name; a version whose images had several is no data before."""
    monkeypatch.setattr(LOGGER, "handlers", [])
    places = ["--data", str(manifest), "--output", str(tmp_path / "out"), "--cache", "off"]
    assert main(["inspect", *places]) == 3
    said = capsys.readouterr().err
    assert "cyan-magenta-0.jpg has the labels 'cyan', 'magenta', expected one label" in said
    assert "`inspect` looks at images with one label each" in said
    models, version = LocalStore(ran.version.parent), int(ran.version.name)
    assert data_before(models, version, None, ran.trained.embeddings) is None


def test_numpy_alone_reads_thresholds() -> None:
    """What decides labels needs no TensorFlow."""
    program = "import sys, job.labelling, job.targets; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
