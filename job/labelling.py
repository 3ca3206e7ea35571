"""What `--task` decides: whether an image has one label or any number, and all that follows.

TASKS is the one place that tells the two apart; the rest of the job asks it. TensorFlow is not
imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from job import evaluate, multilabel
from job.calibrate import (
    Bin,
    binary_reliability,
    fit_binary_temperature,
    fit_temperature,
    reliability,
)
from job.evaluate import Report
from job.gate import Comparison, compare, compare_labels
from job.targets import Targets, class_indices, target_matrix

# Float32 `[c]`, a score from which on each label is selected; None where the best one is.
Thresholds = np.ndarray | None

# Given the version, the n images' names, the labels, the targets, and for each image (or for each
# of its labels) whether the version in service, and the new model, is right.
Compare = Callable[
    [int, Sequence[str], Sequence[str], np.ndarray, np.ndarray, np.ndarray], Comparison
]


@dataclass(frozen=True, slots=True)
class Labelling:
    """One way for images to have labels.

    `activation` is the head's. `targets` are what is learned, and `check` raises DataError where
    they cannot be. `choose` gives what a model takes images for by its scores `[n,c]`, in the shape
    of targets, so that `choose(...) == targets` is where it is right. `temperature` and
    `thresholds` are fitted on the validation images, by their logits and by their scores.

    `evaluate`, `log_loss` (by scores and targets), `compare` and `reliability` are those of the
    report and the gate. `accuracy_name` is the metric that counts images which are `wholly` right;
    a summary names those of `headline` beside it. `several` says that an image may have more labels
    than one, or none.
    """

    activation: str
    targets: Targets
    check: Callable[[np.ndarray, tuple[str, ...]], None]
    temperature: Callable[[np.ndarray, np.ndarray], float]
    thresholds: Callable[[np.ndarray, np.ndarray], Thresholds]
    choose: Callable[[np.ndarray, Thresholds], np.ndarray]
    evaluate: Callable[[np.ndarray, np.ndarray, tuple[str, ...], Thresholds], Report]
    log_loss: Callable[[np.ndarray, np.ndarray], float]
    compare: Compare
    reliability: Callable[[np.ndarray, np.ndarray], tuple[Bin, ...]]
    accuracy_name: str = "accuracy"
    headline: tuple[str, ...] = ()
    several: bool = False


def wholly(right: np.ndarray) -> np.ndarray:
    """Give bool `[n]`, whether images are right, for bool `[n]`, or `[n,c]` by their labels."""
    return np.asarray(right.reshape(len(right), -1).all(axis=1))


def _select(scores: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    selected: np.ndarray = scores >= _given(thresholds)
    return selected


def _given(thresholds: Thresholds) -> np.ndarray:
    if thresholds is None:
        raise ValueError("labels are selected by thresholds, and there are none")
    return thresholds


TASKS: dict[str, Labelling] = {
    "single": Labelling(
        activation="softmax",
        targets=class_indices,
        check=lambda classes, labels: None,
        temperature=fit_temperature,
        thresholds=lambda scores, classes: None,
        choose=lambda scores, _: scores.argmax(axis=1),
        evaluate=lambda scores, classes, labels, _: evaluate.evaluate(scores, classes, labels),
        log_loss=evaluate.log_loss,
        compare=compare,
        reliability=reliability,
    ),
    "multilabel": Labelling(
        activation="sigmoid",
        targets=target_matrix,
        check=multilabel.check_targets,
        temperature=fit_binary_temperature,
        thresholds=multilabel.best_thresholds,
        choose=_select,
        evaluate=lambda scores, targets, labels, thresholds: multilabel.evaluate(
            scores, targets, labels, _given(thresholds)
        ),
        log_loss=multilabel.binary_log_loss,
        # What the version in service says of labels that are gone is nothing to compare.
        compare=lambda version, names, labels, _, before, after: compare_labels(
            version, names, labels, before[:, : len(labels)], after
        ),
        reliability=binary_reliability,
        accuracy_name=multilabel.ACCURACY,
        headline=("mean_average_precision", "micro_f1", "macro_f1"),
        several=True,
    ),
}


def task_of(manifest: Mapping[str, Any]) -> str:
    """Give what a version was trained for, by its manifest; KeyError where that is no task."""
    # A version of before there was a choice does not name it.
    task = str(manifest["configuration"].get("task", "single"))
    if task not in TASKS:
        raise KeyError(task)
    return task


def thresholds_of(manifest: Mapping[str, Any], labels: Sequence[str]) -> Thresholds:
    """Give the thresholds in a version's manifest, float32 `[c]`; None where labels are single.

    Raises KeyError, ValueError or TypeError where they are not one for each label.
    """
    if task_of(manifest) == "single":
        return None
    found = np.array(manifest["thresholds"], np.float32)
    if found.shape != (len(labels),):
        raise ValueError(f"thresholds of the shape {found.shape} for {len(labels)} labels")
    return found
