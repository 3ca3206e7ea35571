"""TFLite files answer as the classifier did, say what they mean, and refuse what they cannot do."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as litert_schema
from ai_edge_litert.interpreter import Interpreter
from conftest import COLOURS, ROOT, jpeg
from flatbuffers import number_types
from flatbuffers.table import Table
from hypothesis import given
from hypothesis import strategies as st
from modules import write_pooling

from job.backbone import load_backbone
from job.errors import ConfigError
from job.export import Classifier
from job.head import Head
from job.images import loader
from job.lbfgs import fit
from job.tflite import FORMATS, TFLiteModel, convert
from job.tflite_metadata import attach_labels, labels

LABELS = ("bleu ciel", "紫红色", "żółty 💛")
# Of a probability, against the classifier in memory.
TOLERANCE = {"tflite-float16": 1e-3, "tflite-dynamic": 0.02, "tflite-int8": 0.02}
INTEGERS = {np.int8, np.uint8, np.int32, np.int64}


def squares(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Give `count` squares of each colour, float32 [n,32,32,3], and their class indices."""
    decode = loader((32, 32))
    pixels = [decode(jpeg(c, seed + n)) for c in COLOURS.values() for n in range(count)]
    return np.stack(pixels), np.arange(3).repeat(count)


def in_memory(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    """Score images with the classifier itself."""
    return classifier.head.probabilities(classifier.backbone.embed(tf.constant(pixels)).numpy())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A head fitted to three colours, on the pooling module."""
    folder = tmp_path_factory.mktemp("tflite")
    backbone = load_backbone(str(write_pooling(folder / "module")), cache_dir=folder / "cache")
    pixels, classes = squares(8)
    features = backbone.embed(tf.constant(pixels)).numpy()
    head = fit((features, classes), (features, classes), 3, l2=1e-3).head
    return Classifier(backbone, head, LABELS)


@pytest.fixture(scope="module")
def files(classifier: Classifier) -> dict[str, bytes]:
    """The classifier in each format."""
    return {name: convert(classifier, name, squares(8)[0]) for name in FORMATS}


def ask_litert(data: bytes, pixels: np.ndarray) -> np.ndarray:
    """Ask LiteRT's interpreter, through the signature, with bytes where it takes them."""
    interpreter = Interpreter(model_content=data)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    runner = interpreter.get_signature_runner("serving_default")
    if source["dtype"] == np.uint8:
        answers = [runner(image=np.round(p[None] * 255).astype(np.uint8)) for p in pixels]
        scale, zero = target["quantization"]
        return np.stack([(a["prediction"][0].astype(np.float32) - zero) * scale for a in answers])
    return np.stack([runner(image=p[None])["prediction"][0] for p in pixels])


def kinds(data: bytes) -> set[Any]:
    """Give the types of all tensors of a model, inside ones too."""
    return {d["dtype"] for d in Interpreter(model_content=data).get_tensor_details()}


@pytest.mark.parametrize("name", FORMATS)
def test_another_reader_names_the_colours(
    classifier: Classifier, files: dict[str, bytes], name: str
) -> None:
    """LiteRT gives squares that were not trained on the scores of the classifier in memory."""
    pixels, classes = squares(2, seed=100)
    scores = ask_litert(files[name], pixels)
    assert (scores.argmax(axis=1) == classes).all()
    assert scores == pytest.approx(in_memory(classifier, pixels), abs=TOLERANCE[name])


@pytest.mark.parametrize("name", FORMATS)
def test_our_reader_gives_what_the_other_gives(files: dict[str, bytes], name: str) -> None:
    """Dequantised, in order, for more images than there are cores; and no rows for no images."""
    pixels = np.random.default_rng(0).random((9, 32, 32, 3)).astype(np.float32)
    model = TFLiteModel(files[name])
    scores = model.probabilities(pixels)
    assert scores.dtype == np.float32
    assert scores == pytest.approx(ask_litert(files[name], pixels), abs=2 / 256)
    assert model.probabilities(pixels[:0]).shape == (0, 3)


@pytest.mark.parametrize("name", FORMATS)
def test_the_interface_is_that_of_the_saved_model(files: dict[str, bytes], name: str) -> None:
    """One image in, under the names of its signature; quantised, a byte is a pixel's byte."""
    interpreter = Interpreter(model_content=files[name])
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["image"], "outputs": ["prediction"]}
    }
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (source["shape"].tolist(), target["shape"].tolist()) == ([1, 32, 32, 3], [1, 3])
    if name == "tflite-int8":
        assert source["dtype"] == target["dtype"] == np.uint8
        assert source["quantization"] == (pytest.approx(1 / 255), 0)
        assert target["quantization"] == (1 / 256, 0)
    else:
        assert source["dtype"] == target["dtype"] == np.float32


