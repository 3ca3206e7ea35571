"""A trained classifier as files: one bundle that TensorFlow Serving and TF1 clients can read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from job.backbone import Backbone
from job.graphs import freeze, named_graph
from job.head import Head
from job.images import preprocess_batch

FROZEN_INPUT = "image"
FROZEN_OUTPUT = "final_result"


@dataclass(frozen=True, slots=True)
class Classifier:
    """All that an export is made of; `labels[i]` names class index i."""

    backbone: Backbone
    head: Head
    labels: tuple[str, ...]


class ServedModel(tf.Module):  # type: ignore[misc]
    """Backbone and head as one module, with the two serving signatures.

    `serving_default`: `image` float32 `[n,h,w,3]` in [0,1] gives `prediction` float32
    `[n,classes]`, softmax, in the order of `labels.txt`.
    `serve_bytes`: `image_bytes` string `[n]` (JPEG, PNG, GIF, BMP, WebP) gives the same
    `prediction`, and `classes` string `[n,classes]` with `scores` float32, the best first.

    The labels are inside as the constant behind `classes` and as the asset `assets/labels.txt`;
    `describe_labels()` of the loaded object gives them with the SHA-256 of that file.
    """

    def __init__(self, classifier: Classifier, labels_file: Path) -> None:
        super().__init__(name="regraft")
        self._backbone = classifier.backbone
        # Tracked under this name, so that the backbone's variables and tables are saved.
        self.backbone = classifier.backbone.module
        self.kernel = tf.Variable(classifier.head.kernel, trainable=False, name="kernel")
        self.bias = tf.Variable(classifier.head.bias, trainable=False, name="bias")
        self.labels = tf.constant(classifier.labels, tf.string)
        self.labels_file = tf.saved_model.Asset(str(labels_file))
        digest = hashlib.sha256(labels_file.read_bytes()).hexdigest()

        @tf.function(input_signature=[self.image_spec()])  # type: ignore[untyped-decorator]
        def serve_image(image: Any) -> dict[str, Any]:
            return {"prediction": self.predict(image)}

        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")]
        )
        def serve_bytes(image_bytes: Any) -> dict[str, Any]:
            image = preprocess_batch(image_bytes, self._backbone.image_size)
            prediction = self.predict(image)
            scores, order = tf.math.top_k(prediction, k=len(classifier.labels))
            return {
                "classes": tf.gather(self.labels, order),
                "scores": scores,
                "prediction": prediction,
            }

        @tf.function(input_signature=[])  # type: ignore[untyped-decorator]
        def describe_labels() -> dict[str, Any]:
            return {"labels": self.labels, "sha256": tf.constant(digest)}

        self.serve_image = serve_image
        self.serve_bytes = serve_bytes
        self.describe_labels = describe_labels

    def image_spec(self) -> Any:
        """Give the spec of the `image` input."""
        return tf.TensorSpec([None, *self._backbone.image_size, 3], tf.float32, name="image")

    def predict(self, image: Any) -> Any:
        """Give softmax scores float32 `[n,classes]` for images float32 `[n,h,w,3]` in [0,1]."""
        return tf.nn.softmax(self._backbone.embed(image) @ self.kernel + self.bias)


def write_saved_model(model: ServedModel, folder: Path) -> None:
    """Write the SavedModel with both signatures."""
    signatures = {"serving_default": model.serve_image, "serve_bytes": model.serve_bytes}
    tf.saved_model.save(model, str(folder), signatures=signatures)


def write_frozen_graph(model: ServedModel, folder: Path) -> None:
    """Write `frozen_graph.pb`: input `image`, output `final_result`, no variables."""
    function = tf.function(model.predict).get_concrete_function(model.image_spec())
    height, width = model.image_spec().shape[1:3]
    graph = named_graph(
        freeze(function), (height, width), source=FROZEN_INPUT, result=FROZEN_OUTPUT
    )
    (folder / "frozen_graph.pb").write_bytes(graph.SerializeToString(deterministic=True))


def write_labels(labels: tuple[str, ...], folder: Path) -> Path:
    """Write `labels.txt`: one label a line, the line number being the class index."""
    path = folder / "labels.txt"
    path.write_text("".join(f"{label}\n" for label in labels), "utf-8")
    return path


EXPORTERS: dict[str, Callable[[ServedModel, Path], None]] = {
    "saved_model": write_saved_model,
    "frozen_graph": write_frozen_graph,
}


def export(
    classifier: Classifier,
    folder: Path,
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write `labels.txt` and every format of `EXPORTERS` into `folder`, which is made."""
    folder.mkdir(parents=True)
    model = ServedModel(classifier, write_labels(classifier.labels, folder))
    for write in EXPORTERS.values():
        write(model, folder)
        advance(1)
