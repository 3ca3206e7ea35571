"""A version that is damaged, or answers otherwise than the trained model did, is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import COLOURS, jpeg
from modules import write_pooling
from tensorflow_serving.apis import prediction_log_pb2

from job.backbone import Backbone, load_backbone
from job.export import Classifier, export
from job.head import Head
from job.images import loader
from job.seal import canonical, describe_files, file_problems, seal
from job.tflite import FORMATS, convert
from job.verify import (
    MAX_GOLDENS,
    WARMUP,
    Golden,
    find_problems,
    golden_record,
    write_warmup,
)

LABELS = tuple(COLOURS)
DOORS = (
    "saved_model.pb: serving_default at batch size 1",
    "saved_model.pb: serve_bytes at batch size 1",
    "saved_model.pb: serving_default at batch size 3",
    "saved_model.pb: serve_bytes at batch size 3",
    "frozen_graph.pb at batch size 1",
    "frozen_graph.pb at batch size 3",
)

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The pooling module."""
    folder = tmp_path_factory.mktemp("module")
    return load_backbone(str(write_pooling(folder / "pooling")), cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def head(backbone: Backbone) -> Head:
    """A head with random weights."""
    random = np.random.default_rng(0)
    kernel = random.normal(size=(backbone.feature_dim, 3)).astype(np.float32)
    return Head(kernel, random.normal(size=3).astype(np.float32))


@pytest.fixture(scope="module")
def goldens(backbone: Backbone, head: Head) -> list[Golden]:
    """A square of each colour, with what the head says in memory."""
    decode, golden = loader(backbone.image_size), []
    for label, colour in COLOURS.items():
        contents = jpeg(colour, seed=7)
        features = backbone.embed(tf.constant(decode(contents)[None])).numpy()
        golden.append(Golden(f"{label}/7.jpg", contents, head.probabilities(features)[0]))
    return golden


def close(folder: Path, goldens: list[Golden], **changes: Any) -> Path:
    """Write a manifest that fits the files as they are; `changes` are to its keys."""
    (folder / "manifest.json").unlink(missing_ok=True)
    manifest = {"labels": list(LABELS), "golden": golden_record(goldens)}
    manifest["configuration"] = {"exact_decode": False, "max_pixels": 2**26}
    manifest |= {"files": describe_files(folder)} | changes
    (folder / "manifest.json").write_text(canonical(seal(manifest)))
    return folder


@pytest.fixture(scope="module")
def bundle(
    backbone: Backbone, head: Head, goldens: list[Golden], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A sound version; read only."""
    folder = tmp_path_factory.mktemp("sound") / "bundle"
    export(Classifier(backbone, head, LABELS), folder)
    write_warmup(folder, goldens)
    return close(folder, goldens)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the sound version, to be spoilt."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_a_sound_version_has_no_problems(bundle: Path) -> None:
    """Nothing is found in what export, warm-up and manifest wrote."""
    assert find_problems(bundle) == []


def flip(path: Path, random: np.random.Generator) -> None:
    """Change one byte of a file, at a random place, to another one."""
    contents = bytearray(path.read_bytes())
    contents[random.integers(len(contents))] ^= int(random.integers(1, 256))
    path.write_bytes(contents)


def test_one_changed_byte_in_any_file_is_found(bundle: Path, copy: Path) -> None:
    """Whichever file it is, that file is named, and nothing else is reported."""
    random = np.random.default_rng(0)
    names = [path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()]
    assert {"saved_model.pb", "frozen_graph.pb", "labels.txt", WARMUP, "manifest.json"} < set(names)
    for name in names:
        flip(copy / name, random)
        (problem,) = find_problems(copy)
        assert problem.startswith(name)
        shutil.copy(bundle / name, copy / name)
    assert file_problems(copy) == []


def test_any_byte_of_the_manifest_counts(bundle: Path, tmp_path: Path) -> None:
    """Each of its bytes, changed at random, breaks its text, its form or its seal."""
    random = np.random.default_rng(1)
    contents = (bundle / "manifest.json").read_bytes()
    for place in range(len(contents)):
        changed = bytearray(contents)
        changed[place] ^= int(random.integers(1, 256))
        (tmp_path / "manifest.json").write_bytes(changed)
        (problem,) = file_problems(tmp_path)
        assert problem.startswith("manifest.json: ")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda contents: contents[:-1],
        lambda contents: contents + b"\n",
        lambda contents: contents.replace(b" ", b"  ", 1),
        lambda contents: b"[]\n",
        lambda contents: b"",
        lambda contents: canonical(seal({"labels": []})).encode(),
        lambda contents: canonical({"files": {}}).encode(),
    ],
    ids=["cut", "longer", "spaced", "list", "empty", "no files", "no seal"],
)
def test_a_manifest_has_one_form(copy: Path, spoil: Callable[[bytes], bytes]) -> None:
    """Bytes added, lost or laid out otherwise, or no seal: the manifest is named."""
    path = copy / "manifest.json"
    path.write_bytes(spoil(path.read_bytes()))
    (problem,) = find_problems(copy)
    assert problem.startswith("manifest.json: ")


def test_missing_and_unlisted_files_are_found(copy: Path) -> None:
    """A file too few and a file too many; then no manifest at all."""
    (copy / "frozen_graph.pb").rename(copy / "variables/extra.pb")
    assert find_problems(copy) == [
        "frozen_graph.pb is missing, manifest.json lists it",
        "variables/extra.pb is not listed in manifest.json",
    ]
    (copy / "manifest.json").unlink()
    (problem,) = find_problems(copy)
    assert problem.startswith("manifest.json: ")


@pytest.mark.parametrize("kind", ["two classes swapped", "weights shuffled", "not a number"])
def test_another_head_is_found_through_every_door(
    backbone: Backbone, head: Head, goldens: list[Golden], tmp_path: Path, kind: str
) -> None:
    """What was exported is not what was trained: each signature, graph and batch size shows it."""
    kernel = head.kernel.copy()
    if kind == "two classes swapped":
        kernel[:, [0, 1]] = kernel[:, [1, 0]]
    elif kind == "weights shuffled":
        np.random.default_rng(2).shuffle(kernel)
    else:
        kernel[:] = np.nan
    export(Classifier(backbone, Head(kernel, head.bias), LABELS), tmp_path / "bundle")
    write_warmup(tmp_path / "bundle", goldens)
    problems = find_problems(close(tmp_path / "bundle", goldens))
    for door in DOORS:
        assert any(p.startswith(door) and "the trained model's" in p for p in problems), door


def test_one_export_of_another_model_is_found(
    backbone: Backbone, head: Head, goldens: list[Golden], copy: Path, tmp_path: Path
) -> None:
    """A frozen graph from elsewhere beside the right SavedModel is the only thing named."""
    export(Classifier(backbone, Head(-head.kernel, head.bias), LABELS), tmp_path / "other")
    shutil.copy(tmp_path / "other/frozen_graph.pb", copy)
    problems = find_problems(close(copy, goldens))
    assert [problem.split(" gives")[0] for problem in problems] == list(DOORS[4:])


def test_an_answer_off_by_more_than_the_tolerance_is_found(
    copy: Path, goldens: list[Golden]
) -> None:
    """1e-5 is the limit: 5e-6 passes, 3e-5 is reported at every door."""
    near = [Golden(g.name, g.contents, g.prediction + np.float32(5e-6)) for g in goldens]
    assert find_problems(close(copy, near)) == []
    far = [Golden(g.name, g.contents, g.prediction + np.float32(3e-5)) for g in goldens]
    assert len(find_problems(close(copy, far))) == len(DOORS)


def test_labels_changed_with_their_digests_are_found(copy: Path, goldens: list[Golden]) -> None:
    """labels.txt rewritten, and the manifest with it: the asset and `classes` still disagree."""
    renamed = ["magenta", "cyan", "yellow"]
    (copy / "labels.txt").write_text("magenta\ncyan\nyellow\n")
    problems = find_problems(close(copy, goldens, labels=renamed))
    assert problems[0].startswith("assets/labels.txt has ")
    assert any("serve_bytes" in problem and "gives the scores" in problem for problem in problems)


@pytest.mark.parametrize("name", ["labels.txt", "assets/labels.txt"])
def test_one_labels_file_changed_is_found(copy: Path, goldens: list[Golden], name: str) -> None:
    """Either file alone, though the manifest has its new digest; or the file gone."""
    (copy / name).write_text("cyan\nmagenta\nyelow\n")
    (problem,) = find_problems(close(copy, goldens))
    assert problem.startswith(f"{name} has b'cyan\\nmagenta\\nyelow\\n'")
    (copy / name).unlink()
    assert any(problem.startswith(name) for problem in find_problems(close(copy, goldens)))


def test_a_label_unknown_to_the_graph_is_found(copy: Path, goldens: list[Golden]) -> None:
    """Renamed in both files and in the manifest, but not in the graph that answers."""
    for name in ("labels.txt", "assets/labels.txt"):
        (copy / name).write_text("cyan\nmagenta\ngold\n")
    problems = find_problems(close(copy, goldens, labels=["cyan", "magenta", "gold"]))
    assert len(problems) == 2
    assert all("serve_bytes" in problem and "gives the classes" in problem for problem in problems)


@pytest.mark.parametrize("defect", ["unsorted", "score of another", "batch"])
def test_odd_answers_are_found(copy: Path, goldens: list[Golden], defect: str) -> None:
    """Classes worst first, scores that are not their classes', answers that depend on the batch."""
    model = tf.saved_model.load(str(copy))

    def serve_bytes(image_bytes: Any) -> Any:
        answer = model.signatures["serve_bytes"](image_bytes=image_bytes)
        if defect == "unsorted":
            for name in ("classes", "scores"):
                answer[name] = tf.reverse(answer[name], [1])
        elif defect == "score of another":
            answer["scores"] = tf.concat([answer["scores"][:, :2], answer["scores"][:, :1]], 1)
        else:
            answer["prediction"] += 0.01 * tf.cast(tf.shape(image_bytes)[0] - 1, tf.float32)
        return answer

    signatures = {
        "serving_default": model.signatures["serving_default"],
        "serve_bytes": tf.function(
            serve_bytes, input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")]
        ),
    }
    tf.saved_model.save(model, str(copy.parent / "odd"), signatures=signatures)
    shutil.copytree(copy.parent / "odd", copy, dirs_exist_ok=True)
    problems = find_problems(close(copy, goldens))
    assert problems
    assert all(p.startswith("saved_model.pb: serve_bytes at batch size") for p in problems)
    alone = [p for p in problems if "batch size 1 " in p]
    assert bool(alone) is (defect != "batch")


def write_records(folder: Path, *records: bytes) -> None:
    """Replace the warm-up by these records."""
    with tf.io.TFRecordWriter(str(folder / WARMUP)) as file:
        for record in records:
            file.write(record)


def read_records(folder: Path) -> list[bytes]:
    """Read the warm-up's records with TensorFlow."""
    return list(tf.data.TFRecordDataset(str(folder / WARMUP)).as_numpy_iterator())


def test_the_warmup_asks_both_signatures(bundle: Path, goldens: list[Golden]) -> None:
    """All goldens at once, one of them alone, and pixels, as requests to run."""
    asked = []
    for record in read_records(bundle):
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        ((name, tensor),) = request.inputs.items()
        asked.append((request.model_spec.signature_name, name, tf.make_ndarray(tensor)))
    assert [(signature, name) for signature, name, _ in asked] == [
        ("serve_bytes", "image_bytes"),
        ("serve_bytes", "image_bytes"),
        ("serving_default", "image"),
    ]
    assert asked[0][2].tolist() == [golden.contents for golden in goldens]
    assert asked[1][2].tolist() == [goldens[0].contents]
    assert asked[2][2].shape == (1, 32, 32, 3)
    assert asked[2][2].dtype == np.float32


@pytest.mark.parametrize("count", [0, MAX_GOLDENS + 1])
def test_a_warmup_is_small(bundle: Path, goldens: list[Golden], count: int) -> None:
    """A server runs all of it before it serves, so more than a few images are refused."""
    with pytest.raises(ValueError, match=f"{count} golden images"):
        write_warmup(bundle, (goldens * MAX_GOLDENS)[:count])


def other_signature(records: list[bytes]) -> list[bytes]:
    """Add a request to a signature that is not there."""
    log = prediction_log_pb2.PredictionLog.FromString(records[1])
    log.predict_log.request.model_spec.signature_name = "train"
    return [*records, log.SerializeToString()]


def other_input(records: list[bytes]) -> list[bytes]:
    """Add a request with an input of another shape."""
    log = prediction_log_pb2.PredictionLog.FromString(records[2])
    log.predict_log.request.inputs["image"].CopyFrom(tf.make_tensor_proto(np.zeros(3, "f4")))
    return [*records, log.SerializeToString()]


def other_image(records: list[bytes]) -> list[bytes]:
    """Replace the golden images' bytes by what is no image."""
    log = prediction_log_pb2.PredictionLog.FromString(records[0])
    log.predict_log.request.inputs["image_bytes"].string_val[1] = b"no image"
    return [log.SerializeToString(), *records[1:]]


def other_kind(records: list[bytes]) -> list[bytes]:
    """Add a record of a kind that these signatures do not answer."""
    log = prediction_log_pb2.PredictionLog()
    log.classify_log.SetInParent()
    return [*records, log.SerializeToString()]


def test_the_order_of_the_warmup_does_not_matter(copy: Path, goldens: list[Golden]) -> None:
    """The golden images are found behind the other requests as well."""
    write_records(copy, *reversed(read_records(copy)))
    assert find_problems(close(copy, goldens)) == []


@pytest.mark.parametrize(
    "spoil",
    [
        other_signature,
        other_input,
        other_image,
        other_kind,
        lambda records: [],
        lambda records: records[:-1],
        lambda records: records[1:],
        lambda records: [b"\xff\xff\xff", *records],
    ],
    ids=["signature", "input", "image", "kind", "empty", "cut", "no goldens", "no protobuf"],
)
def test_a_warmup_that_a_server_cannot_run_is_found(
    copy: Path, goldens: list[Golden], spoil: Callable[[list[bytes]], list[bytes]]
) -> None:
    """Records that do not parse, do not run or are not there; the manifest has their digest."""
    write_records(copy, *spoil(read_records(copy)))
    (problem,) = find_problems(close(copy, goldens))
    assert problem.startswith(f"{WARMUP} cannot be used: ")


def test_a_warmup_with_a_broken_checksum_is_found(copy: Path, goldens: list[Golden]) -> None:
    """TFRecord has a checksum of its own, which a server would stumble on."""
    flip(copy / WARMUP, np.random.default_rng(0))
    (problem,) = find_problems(close(copy, goldens))
    assert problem.startswith(f"{WARMUP} cannot be used: ")


@pytest.mark.parametrize("name", ["saved_model.pb", "frozen_graph.pb"])
def test_an_export_that_does_not_load_is_found(
    copy: Path, goldens: list[Golden], name: str
) -> None:
    """Half a file, though the manifest has its digest, is named."""
    contents = (copy / name).read_bytes()
    (copy / name).write_bytes(contents[: len(contents) // 2])
    problems = find_problems(close(copy, goldens))
    assert [problem.split(": ")[0] for problem in problems] == [f"{name} cannot be used"]


@pytest.mark.parametrize(
    "changes",
    [{"golden": None}, {"golden": {"names": ["a"], "predictions": [[1.0]]}}, {"labels": None}],
    ids=["no golden", "shape", "no labels"],
)
def test_a_manifest_without_golden_predictions_is_found(
    copy: Path, goldens: list[Golden], changes: dict[str, Any]
) -> None:
    """There is nothing to compare with, which is a problem and no success."""
    problems = find_problems(close(copy, goldens, **changes))
    assert any(problem.startswith("manifest.json cannot be used: ") for problem in problems)


@pytest.mark.parametrize("name", FORMATS)
def test_tflite_models_answer_within_their_tolerance(
    copy: Path, goldens: list[Golden], backbone: Backbone, head: Head, name: str
) -> None:
    """A sound one passes; the manifest can ask for more; another head's is found, other labels."""
    decode = loader(backbone.image_size)
    images = [decode(golden.contents) for golden in goldens]
    file = FORMATS[name].file
    (copy / file).write_bytes(convert(Classifier(backbone, head, LABELS), name, images))
    record = golden_record(goldens)
    assert find_problems(close(copy, goldens, golden=record | tolerance(file, 0.1))) == []
    (problem,) = find_problems(close(copy, goldens, golden=record | tolerance(file, 1e-9)))
    assert problem.startswith(f"{file} gives")
    (problem,) = find_problems(close(copy, goldens))
    assert problem.startswith(f"{file} cannot be used: ")
    other = Head(head.kernel[:, ::-1].copy(), head.bias[::-1].copy())
    classifier = Classifier(backbone, other, LABELS[::-1])
    (copy / file).write_bytes(convert(classifier, name, images))
    problems = find_problems(close(copy, goldens, golden=record | tolerance(file, 0.1)))
    assert [problem.removeprefix(file).split()[0] for problem in problems] == ["gives", "has"]


def tolerance(file: str, value: float) -> dict[str, Any]:
    """Give what a manifest says of how far a TFLite file may be off."""
    return {"tflite_tolerance": {file: value}}