def test_a_byte_is_a_pixels_byte_whatever_calibrates(classifier: Classifier) -> None:
    """Pale training images do not narrow the input's range."""
    data = convert(classifier, "tflite-int8", 0.25 + squares(2)[0] / 2)
    (source,) = Interpreter(model_content=data).get_input_details()
    assert source["quantization"] == (pytest.approx(1 / 255), 0)


def test_int8_has_integers_only(files: dict[str, bytes]) -> None:
    """No tensor inside is floating point, which the other formats show can be told."""
    assert kinds(files["tflite-int8"]) <= INTEGERS
    assert np.float16 in kinds(files["tflite-float16"])
    assert np.float32 in kinds(files["tflite-dynamic"])


@pytest.mark.parametrize("name", FORMATS)
def test_labels_come_back_through_a_zip_reader(files: dict[str, bytes], name: str) -> None:
    """Any unzip finds labels.txt, one a line in UTF-8, and so does our reader."""
    with zipfile.ZipFile(io.BytesIO(files[name])) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode() == "".join(f"{label}\n" for label in LABELS)
    assert labels(files[name]) == LABELS


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))))
def test_labels_of_any_text_come_back(names: list[str]) -> None:
    """Other ends of lines than a newline belong to a label; the model in front is untouched."""
    whole = attach_labels(b"model", names)
    assert whole.startswith(b"model")
    assert labels(whole) == tuple(names)


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_classifier_gives_the_same_bytes(
    classifier: Classifier, files: dict[str, bytes], name: str
) -> None:
    """Whether calibration images come as an array or one by one, once."""
    assert convert(classifier, name, iter(squares(8)[0])) == files[name]


class Reader:
    """A table of a flatbuffer, read by the numbers of its fields."""

    def __init__(self, data: bytes, position: int | None = None) -> None:
        start = int.from_bytes(data[:4], "little") if position is None else position
        self.data, self.table = data, Table(bytearray(data), start)

    def _at(self, slot: int) -> int:
        offset = self.table.Offset(4 + 2 * slot)
        assert offset, f"field {slot} is missing"
        return int(offset + self.table.Pos)

    def has(self, slot: int) -> bool:
        """Tell whether a field is there."""
        return bool(self.table.Offset(4 + 2 * slot))

    def text(self, slot: int) -> str:
        """Give a string."""
        return bytes(self.table.String(self._at(slot))).decode()

    def byte(self, slot: int) -> int:
        """Give the value of an enum."""
        return int(self.table.Get(number_types.Int8Flags, self._at(slot)))

    def child(self, slot: int) -> Reader:
        """Give a table."""
        return Reader(self.data, self.table.Indirect(self._at(slot)))

    def children(self, slot: int) -> list[Reader]:
        """Give the tables of a vector."""
        at = self._at(slot) - self.table.Pos
        start, count = self.table.Vector(at), self.table.VectorLen(at)
        return [Reader(self.data, self.table.Indirect(start + 4 * n)) for n in range(count)]

    def floats(self, slot: int) -> list[float]:
        """Give the numbers of a vector."""
        at = self._at(slot) - self.table.Pos
        start, count = self.table.Vector(at), self.table.VectorLen(at)
        return [self.table.Get(number_types.Float32Flags, start + 4 * n) for n in range(count)]


def metadata(data: bytes) -> bytes:
    """Take the buffer called TFLITE_METADATA out of a model, as LiteRT's schema has it."""
    model = litert_schema.Model.GetRootAs(data, 0)
    entries = [model.Metadata(i) for i in range(model.MetadataLength())]
    (entry,) = [entry for entry in entries if entry.Name() == b"TFLITE_METADATA"]
    return bytes(model.Buffers(entry.Buffer()).DataAsNumpy())


