"""Images with any number of labels: where each label is cut off, and how good that is.

A label is selected for an image when its score is at least its threshold. TensorFlow is not
imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from job.errors import DataError
from job.evaluate import LabelScore, Report, wilson

# The threshold of a label that no validation image has: the more probable of yes and no.
NO_EVIDENCE = 0.5

# What the share of images that are right in all labels is called among the metrics.
ACCURACY = "subset_accuracy"


@dataclass(frozen=True, slots=True)
class MultilabelScore(LabelScore):
    """A label's precision and recall at its threshold, and its average precision, all in [0,1]."""

    average_precision: float
    threshold: float

    def figures(self) -> dict[str, float]:
        """Give the scores by name, as a table shows them."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "average_precision": self.average_precision,
            "threshold": self.threshold,
        }


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image, by its row, and a label that it was given wrongly or (`missed`) was not given."""

    row: int
    label: int
    score: float
    missed: bool


@dataclass(frozen=True, slots=True)
class Ranking:
    """One label's images in the order of falling scores, at every place where they can be cut.

    Cut k selects `selected[k]` images, of which `hits[k]` have the label, and its least score is
    `scores[k]`; images of the same score are on the same side of every cut. `total` have the label.
    """

    scores: np.ndarray
    selected: np.ndarray
    hits: np.ndarray
    total: int


def rank(scores: np.ndarray, targets: np.ndarray) -> Ranking:
    """Rank n images by one label's scores, float `[n]`; `targets` bool `[n]` is who has it."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    cuts = np.flatnonzero(np.append(falling[1:] < falling[:-1], True))[: len(scores)]
    hits = np.cumsum(targets[order])
    return Ranking(falling[cuts], cuts + 1, hits[cuts], int(targets.sum()))


def best_thresholds(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Give float32 `[c]`, each label's threshold with the largest F1 = 2 TP / (2 TP + FP + FN).

    `scores` are float32 `[n,c]` in [0,1], `targets` bool `[n,c]`, of images that the model was not
    fitted to. A threshold lies half-way between the scores that it parts, or half-way down to 0.
    Of several with the same F1 it is the largest, which selects the fewest images. NO_EVIDENCE
    where no image has the label.
    """
    found = np.full(scores.shape[1], NO_EVIDENCE, np.float32)
    for label in np.flatnonzero(targets.any(axis=0)):
        ranking = rank(scores[:, label], targets[:, label])
        best = int(np.argmax(2 * ranking.hits / (ranking.selected + ranking.total)))
        above = ranking.scores[best]
        below = np.float32(ranking.scores[best + 1] if best + 1 < len(ranking.scores) else 0)
        half = below + (above - below) / 2
        found[label] = half if half > below else above  # neighbours have nothing between them
    return found


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Give sum_k (R_k - R_k-1) P_k over all cuts k, by falling scores, without interpolation.

    `scores` are float `[n]`, `targets` bool `[n]`. It is scikit-learn's `average_precision_score`.
    0 where no image has the label.
    """
    ranking = rank(scores, targets)
    steps = np.diff(ranking.hits, prepend=0)
    return float((steps * ranking.hits / ranking.selected).sum() / max(ranking.total, 1))


def mean_average_precision(scores: np.ndarray, targets: np.ndarray, selected: np.ndarray) -> float:
    """Give the mean of `average_precision` over the labels that occur; 0 where none does."""
    labels = np.flatnonzero(targets.any(axis=0))
    return _mean([average_precision(scores[:, i], targets[:, i]) for i in labels])


def micro_f1(scores: np.ndarray, targets: np.ndarray, selected: np.ndarray) -> float:
    """Give F1 over all images and labels together; 0 where nothing is there or selected."""
    return float(2 * (selected & targets).sum() / max(int(selected.sum() + targets.sum()), 1))


def macro_f1(scores: np.ndarray, targets: np.ndarray, selected: np.ndarray) -> float:
    """Give the mean F1 of the labels that occur; 0 where none does."""
    labels = np.flatnonzero(targets.any(axis=0))
    return _mean([micro_f1(scores, targets[:, i], selected[:, i]) for i in labels])


def subset_accuracy(scores: np.ndarray, targets: np.ndarray, selected: np.ndarray) -> float:
    """Give the share of images with exactly the true labels: scikit-learn's `accuracy_score`."""
    return float((selected == targets).all(axis=1).mean())


def binary_log_loss(scores: np.ndarray, targets: np.ndarray) -> float:
    """Give the mean over images of the labels' summed log loss, nats; p is kept above 1e-12."""
    wide = scores.astype(np.float64)
    true = np.where(targets, wide, 1 - wide)
    return float(-np.log(np.maximum(true, 1e-12)).sum(axis=1).mean())


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0


# Each is given scores float `[n,c]`, targets and what is selected, both bool `[n,c]`.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "mean_average_precision": mean_average_precision,
    "micro_f1": micro_f1,
    "macro_f1": macro_f1,
    ACCURACY: subset_accuracy,
    "log_loss": lambda scores, targets, selected: binary_log_loss(scores, targets),
}


def evaluate(
    scores: np.ndarray, targets: np.ndarray, labels: tuple[str, ...], thresholds: np.ndarray
) -> Report:
    """Score probabilities float `[n,c]` against targets bool `[n,c]`; n is at least 1.

    `thresholds` are float32 `[c]`.
    """
    selected = scores >= thresholds
    right = (selected & targets).sum(axis=0)
    given, taken = targets.sum(axis=0), selected.sum(axis=0)
    per_label = tuple(
        MultilabelScore(
            label,
            float(right[i] / max(taken[i], 1)),
            float(right[i] / max(given[i], 1)),
            int(given[i]),
            average_precision(scores[:, i], targets[:, i]),
            float(thresholds[i]),
        )
        for i, label in enumerate(labels)
    )
    metrics = {name: metric(scores, targets, selected) for name, metric in METRICS.items()}
    exact = int((selected == targets).all(axis=1).sum())
    interval = wilson(exact, len(targets))
    return Report(len(targets), metrics, interval, per_label, accuracy_name=ACCURACY)


def mistakes(scores: np.ndarray, targets: np.ndarray, selected: np.ndarray) -> list[Mistake]:
    """Give every label that an image was given wrongly or was not given, the surest first.

    The score of a label that was given is how sure that is, and 1 less the score of one that was
    not. Equally sure ones are in the order of rows and labels.
    """
    rows, columns = np.nonzero(selected != targets)
    values, missed = scores[rows, columns], targets[rows, columns]
    order = np.argsort(-np.where(missed, 1 - values, values), kind="stable")
    return [
        Mistake(int(rows[i]), int(columns[i]), float(values[i]), bool(missed[i])) for i in order
    ]


def check_targets(targets: np.ndarray, labels: tuple[str, ...]) -> None:
    """Check that of the training images some have each label and some have not.

    `targets` are bool `[n,c]`. Raises DataError: the bias of such a label would have no optimum.
    """
    counts = targets.sum(axis=0)
    for count, what in ((len(targets), "every"), (0, "no")):
        if found := [labels[i] for i in np.flatnonzero(counts == count)]:
            raise DataError(
                f"{what} training image has {', '.join(map(repr, found[:5]))}, expected some with "
                "each label and some without",
                hint="add images of the other kind, or leave the label out",
            )
