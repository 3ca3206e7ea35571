"""A trained classifier as files: one bundle that TensorFlow Serving and TF1 clients can read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from job.backbone import Backbone
from job.formats import MAX_PIXELS
from job.graphs import insert
from job.head import Head
from job.images import preprocess_batch

LABELS = "labels.txt"
FROZEN_INPUT = "image"
FROZEN_OUTPUT = "final_result"

# What `head.ACTIVATIONS` are in a graph.
ACTIVATIONS: dict[str, Callable[..., Any]] = {"softmax": tf.nn.softmax, "sigmoid": tf.nn.sigmoid}


@dataclass(frozen=True, slots=True)
class Classifier:
    """All that an export is made of; `labels[i]` names class index i.

    `exact` and `max_pixels` are how images were decoded in training, as in `images.preprocess`.
    `unknown` is the best score, a probability, below which an image is of no label; None: it is
    always of one. `thresholds`, float32 `[c]`, are the scores from which on labels are selected;
    None: they are not, an image has one label.
    """

    backbone: Backbone
    head: Head
    labels: tuple[str, ...]
    exact: bool = False
    max_pixels: int = MAX_PIXELS
    unknown: float | None = None
    thresholds: np.ndarray | None = None

    def preprocess(self, contents: Any) -> Any:
        """Give image files, strings `[n]`, as float32 `[n,h,w,3]` in [0,1]."""
        size = self.backbone.image_size
        return preprocess_batch(contents, size, exact=self.exact, max_pixels=self.max_pixels)


class ServedModel(tf.Module):  # type: ignore[misc]
    """Backbone and head as one module, with the two serving signatures.

    `serving_default`: `image` float32 `[n,h,w,3]` in [0,1] gives `prediction` float32
    `[n,classes]`, after the head's activation, in the order of `labels.txt`.
    `serve_bytes`: `image_bytes` string `[n]` (JPEG, PNG, GIF, BMP, WebP) gives the same
    `prediction`, and `classes` string `[n,classes]` with `scores` float32, the best first. With a
    threshold it also gives `unknown`, bool `[n]`: the first of the `scores` does not reach it.
    Where labels are selected, `selected` bool `[n,classes]` says which, in the order of
    `labels.txt`.

    The backbone is inside as constants, folded as far as that goes, and once: it loads in a third
    of the time that variables take. Only the head is in `variables/`. The labels are inside as the
    constant behind `classes` and as the asset `assets/labels.txt`; `describe_labels()` of the
    loaded object gives them with the SHA-256 of that file, and the `thresholds` if there are any.
    """

    def __init__(self, classifier: Classifier, labels_file: Path) -> None:
        super().__init__(name="regraft")
        self._classifier = classifier
        self.kernel = tf.Variable(classifier.head.kernel, trainable=False, name="kernel")
        self.bias = tf.Variable(classifier.head.bias, trainable=False, name="bias")
        self.labels = tf.constant(classifier.labels, tf.string)
        self.labels_file = tf.saved_model.Asset(str(labels_file))
        digest = hashlib.sha256(labels_file.read_bytes()).hexdigest()

        # Autograph would rewrite every function on the way, which has no loops to find and takes
        # longer than the tracing.
        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[classifier.backbone.image_spec(FROZEN_INPUT)], autograph=False
        )
        def serve_image(image: Any) -> dict[str, Any]:
            return {"prediction": self.predict(image)}

        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False
        )
        def serve_bytes(image_bytes: Any) -> dict[str, Any]:
            return self.rank(self.predict(classifier.preprocess(image_bytes)))

        @tf.function(input_signature=[], autograph=False)  # type: ignore[untyped-decorator]
        def describe_labels() -> dict[str, Any]:
            return {"labels": self.labels, "sha256": tf.constant(digest), **self.limits()}

        self.serve_image = serve_image
        self.serve_bytes = serve_bytes
        self.describe_labels = describe_labels

    def judge(self, scores: Any) -> dict[str, Any]:
        """Give `unknown`, bool `[n]`, by scores float32 `[n,classes]`, the best first.

        Nothing without a threshold. A score that is no number does not reach it either.
        """
        threshold = self._classifier.unknown
        return {} if threshold is None else {"unknown": ~(scores[:, 0] >= threshold)}

    def predict(self, image: Any) -> Any:
        """Give scores float32 `[n,classes]` in [0,1] for images float32 `[n,h,w,3]` in [0,1]."""
        logits = self._classifier.backbone.embed(image) @ self.kernel + self.bias
        return ACTIVATIONS[self._classifier.head.activation](logits)

    def rank(self, prediction: Any) -> dict[str, Any]:
        """Give the outputs of `serve_bytes` for scores float32 `[n,classes]`."""
        scores, order = tf.math.top_k(prediction, k=len(self._classifier.labels))
        answer = {
            "classes": tf.gather(self.labels, order),
            "scores": scores,
            "prediction": prediction,
            **self.judge(scores),
        }
        if self._classifier.thresholds is not None:
            answer["selected"] = prediction >= self._classifier.thresholds
        return answer

    def limits(self) -> dict[str, Any]:
        """Give the `thresholds`, float32 `[classes]`, by that name, where there are any."""
        given = self._classifier.thresholds
        return {} if given is None else {"thresholds": tf.constant(given, tf.float32)}


def write_saved_model(classifier: Classifier, folder: Path) -> None:
    """Write the SavedModel with both signatures; `labels.txt` is in the folder already."""
    model = ServedModel(classifier, folder / LABELS)
    signatures = {"serving_default": model.serve_image, "serve_bytes": model.serve_bytes}
    tf.saved_model.save(model, str(folder), signatures=signatures)


def frozen_classifier(classifier: Classifier) -> Any:
    """Give a GraphDef with the input `image`, the output `final_result` and no variables."""
    backbone, head = classifier.backbone, classifier.head
    with tf.Graph().as_default() as graph:
        shape = backbone.image_spec().shape
        image = tf.compat.v1.placeholder(tf.float32, shape, name=FROZEN_INPUT)
        logits = insert(backbone.graph, image, "backbone") @ head.kernel + head.bias
        ACTIVATIONS[head.activation](logits, name=FROZEN_OUTPUT)
    return graph.as_graph_def()


def frozen_bytes(classifier: Classifier) -> bytes:
    """Give what `frozen_graph.pb` holds: the same bytes whenever the weights are the same."""
    contents: bytes = frozen_classifier(classifier).SerializeToString(deterministic=True)
    return contents


def write_frozen_graph(classifier: Classifier, folder: Path) -> None:
    """Write `frozen_graph.pb`: input `image`, output `final_result`, no variables."""
    (folder / "frozen_graph.pb").write_bytes(frozen_bytes(classifier))


def write_labels(classifier: Classifier, folder: Path) -> None:
    """Write `labels.txt`: one label a line, the line number being the class index."""
    (folder / LABELS).write_text("".join(f"{label}\n" for label in classifier.labels), "utf-8")


# In this order: the SavedModel takes the labels' file in.
EXPORTERS: dict[str, Callable[[Classifier, Path], None]] = {
    "labels": write_labels,
    "saved_model": write_saved_model,
    "frozen_graph": write_frozen_graph,
}


def export(
    classifier: Classifier,
    folder: Path,
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write every format of `EXPORTERS` into `folder`, which is made."""
    folder.mkdir(parents=True)
    for write in EXPORTERS.values():
        write(classifier, folder)
        advance(1)