@pytest.mark.parametrize("name", FORMATS)
def test_metadata_follow_the_schema(files: dict[str, bytes], name: str) -> None:
    """Name, description, normalisation, range and the labels' file, at the standard's numbers."""
    contents = metadata(files[name])
    assert contents[4:8] == b"M001"
    model = Reader(contents)
    assert model.text(0) == "Image classifier"
    assert model.text(1).startswith("Tells 3 labels apart, on ")
    assert not model.has(2)
    assert model.text(7) == "1.0.0"
    (subgraph,) = model.children(3)
    (source,), (target,) = subgraph.children(2), subgraph.children(3)
    assert (source.text(0), target.text(0)) == ("image", "prediction")
    assert source.child(3).byte(0) == 2  # ImageProperties
    assert source.child(3).child(1).byte(0) == 1  # RGB
    (unit,) = source.children(4)
    assert unit.byte(0) == 1  # NormalizationOptions
    assert (unit.child(1).floats(0), unit.child(1).floats(1)) == ([0.0], [255.0])  # mean, std
    for tensor in (source, target):
        assert (tensor.child(5).floats(0), tensor.child(5).floats(1)) == ([1.0], [0.0])  # max, min
    assert target.child(3).byte(0) == 1  # FeatureProperties
    (file,) = target.children(6)
    assert (file.text(0), file.byte(2)) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS


def test_converting_is_silent(classifier: Classifier, capfd: pytest.CaptureFixture[str]) -> None:
    """TensorFlow's C++ parts note what they convert, and the log is JSON lines only."""
    convert(classifier, "tflite-int8", squares(1)[0])
    assert capfd.readouterr() == ("", "")


def test_asking_is_silent(files: dict[str, bytes], tmp_path: Path) -> None:
    """In a new process, where a delegate would say that it was made."""
    path = tmp_path / "model.tflite"
    path.write_bytes(files["tflite-float16"])
    script = """
import pathlib, sys
from job.progress import import_tensorflow, set_up_logging
set_up_logging("json")
import_tensorflow()
import numpy
from job.tflite import TFLiteModel
model = TFLiteModel(pathlib.Path(sys.argv[1]).read_bytes())
print(model.probabilities(numpy.zeros([1, 32, 32, 3], "f4")).shape)
"""
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(1, 3)\n", "")


def lacking(folder: Path, operation: Callable[[tf.Tensor], tf.Tensor]) -> Classifier:
    """Give a classifier whose backbone ends in an operation."""
    module = write_pooling(folder / "module", shape_output=operation)
    backbone = load_backbone(str(module), cache_dir=folder / "cache")
    head = Head(np.zeros((12, 3), np.float32), np.zeros(3, np.float32))
    return Classifier(backbone, head, LABELS)


@pytest.mark.parametrize("name", FORMATS)
def test_an_operation_without_a_kernel_is_named(tmp_path: Path, name: str) -> None:
    """It is not left to TensorFlow's own kernels, which phones do not have."""
    classifier = lacking(tmp_path, lambda features: tf.math.erfinv(features / 3))
    with pytest.raises(ConfigError, match=rf"^{name}: .* no kernel for Erfinv, .*module") as caught:
        convert(classifier, name, squares(1)[0])
    assert "leave this format out" in caught.value.hint


def test_an_operation_without_an_integer_kernel_is_named(tmp_path: Path) -> None:
    """The int8 model would compute it in floats, which an Edge TPU cannot; others may."""
    classifier = lacking(tmp_path, tf.sin)
    with pytest.raises(ConfigError, match="no integer kernel for SIN, ") as caught:
        convert(classifier, "tflite-int8", squares(1)[0])
    assert "leave this format out" in caught.value.hint
    pixels = squares(1)[0]
    scores = TFLiteModel(convert(classifier, "tflite-float16", [])).probabilities(pixels)
    assert scores == pytest.approx(in_memory(classifier, pixels), abs=1e-3)


def test_efficientnet_keeps_its_answers(tmp_path: Path) -> None:
    """On drawings, with a head of the size that fit gives, to what each format costs."""
    backbone = load_backbone("builtin:efficientnet-lite0", cache_dir=tmp_path)
    decode = loader(backbone.image_size)
    paths = sorted((ROOT / "samples" / "clipart").glob("*/*.jpg"))[::60]
    pixels = np.stack([decode(path.read_bytes()) for path in paths])
    kernel = np.random.default_rng(0).normal(size=(backbone.feature_dim, 8)) / 20
    head = Head(kernel.astype(np.float32), np.zeros(8, np.float32))
    classifier = Classifier(backbone, head, tuple("abcdefgh"))
    expected = in_memory(classifier, pixels)
    cost = {
        "tflite-float16": (np.float16, 0.005),
        "tflite-dynamic": (np.int8, 0.05),
        "tflite-int8": (np.int8, 0.08),
    }
    for name, (kind, most) in cost.items():
        data = convert(classifier, name, pixels)
        assert kind in kinds(data)
        off = np.abs(TFLiteModel(data).probabilities(pixels) - expected)
        assert off.max() < most, name
        assert np.abs(ask_litert(data, pixels) - expected).max() < most, name
