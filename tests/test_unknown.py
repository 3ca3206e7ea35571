"""What a model has never seen is unknown, at the rate that was asked for, whoever asks."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving_standin
import tensorflow as tf
from conftest import COLOURS, jpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from modules import write_pooling
from rich.console import Console
from sklearn.metrics import roc_auc_score
from standin_versions import Folder, Manager
from test_report import make_facts

from job.backbone import load_backbone
from job.calibrate import fit_temperature
from job.cli import main
from job.config import RunConfig
from job.dataset import Split
from job.errors import ConfigError, DataError
from job.export import Classifier, export
from job.fit import Pair
from job.head import Head
from job.lbfgs import PREPARED_ELEMENTS, fit
from job.predict import load_model, predict
from job.report import markdown, metrics, write_report
from job.seal import canonical, describe_files, read_manifest, seal
from job.serving import compare_answers, wait_available
from job.summary import prediction_table
from job.unknown import (
    MOST_GROUPS,
    Threshold,
    auroc,
    check_rate,
    choose,
    choose_threshold,
    measure,
    reject,
    threshold_at,
)
from job.verify import Golden, find_problems, write_warmup

RED = (255, 0, 0)
NEW = (RED, (0, 255, 0), (0, 0, 255), (128, 128, 128))

best_scores = st.lists(st.floats(0.25, 1, width=32), min_size=10, max_size=60).map(
    lambda values: np.array(values, np.float32)
)
rates = st.floats(0.1, 0.9)


def blobs(labels: int, each: int, seed: int) -> Pair:
    """Draw points around a centre for each label: float32 `[n,8]` and classes int `[n]`."""
    centres = np.random.default_rng(1).normal(size=(labels, 8))
    classes = np.arange(labels * each) % labels
    noise = np.random.default_rng(seed).normal(size=(len(classes), 8))
    return (1.5 * centres[classes] + noise).astype(np.float32), classes


@given(best_scores, rates)
def test_no_more_than_the_rate_passes_and_no_less_than_it_could(
    scores: np.ndarray, rate: float
) -> None:
    """The share that passes is at most the rate; one float lower, and too many would pass."""
    value = np.float32(threshold_at(scores, rate))
    assert (scores >= value).mean() <= rate
    lower = np.nextafter(value, np.float32(0))
    assert (scores >= lower).sum() > rate * len(scores) - 1e-9


@given(best_scores, rates, rates)
def test_a_higher_rate_never_has_a_higher_threshold(
    scores: np.ndarray, one: float, other: float
) -> None:
    """Who lets more unknown images pass rejects no more of the known ones."""
    low, high = sorted([one, other])
    assert threshold_at(scores, high) <= threshold_at(scores, low)


def test_shares_that_are_whole_numbers_of_images_are_used_in_full() -> None:
    """0.29 * 100 is 28.999999999999996, and 29 of 100 images are 29 %."""
    scores = np.linspace(0.3, 0.9, 100, dtype=np.float32)
    assert measure(scores, scores, threshold_at(scores, 0.29)).false_accept_rate == 0.29


@given(best_scores, best_scores)
def test_the_auroc_is_scikit_learns(of_unknown: np.ndarray, of_known: np.ndarray) -> None:
    """Ties count half, as by the trapezoids of the curve."""
    truth = np.repeat([0, 1], [len(of_unknown), len(of_known)])
    expected = roc_auc_score(truth, np.concatenate([of_unknown, of_known]))
    assert auroc(of_unknown, of_known) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(4, 7), st.floats(0.25, 0.6), st.integers(0, 1000))
def test_a_choice_keeps_the_rate_and_can_be_repeated(labels: int, rate: float, seed: int) -> None:
    """On real fits: at most the rate, inside its interval, the same figures a second time."""
    train, validation = blobs(labels, 30, seed), blobs(labels, 10, seed + 1)
    head = fit(train, validation, labels, l2=0.1).head
    warmth = fit_temperature(head.logits(validation[0]), validation[1])
    options: Any = {"rate": rate, "l2": 0.1, "balanced": False, "temperature": warmth}
    found = choose_threshold(train, validation, labels, head, **options)
    assert found.false_accept_rate <= rate
    low, high = found.false_accept_ci95
    assert low <= found.false_accept_rate <= high
    assert (found.n_unknown, found.n_known) == (10 * labels, 10 * labels)
    best = head.tempered(warmth).probabilities(validation[0]).max(axis=1)
    assert found.false_reject_rate == (best < np.float32(found.value)).mean()
    assert np.float32(found.value) == found.value
    assert choose_threshold(train, validation, labels, head, **options) == found


@pytest.mark.parametrize("labels", [3, MOST_GROUPS, 2 * MOST_GROUPS + 3])
def test_every_label_is_left_out_once_and_never_seen(labels: int) -> None:
    """A head is given nothing of what it is asked about; many labels go in groups."""
    train, validation = blobs(labels, 6, 0), blobs(labels, 3, 1)
    seen: list[set[int]] = []

    def refit(some: Pair, side: Pair, count: int) -> Head:
        for features, classes in (some, side):
            assert set(classes) == set(range(count))
            whole = train if features is some[0] else validation
            rows = [np.flatnonzero((whole[0] == row).all(axis=1)).item() for row in features]
            original = whole[1][rows]
            # Indices are new, their order is the old one.
            assert (np.unique(original, return_inverse=True)[1] == classes).all()
            seen.append(set(original))
        return fit(some, side, count, l2=0.1).head

    found = choose(refit, train, validation, labels, fit(train, validation, labels).head, 0.2)
    left_out = [set(range(labels)) - known for known in seen[::2]]
    assert seen[::2] == seen[1::2]
    assert len(left_out) == min(labels, MOST_GROUPS)
    assert sorted(label for group in left_out for label in group) == list(range(labels))
    assert found.n_unknown == 3 * labels


def test_of_very_many_embeddings_every_so_many_are_taken() -> None:
    """The rows of a memory-mapped file are not all copied: no more than `lbfgs` would prepare."""
    width = PREPARED_ELEMENTS // 32
    train = np.broadcast_to(np.float32(0), (63, width)), np.arange(63) % 3
    validation = np.broadcast_to(np.float32(0), (6, width)), np.arange(6) % 3
    sizes = []

    def refit(some: Pair, side: Pair, count: int) -> Head:
        sizes.append(np.bincount(some[1]).tolist())
        return Head(np.zeros((width, count), np.float32), np.zeros(count, np.float32))

    sure = Head(np.zeros((width, 3), np.float32), np.array([9, 0, 0], np.float32))
    choose(refit, train, validation, 3, sure, 0.5)
    assert [sum(size) for size in sizes] == [21] * 3
    assert all(min(size) > 0 for size in sizes)


def test_what_cannot_be_chosen_is_told_before_anything_is_fitted() -> None:
    """Two labels leave nothing to tell apart, and 1 % of 20 images is less than one of them."""
    with pytest.raises(DataError, match="there are 2 labels, expected 3 or more"):
        check_rate(0.1, 2, 100)
    with pytest.raises(ConfigError, match="less than one of the 20 validation images") as caught:
        check_rate(0.01, 3, 20)
    assert "at least 0.05," in caught.value.hint
    check_rate(0.05, 3, 20)


def test_a_threshold_that_nothing_passes_is_refused() -> None:
    """Where unknown images score as high as any other, all would be unknown."""
    train, validation = blobs(3, 10, 0), blobs(3, 10, 1)
    blind = Head(np.zeros((8, 3), np.float32), np.zeros(3, np.float32))
    with pytest.raises(DataError, match="all 30 known validation images would be unknown"):
        choose_threshold(
            train, validation, 3, blind, rate=0.1, l2=1e-6, balanced=False, temperature=1.0
        )


def test_the_option_decides_only_where_it_is_given() -> None:
    """Versions of before there was the option are still unchanged; another rate is another run."""
    places: Any = {"data": "d", "models": "m", "name": "n"}
    assert "unknown_rate" not in RunConfig(**places).decisions()
    assert RunConfig(**places, unknown_rate=0.1).decisions()["unknown_rate"] == 0.1
    with pytest.raises(ConfigError, match="the backbone it tunes has seen every label"):
        RunConfig(**places, unknown_rate=0.1, solver="finetune")
    with pytest.raises(ConfigError, match="--unknown-rate means nothing to --task multilabel"):
        RunConfig(**places, unknown_rate=0.1, task="multilabel")
    for rate in (0, 0.51, float("nan")):
        with pytest.raises(ConfigError, match="--unknown-rate is"):
            RunConfig(**places, unknown_rate=rate)


def run(folder: Path, data: Path, *flags: str) -> Path:
    """Run the job on squares and give the version that it published."""
    module = folder / "module"
    if not module.exists():
        write_pooling(module)
    options = ["--data", data, "--models", folder / "m", "--name", "s", "--backbone", module]
    result = folder / "result.json"
    assert main(["run", *map(str, options), "--result-file", str(result), *flags]) == 0
    return Path(json.loads(result.read_text())["uri"])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Path:
    """A version whose threshold lets a tenth of unknown images pass; read only."""
    return run(tmp_path_factory.mktemp("lbfgs"), colours, "--unknown-rate", "0.1")


def ask(version: Path, *colours: tuple[int, int, int]) -> dict[str, Any]:
    """Ask `serve_bytes` of a version about squares: gives its outputs, a row a square."""
    model = tf.saved_model.load(str(version))
    images = tf.constant([jpeg(colour, seed=5) for colour in colours])
    answer = model.signatures["serve_bytes"](image_bytes=images)
    return {name: value.numpy() for name, value in answer.items()}


def test_a_new_colour_is_unknown_and_the_known_are_not(published: Path) -> None:
    """The loaded SavedModel says so, by the manifest's threshold, beside what it always said."""
    answer = ask(published, *COLOURS.values(), *NEW)
    assert set(answer) == {"classes", "scores", "prediction", "unknown"}
    assert answer["unknown"].dtype == bool
    assert answer["unknown"].tolist() == [False] * 3 + [True] * len(NEW)
    threshold = np.float32(read_manifest(published)["unknown"]["value"])
    assert (answer["unknown"] == (answer["prediction"].max(axis=1) < threshold)).all()


