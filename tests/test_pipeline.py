"""The whole line, on real stores and real modules, with what people do wrong."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import COLOURS, ROOT, jpeg, write_colours
from modules import write_lite0_tf1, write_pooling, write_pooling_tf1

from job.cli import main
from job.storage import open_store

Captured = pytest.CaptureFixture[str]
Published = tuple[Path, dict[str, Any]]
BUNDLE = {
    "saved_model.pb", "fingerprint.pb", "variables/variables.index",
    "variables/variables.data-00000-of-00001", "frozen_graph.pb", "labels.txt", "manifest.json",
    "examples.csv", "ledger.csv", "assets/labels.txt", "assets.extra/tf_serving_warmup_requests",
    "report/index.html", "report/metrics.json", "report/findings.csv", "report/confusion.png",
    "report/reliability.png",
}  # fmt: skip


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny pooling module in TF2 format."""
    return str(write_pooling(tmp_path_factory.mktemp("module") / "tf2"))


def run(capsys: Captured, *flags: object) -> tuple[int, dict[str, Any]]:
    """Run the job in this process: its exit code and its result."""
    capsys.readouterr()
    code = main(["run", "--name", "squares", *map(str, flags)])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="session")
def published(colours: Path, module: str, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A models folder with one version of the colours, and the result of its run; read only."""
    folder = tmp_path_factory.mktemp("published")
    flags = ["--data", str(colours), "--models", str(folder / "m"), "--backbone", module]
    flags += ["--result-file", str(folder / "result.json")]
    assert main(["run", "--name", "squares", *flags]) == 0
    return folder / "m", json.loads((folder / "result.json").read_text())


def names_its_colours(version: Path) -> None:
    """Ask both kinds of client about fresh squares; each must name the right label."""
    labels = (version / "labels.txt").read_text().splitlines()
    served = tf.saved_model.load(str(version)).signatures
    definition = tf.compat.v1.GraphDef.FromString((version / "frozen_graph.pb").read_bytes())
    for label, colour in COLOURS.items():
        answer = served["serve_bytes"](image_bytes=tf.constant([jpeg(colour, seed=5)]))
        assert answer["classes"].numpy()[0, 0].decode() == label
        spec = served["serving_default"].structured_input_signature[1]["image"]
        pixels = np.broadcast_to(np.float32(colour) / 255, (1, *spec.shape[1:]))
        scores = served["serving_default"](image=tf.constant(pixels))["prediction"].numpy()
        assert labels[scores.argmax()] == label
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(definition, name="")
            with tf.compat.v1.Session(graph=graph) as session:
                old = session.run("final_result:0", {"image:0": pixels})
        assert labels[old.argmax()] == label


def test_squares_are_learned_and_published_whole(published: Published) -> None:
    """Folder to folder: accuracy 1.0, the tree of the contract, and clients that read it."""
    models, result = published
    assert result["status"] == "published"
    assert result["metrics"]["test_accuracy"] == 1.0
    assert result["labels"] == ["cyan", "magenta", "yellow"]
    assert set(result["seconds"]) == {
        "index", "backbone", "embed", "split", "examine", "fit", "evaluate", "gate", "export",
        "verify", "publish",
    }  # fmt: skip
    version = models / "squares" / str(result["version"])
    assert result["uri"] == str(version)
    assert {p.relative_to(version).as_posix() for p in version.rglob("*") if p.is_file()} == BUNDLE
    assert {path.name for path in version.parent.iterdir()} == {
        version.name, "channels.json", ".claims", ".staging"
    }  # fmt: skip
    names_its_colours(version)


def test_the_manifest_pins_every_input_and_output(colours: Path, published: Published) -> None:
    """Digests of images, backbone and files are those of the bytes; versions and options too."""
    _, result = published
    version = Path(result["uri"])
    manifest = json.loads((version / "manifest.json").read_text())
    for name, described in manifest["files"].items():
        contents = (version / name).read_bytes()
        assert described == {
            "size": len(contents), "sha256": hashlib.sha256(contents).hexdigest()
        }  # fmt: skip
    assert set(manifest["files"]) == BUNDLE - {"manifest.json"}
    with (version / "examples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120
    for row in rows:
        assert row["sha256"] == hashlib.sha256((colours / row["name"]).read_bytes()).hexdigest()
        assert row["name"].startswith(row["label"] + "/")
    assert manifest["configuration"]["data"] == [str(colours)]
    assert manifest["packages"]["tensorflow"] == tf.__version__
    assert manifest["metrics"] == result["metrics"]
    assert len(manifest["inputs"]["backbone"]["digest"]) == 64


def test_bucket_in_and_bucket_out(
    upload: Callable[[Path, str], str],
    colours: Path,
    module: str,
    bucket: str,
    capsys: Captured,
    tmp_path: Path,
) -> None:
    """Against a live object store: images, module and models are all in the bucket."""
    data = upload(colours, "deep/data")
    handle = upload(Path(module), "modules/pooling")
    models = f"gs://{bucket}/models"
    code, result = run(capsys, "--data", data, "--models", models, "--backbone", handle)
    assert code == 0
    assert result["metrics"]["test_accuracy"] == 1.0
    assert result["uri"] == f"{models}/squares/{result['version']}"
    published = open_store(result["uri"])
    assert {entry.name for entry in published.list()} == BUNDLE
    for entry in published.list():
        (tmp_path / "copy" / entry.name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / entry.name).write_bytes(published.read(entry.name, entry))
    names_its_colours(tmp_path / "copy")
    image = colours / "cyan" / "000.jpg"
    assert main(["predict", "--model", f"{models}/squares", str(image)]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "cyan"


def test_a_tf1_module_is_a_backbone(colours: Path, tmp_path: Path, capsys: Captured) -> None:
    """A module as hub.Module read it trains, exports and answers."""
    handle = write_pooling_tf1(tmp_path / "tf1")
    code, result = run(capsys, "--data", colours, "--models", tmp_path / "m", "--backbone", handle)
    assert code == 0
    assert result["metrics"]["test_accuracy"] == 1.0
    names_its_colours(Path(result["uri"]))


@pytest.mark.parametrize("form", ["builtin", "tf1"])
def test_a_real_backbone_learns_drawings(form: str, tmp_path: Path, capsys: Captured) -> None:
    """Three labels of drawings, by the builtin network and its weights in TF1 Hub format."""
    data = tmp_path / "data"
    for label in ("fruit", "mammal", "vehicle"):
        (data / label).mkdir(parents=True)
        for path in sorted((ROOT / "samples" / "clipart" / label).iterdir())[:60]:
            shutil.copy(path, data / label)
    handle = [] if form == "builtin" else ["--backbone", write_lite0_tf1(tmp_path / "lite0")]
    code, result = run(
        capsys, "--data", data, "--models", tmp_path / "m",
        "--validation-percent", 20, "--test-percent", 20, *handle,
    )  # fmt: skip
    assert code == 0
    assert result["metrics"]["test_accuracy"] > 0.8
    low, high = result["metrics"]["test_accuracy_ci95"]
    assert low < result["metrics"]["test_accuracy"] < high


def test_random_labels_are_not_learned(module: str, tmp_path: Path, capsys: Captured) -> None:
    """The test score is honest: with shuffled labels it stays near a third."""
    data = write_colours(tmp_path / "data", 60)
    files = sorted(data.rglob("*.jpg"))
    contents = [path.read_bytes() for path in files]
    random.Random(1).shuffle(contents)  # noqa: S311 - a seeded shuffle, no secret
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    code, result = run(
        capsys, "--data", data, "--models", tmp_path / "m", "--backbone", module,
        "--test-percent", 30,
    )  # fmt: skip
    assert code == 0
    assert result["metrics"]["test_accuracy"] <= 0.6


def test_a_second_run_trains_the_same_weights(
    colours: Path,
    module: str,
    published: Published,
    tmp_path: Path,
    capsys: Captured,
) -> None:
    """Two runs over one input publish two versions with the same bytes of weights."""
    models, first = published
    shutil.copytree(models, tmp_path / "m")
    flags = ["--data", colours, "--models", tmp_path / "m", "--backbone", module, "--force"]
    _, second = run(capsys, *flags)
    assert second["version"] > first["version"]
    name = "variables/variables.data-00000-of-00001"
    weights = [(Path(r["uri"]) / name).read_bytes() for r in (first, second)]
    assert weights[0] == weights[1]


def test_skipped_images_are_named_and_too_many_are_exit_3(
    module: str, tmp_path: Path, capsys: Captured
) -> None:
    """Two bad files of 120 are reported; above --max-skipped nothing is published."""
    data = write_colours(tmp_path / "data")
    (data / "cyan" / "007.jpg").write_bytes(b"GIF89a truncated")
    (data / "cyan" / "008.jpg").write_bytes(b"")
    flags = ["--data", data, "--models", tmp_path / "m", "--backbone", module]
    code, result = run(capsys, *flags)
    assert code == 0
    assert result["images"]["skipped"] == 2
    assert [n.split(":")[0] for n in result["images"]["skipped_names"]] == [
        "cyan/007.jpg", "cyan/008.jpg"
    ]  # fmt: skip
    code, result = run(capsys, *flags, "--max-skipped", "1")
    assert code == 3
    assert "cyan/007.jpg" in result["error"]["message"]
    assert "--max-skipped" in result["error"]["hint"]
    assert len(list((tmp_path / "m").rglob("saved_model.pb"))) == 1


def test_a_label_that_cannot_be_read_at_all_is_exit_3(
    module: str, tmp_path: Path, capsys: Captured
) -> None:
    """Losing all images of a label is bad data however much may be skipped."""
    data = write_colours(tmp_path / "data")
    for path in (data / "cyan").iterdir():
        path.write_bytes(b"broken")
    code, result = run(
        capsys, "--data", data, "--models", tmp_path / "m", "--backbone", module,
        "--max-skipped", 100,
    )  # fmt: skip
    assert code == 3
    assert "cyan" in result["error"]["message"]


@pytest.mark.parametrize(
    ("folders", "code", "message"),
    [
        ({}, 3, "no images were found"),
        ({"cyan": 40}, 3, "one label only"),
        ({"cyan": 40, "magenta": 40, "empty": 0}, 3, "'empty'"),
        ({"cyan": 40, "Deep Blue": 40, "deep_blue": 40}, 3, "cannot be told apart"),
    ],
)
def test_bad_data_is_exit_3_before_training(
    folders: dict[str, int], code: int, message: str, module: str, tmp_path: Path, capsys: Captured
) -> None:
    """Each fault of the data has its message and its hint, and no backbone was loaded for it."""
    data = tmp_path / "data"
    data.mkdir()
    for folder, count in folders.items():
        (data / folder).mkdir()
        for item in range(count):
            (data / folder / f"{item}.jpg").write_bytes(jpeg((0, 255, 255), item))
    flags = ["--data", data, "--models", tmp_path / "m", "--backbone", module]
    got, result = run(capsys, *flags)
    assert got == code
    assert message in result["error"]["message"]
    assert result["error"]["hint"]
    assert "backbone" not in result["seconds"]
    assert not (tmp_path / "m").exists()


def test_places_that_are_wrong_are_exit_2_before_training(
    upload: Callable[[Path, str], str],
    colours: Path,
    module: str,
    tmp_path: Path,
    bucket: str,
    capsys: Captured,
) -> None:
    """A missing bucket or folder, and a models URI that cannot be written, stop the plan."""
    good = upload(colours, "data")
    (tmp_path / "file").write_bytes(b"")
    for data, models, message in (
        ("gs://no-such-bucket/data", f"gs://{bucket}/m", "does not exist"),
        (str(tmp_path / "nope"), str(tmp_path / "m"), "does not exist"),
        (good, "gs://no-such-bucket/m", "does not exist"),
        (good, str(tmp_path / "file"), "file"),
        (good, "/proc/models", "/proc/models"),
        (good, "s3://bucket/models", "no store for s3"),
    ):
        code, result = run(capsys, "--data", data, "--models", models, "--backbone", module)
        assert code == 2, models
        assert message in result["error"]["message"]
        assert "backbone" not in result["seconds"]
    code, result = run(
        capsys, "--data", f"gs://{bucket}/none", "--models", f"gs://{bucket}/m",
        "--backbone", module,
    )  # fmt: skip
    assert code == 3
    assert "no images were found" in result["error"]["message"]
    assert not list(open_store(f"gs://{bucket}").list("m"))


@pytest.mark.parametrize("handle", ["builtin:nope", "/nope/module"])
def test_an_unknown_backbone_is_exit_2_with_its_handle(
    handle: str, colours: Path, tmp_path: Path, capsys: Captured
) -> None:
    """The message has the handle in it, and nothing is published."""
    code, result = run(capsys, "--data", colours, "--models", tmp_path / "m", "--backbone", handle)
    assert code == 2
    assert handle in result["error"]["message"]
    assert result["version"] is None


def test_evaluate_scores_the_side_that_was_not_seen(
    colours: Path, published: Published, tmp_path: Path, capsys: Captured
) -> None:
    """`evaluate` finds the test images again by the model's own split; all is all of them."""
    models, result = published
    flags = ["--model", str(models / "squares"), "--data", str(colours)]
    capsys.readouterr()  # where this test is the first to want it, the run above has printed, too
    assert main(["evaluate", *flags]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["n_test"] == result["images"]["test"]
    assert figures["test_accuracy"] == result["metrics"]["test_accuracy"]
    assert main(["evaluate", *flags, "--split", "all"]) == 0
    assert json.loads(capsys.readouterr().out)["n_all"] == 120
    (tmp_path / "other" / "green").mkdir(parents=True)
    (tmp_path / "other" / "green" / "1.jpg").write_bytes(jpeg((0, 255, 0), 1))
    flags[-1] = str(tmp_path / "other")
    assert main(["evaluate", *flags]) == 3
    assert "'green'" in capsys.readouterr().err


def test_predict_says_what_it_cannot_read(
    colours: Path, published: Published, tmp_path: Path, capsys: Captured
) -> None:
    """A bad file is exit 3 with its name, the others are answered; no version is exit 2."""
    _, result = published
    capsys.readouterr()
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    images = [str(colours / "yellow" / "001.jpg"), str(tmp_path / "bad.jpg")]
    assert main(["predict", "--model", result["uri"], *images]) == 3
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0]["label"] == "yellow"
    assert sum(answers[0]["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert answers[1]["error"]
    assert main(["predict", "--model", str(tmp_path), images[0]]) == 2
    assert "no version" in capsys.readouterr().err
