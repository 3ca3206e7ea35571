"""An export answers as the model in memory did, through every door."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import COLOURS, jpeg
from modules import write_pooling, write_pooling_tf1

from job.backbone import Backbone, load_backbone
from job.export import Classifier, export
from job.head import Head
from job.images import loader

LABELS = ("cyan", "magenta", "yellow")


@pytest.fixture(scope="module", params=["tf2", "tf1"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Classifier, Path]:
    """A classifier with a random head on a module of each format, and its bundle."""
    folder = tmp_path_factory.mktemp("export")
    write = write_pooling if request.param == "tf2" else write_pooling_tf1
    backbone = load_backbone(str(write(folder / "module")), cache_dir=folder / "cache")
    random = np.random.default_rng(0)
    kernel = random.normal(size=(backbone.feature_dim, 3)).astype(np.float32)
    classifier = Classifier(backbone, Head(kernel, random.normal(size=3).astype("f4")), LABELS)
    export(classifier, folder / "bundle")
    return classifier, folder / "bundle"


def images(count: int) -> np.ndarray:
    """Draw images of the module's size."""
    return np.random.default_rng(1).random((count, 32, 32, 3)).astype(np.float32)


def in_memory(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    """Score images with the classifier that was exported."""
    backbone: Backbone = classifier.backbone
    return classifier.head.probabilities(backbone.embed(tf.constant(pixels)).numpy())


@pytest.mark.parametrize("count", [1, 5])
def test_serving_default_agrees(exported: tuple[Classifier, Path], count: int) -> None:
    """`image` in, `prediction` out, to 1e-5, for one image and for several."""
    classifier, bundle = exported
    served = tf.saved_model.load(str(bundle)).signatures["serving_default"]
    (spec,) = served.structured_input_signature[1].values()
    assert (spec.name, spec.dtype, spec.shape.as_list()) == ("image", tf.float32, [None, 32, 32, 3])
    answer = served(image=tf.constant(images(count)))
    assert list(answer) == ["prediction"]
    assert answer["prediction"].numpy() == pytest.approx(
        in_memory(classifier, images(count)), abs=1e-5
    )


@pytest.mark.parametrize("count", [1, 3])
def test_serve_bytes_agrees(exported: tuple[Classifier, Path], count: int) -> None:
    """`image_bytes` in; the prediction is that of the decoded pixels, classes sorted by score."""
    classifier, bundle = exported
    contents = [jpeg(colour, seed=7) for colour in COLOURS.values()][:count]
    served = tf.saved_model.load(str(bundle)).signatures["serve_bytes"]
    answer = {k: v.numpy() for k, v in served(image_bytes=tf.constant(contents)).items()}
    decode = loader(classifier.backbone.image_size)
    expected = in_memory(classifier, np.stack([decode(item) for item in contents]))
    assert answer["prediction"] == pytest.approx(expected, abs=1e-5)
    for row in range(count):
        order = np.argsort(-expected[row])
        assert [name.decode() for name in answer["classes"][row]] == [LABELS[i] for i in order]
        assert answer["scores"][row] == pytest.approx(expected[row][order], abs=1e-5)


@pytest.mark.parametrize("count", [1, 5])
def test_a_tf1_client_reads_the_frozen_graph(exported: tuple[Classifier, Path], count: int) -> None:
    """Read the .pb, import it, feed `image`, fetch `final_result`, as label_image.py does."""
    classifier, bundle = exported
    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString((bundle / "frozen_graph.pb").read_bytes())
    assert [n.name for n in definition.node if n.op == "Placeholder"] == ["image"]
    assert not [n for n in definition.node if "Variable" in n.op or n.op == "ReadVariableOp"]
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(definition, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            scores = session.run("final_result:0", {"image:0": images(count)})
    assert scores == pytest.approx(in_memory(classifier, images(count)), abs=1e-5)


def test_labels_are_lines_inside_and_outside(exported: tuple[Classifier, Path]) -> None:
    """The line number is the class index; the SavedModel carries the file, and its digest."""
    lines = b"cyan\nmagenta\nyellow\n"
    assert (exported[1] / "labels.txt").read_bytes() == lines
    assert (exported[1] / "assets" / "labels.txt").read_bytes() == lines
    inside = tf.saved_model.load(str(exported[1])).describe_labels()
    assert [name.decode() for name in inside["labels"].numpy()] == list(LABELS)
    assert inside["sha256"].numpy().decode() == hashlib.sha256(lines).hexdigest()