def test_sgd_leaves_labels_out_with_its_own_steps(tmp_path: Path, colours: Path) -> None:
    """Its heads are less sure than optimal ones; a new colour is unknown all the same."""
    flags = ["--solver", "sgd", "--steps", "300", "--unknown-rate", "0.1"]
    answer = ask(run(tmp_path, colours, *flags), *COLOURS.values(), *NEW)
    assert answer["unknown"].tolist() == [False] * 3 + [True] * len(NEW)


def test_manifest_report_and_result_have_the_figures(published: Path) -> None:
    """The threshold in the manifest, what it costs on the test images in the report."""
    manifest = read_manifest(published)
    figures = json.loads((published / "report/metrics.json").read_text())["unknown"]
    assert manifest["unknown"]["false_accept_rate"] <= 0.1
    assert figures["value"] == pytest.approx(manifest["unknown"]["value"], rel=1e-5)
    assert figures["test_false_reject_rate"] == manifest["metrics"]["test_false_reject_rate"] == 0
    assert figures["test_passed_accuracy"] == 1
    assert figures["n_test"] == manifest["inputs"]["data"]["images"][Split.TEST.value]
    assert "<h2>Unknown</h2>" in (published / "report/index.html").read_text()


def test_predict_shows_what_is_unknown(published: Path, tmp_path: Path) -> None:
    """A row says so before the best label, and a file that is no image is still an error."""
    for name, contents in (
        ("red", jpeg(RED, 3)), ("cyan", jpeg(COLOURS["cyan"], 3)), ("bad", b"no image"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(contents)
    images = [tmp_path / name for name in ("red", "cyan", "bad")]
    answers = list(predict(load_model(str(published)), images))
    assert [answer.unknown for answer in answers] == [True, False, None]
    text = io.StringIO()
    Console(file=text, width=200).print(prediction_table(answers, 2))
    rows = [line for line in text.getvalue().splitlines() if str(tmp_path) in line]
    assert ["unknown, " in row for row in rows] == [True, False, False]
    assert "cyan 1.000" in rows[1]


def close(folder: Path, **changes: Any) -> Path:
    """Seal a version's manifest again, its files as they are; `changes` are to its keys."""
    manifest = read_manifest(folder) | changes
    (folder / "manifest.json").unlink()
    kept = {k: v for k, v in manifest.items() if v is not None and k != "seal"}
    kept["files"] = describe_files(folder)
    (folder / "manifest.json").write_text(canonical(seal(kept)))
    return folder


def test_verification_asks_for_what_is_unknown(published: Path, tmp_path: Path) -> None:
    """Another threshold in the manifest than in the graph, or none, is named with its door."""
    assert find_problems(published) == []
    copy = Path(shutil.copytree(published, tmp_path / "copy"))
    unknown = read_manifest(copy)["unknown"]
    problems = find_problems(close(copy, unknown=unknown | {"value": 1.5}))
    assert len(problems) == 2  # one by one, and all at once
    assert all("serve_bytes" in p and "says unknown=False" in p for p in problems)
    problems = find_problems(close(copy, unknown=None))
    assert len(problems) == 2
    assert all(
        "an output `unknown`, and for a threshold manifest.json has none" in p for p in problems
    )


def test_without_a_threshold_there_is_no_such_output(published: Path, tmp_path: Path) -> None:
    """The signature is the old one, and a manifest that has a threshold is found out."""
    backbone = load_backbone(str(write_pooling(tmp_path / "module")), cache_dir=tmp_path / "cache")
    kernel = np.random.default_rng(0).normal(size=(backbone.feature_dim, 3)).astype(np.float32)
    head = Head(kernel, np.zeros(3, np.float32))
    export(Classifier(backbone, head, tuple(COLOURS)), tmp_path / "plain")
    assert set(ask(tmp_path / "plain", RED)) == {"classes", "scores", "prediction"}
    contents = jpeg(COLOURS["cyan"], 7)
    golden = Golden("7.jpg", contents, ask(tmp_path / "plain", COLOURS["cyan"])["prediction"][0])
    write_warmup(tmp_path / "plain", [golden])
    (tmp_path / "plain/manifest.json").write_bytes((published / "manifest.json").read_bytes())
    record = {"names": ["7.jpg"], "predictions": [golden.prediction.tolist()], "tolerance": 0.1}
    (problem,) = find_problems(close(tmp_path / "plain", golden=record))
    assert "serve_bytes at batch size 1 gives no output `unknown`" in problem


@pytest.fixture
def server(published: Path, tmp_path: Path) -> Iterator[str]:
    """The stand-in for TensorFlow Serving, which will have the published version: gives its URL."""
    shutil.copytree(published, tmp_path / "base/1")
    manager = Manager(Folder(str(tmp_path / "base")), "m", 0, 1.0)
    manager.poll()
    manager.manage()
    serving_standin.Handler.manager = manager
    server = ThreadingHTTPServer(("127.0.0.1", 0), serving_standin.Handler)
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_says_what_is_unknown_and_still_agrees(server: str, published: Path) -> None:
    """Over REST `unknown` is a JSON truth value, and the answers are those of the golden images."""
    wait_available(server, "m", 1, timeout=60)
    golden = read_manifest(published)["golden"]
    data = Path(read_manifest(published)["configuration"]["data"][0])
    goldens = [
        Golden(name, (data / name).read_bytes(), np.array(prediction, np.float32))
        for name, prediction in zip(golden["names"], golden["predictions"], strict=True)
    ]
    assert len(goldens) == 3
    assert compare_answers(server, "m", 1, goldens, tolerance=1e-4) == []
    images = [jpeg(colour, seed=5) for colour in (*COLOURS.values(), RED)]
    instances = [{"image_bytes": {"b64": base64.b64encode(image).decode()}} for image in images]
    body = json.dumps({"signature_name": "serve_bytes", "instances": instances}).encode()
    with urllib.request.urlopen(f"{server}/v1/models/m:predict", body, timeout=30) as answer:
        rows = json.load(answer)["predictions"]
    assert [row["unknown"] for row in rows] == [False, False, False, True]


THRESHOLD = Threshold(0.625, 0.04, (0.011, 0.135), 0.21, 0.777, 50, 60)


def test_a_threshold_is_held_against_the_test_images() -> None:
    """The share that is rejected, and the accuracy of the others; none where none passes."""
    scores = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4]], np.float32)
    found = reject(THRESHOLD, scores, np.array([0, 1, 1, 0]))
    assert (found.false_reject_rate, found.n) == (0.25, 4)
    assert found.passed_accuracy == pytest.approx(2 / 3)
    assert reject(THRESHOLD, scores[3:], np.array([0])).passed_accuracy is None
    lost = np.full((1, 2), np.nan, np.float32)
    assert THRESHOLD.rejects(np.concatenate([scores, lost])).tolist() == [*[False] * 3, True, True]


@pytest.mark.parametrize("passing", [True, False])
def test_the_report_says_what_the_threshold_costs(tmp_path: Path, passing: bool) -> None:
    """Page, figures and Markdown have the rates; where nothing passes there is no accuracy."""
    facts = make_facts(n=12)
    threshold = THRESHOLD if passing else replace(THRESHOLD, value=2.0)
    facts = replace(facts, unknown=reject(threshold, facts.scores, facts.classes))
    assert facts.unknown is not None
    write_report(tmp_path / "report", facts)
    page = (tmp_path / "report/index.html").read_text()
    assert "4.0\u00a0% of 50 validation images" in page
    assert ("no test image passes" in page) is not passing
    rejected = f"{100 * facts.unknown.false_reject_rate:.1f}\u00a0%"
    assert f"{rejected} of 12 test images" in page
    assert f"of the test images {rejected} do not" in markdown(facts)
    assert metrics(facts)["unknown"]["test_false_reject_rate"] == pytest.approx(
        facts.unknown.false_reject_rate, rel=1e-5
    )
    assert "unknown" not in metrics(replace(facts, unknown=None))
