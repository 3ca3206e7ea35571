"""What an export answers to the golden images, against what the trained model answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from job.export import FROZEN_INPUT, FROZEN_OUTPUT
from job.tflite import TFLiteModel
from job.tflite_metadata import labels


@dataclass(frozen=True, slots=True)
class Expected:
    """What a version says of itself.

    Row i of `pixels`, float32 `[n,h,w,3]` in [0,1], and of `predictions`, float32 `[n,c]`, belongs
    to the image `names[i]`, whose file is `contents[i]`. `labels[j]` names class index j. The
    tolerances are of a probability; `tflite_tolerance` is that of each TFLite file, by its name.
    An image whose best score does not reach `unknown` is of no label; None: it always is of one.
    `thresholds`, float32 `[c]`, say which labels are selected; None: none are.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    contents: tuple[bytes, ...]
    pixels: np.ndarray
    predictions: np.ndarray
    tolerance: float
    tflite_tolerance: dict[str, float]
    unknown: float | None = None
    thresholds: np.ndarray | None = None


def image_problems(signatures: Any, expected: Expected) -> Iterator[str]:
    """Ask `serving_default` of a loaded SavedModel, one image at a time and all at once."""

    def ask(rows: slice) -> dict[str, Any]:
        answer: dict[str, Any] = signatures["serving_default"](
            image=tf.constant(expected.pixels[rows])
        )
        return answer

    for size in _batch_sizes(expected):
        answer = _ask_all(ask, len(expected.names), size)
        door = f"saved_model.pb: serving_default at batch size {size}"
        yield from _parity(door, answer["prediction"], expected, expected.tolerance)


def bytes_problems(signatures: Any, expected: Expected) -> Iterator[str]:
    """Ask `serve_bytes` of a loaded SavedModel, one image at a time and all at once."""
    contents = np.array(expected.contents, object)

    def ask(rows: slice) -> dict[str, Any]:
        answer: dict[str, Any] = signatures["serve_bytes"](image_bytes=tf.constant(contents[rows]))
        return answer

    for size in _batch_sizes(expected):
        answer = _ask_all(ask, len(expected.names), size)
        door = f"saved_model.pb: serve_bytes at batch size {size}"
        yield from _parity(door, answer["prediction"], expected, expected.tolerance)
        yield from _ranking_problems(door, answer, expected)
        yield from _unknown_problems(door, answer, expected)
        yield from _selection_problems(door, answer, expected)


def frozen_problems(path: Path, expected: Expected) -> Iterator[str]:
    """Ask a frozen graph as a TF1 client does, one image at a time and all at once."""
    definition = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(definition, name="")
        with tf.compat.v1.Session(graph=graph) as session:

            def ask(rows: slice) -> dict[str, Any]:
                feed = {f"{FROZEN_INPUT}:0": expected.pixels[rows]}
                return {"prediction": session.run(f"{FROZEN_OUTPUT}:0", feed)}

            for size in _batch_sizes(expected):
                found = _ask_all(ask, len(expected.names), size)["prediction"]
                door = f"{path.name} at batch size {size}"
                yield from _parity(door, found, expected, expected.tolerance)


def tflite_problems(path: Path, expected: Expected) -> Iterator[str]:
    """Ask a TFLite model image by image, and read the labels inside it."""
    data = path.read_bytes()
    tolerance = float(expected.tflite_tolerance[path.name])
    found = TFLiteModel(data).probabilities(expected.pixels)
    yield from _parity(path.name, found, expected, tolerance)
    if (inside := labels(data)) != expected.labels:
        yield f"{path.name} has the labels {list(inside)}, expected {list(expected.labels)}"


def _batch_sizes(expected: Expected) -> list[int]:
    return sorted({1, len(expected.names)})


def _ask_all(
    ask: Callable[[slice], dict[str, Any]], count: int, size: int
) -> dict[str, np.ndarray]:
    """Ask for `count` images, `size` at a time, and join the answers by output name."""
    answers = [ask(slice(start, start + size)) for start in range(0, count, size)]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def _parity(door: str, found: np.ndarray, expected: Expected, tolerance: float) -> Iterator[str]:
    """Say which golden prediction is furthest off, if any is by more than `tolerance`."""
    wanted = expected.predictions
    if found.shape != wanted.shape:
        yield f"{door} gives predictions of shape {found.shape}, expected {wanted.shape}"
        return
    off = np.nan_to_num(np.abs(found - wanted), nan=np.inf)
    row, column = np.unravel_index(off.argmax(), off.shape)
    if off[row, column] > tolerance:
        yield (
            f"{door} gives {expected.labels[column]!r} {found[row, column]:.6f} for "
            f"{expected.names[row]!r}, expected the trained model's "
            f"{wanted[row, column]:.6f} within {tolerance:g}"
        )


def _ranking_problems(
    door: str, answer: dict[str, np.ndarray], expected: Expected
) -> Iterator[str]:
    """Check that `classes` names every label once, best first, with its own score in `scores`."""
    class_of = {label.encode(): index for index, label in enumerate(expected.labels)}
    for names, scores, prediction in zip(
        answer["classes"], answer["scores"], answer["prediction"], strict=True
    ):
        if sorted(names) != sorted(class_of):
            yield f"{door} gives the classes {list(names)}, expected {list(class_of)}"
            return
        own = prediction[[class_of[name] for name in names]]
        if (np.diff(scores) > 0).any() or not np.array_equal(scores, own):
            yield f"{door} gives the scores {scores} for {list(names)}, expected {own}, falling"
            return


def _unknown_problems(
    door: str, answer: dict[str, np.ndarray], expected: Expected
) -> Iterator[str]:
    """Check that `unknown` is there where a threshold is, and agrees with the answer's scores."""
    found, threshold = answer.get("unknown"), expected.unknown
    if (found is None) != (threshold is None):
        given, has = ("no", "one") if found is None else ("an", "none")
        yield f"{door} gives {given} output `unknown`, and for a threshold manifest.json has {has}"
        return
    if found is None or threshold is None:
        return
    best = answer["prediction"].max(axis=1)
    wanted = ~(best >= np.float32(threshold))
    if found.dtype != bool or found.shape != wanted.shape:
        yield f"{door} gives {found.dtype} {found.shape} for `unknown`, expected bool {best.shape}"
        return
    for row in np.flatnonzero(found != wanted):
        yield (
            f"{door} says unknown={found[row]} for {expected.names[row]!r}, whose best score is "
            f"{best[row]:.6f}, expected {wanted[row]} by the threshold {threshold:.6f}"
        )
        return


def _selection_problems(
    door: str, answer: dict[str, np.ndarray], expected: Expected
) -> Iterator[str]:
    """Check that `selected` is where the scores reach the thresholds, and only there if at all."""
    found = answer.get("selected")
    if expected.thresholds is None:
        if found is not None:
            yield f"{door} selects labels, expected no thresholds"
    elif found is None or not np.array_equal(found, answer["prediction"] >= expected.thresholds):
        limits = expected.thresholds.tolist()
        yield f"{door} selects {found}, expected the scores that are at least {limits}"
