"""How good a head is: scores on examples that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label's precision and recall in [0,1] (0 where undefined) and its number of examples."""

    label: str
    precision: float
    recall: float
    count: int

    def figures(self) -> dict[str, float]:
        """Give the scores by name, as a table shows them."""
        return {"precision": self.precision, "recall": self.recall}


@dataclass(frozen=True, slots=True)
class Report:
    """Scores of a model on n examples.

    `metrics` holds the value of every entry of `METRICS`; `accuracy_ci95` the Wilson interval of
    the accuracy; `confusion[i, j]` how many examples of class i were taken for class j, None where
    an example has any number of labels. `accuracy_name` is the metric that counts examples which
    are wholly right.
    """

    n: int
    metrics: dict[str, float]
    accuracy_ci95: tuple[float, float]
    per_label: tuple[LabelScore, ...]
    confusion: np.ndarray | None = None
    accuracy_name: str = "accuracy"

    @property
    def accuracy(self) -> float:
        """The share of examples that are right: the true class, or exactly the true labels."""
        return self.metrics[self.accuracy_name]

    @property
    def accuracy_words(self) -> str:
        """What the accuracy is called, as words."""
        return self.accuracy_name.replace("_", " ")

    def as_json(self, prefix: str) -> dict[str, object]:
        """Give the figures under `<prefix>_<metric>` names, rounded to 6 decimals."""
        figures: dict[str, object] = {
            f"{prefix}_{name}": round(value, 6) for name, value in self.metrics.items()
        }
        figures[f"{prefix}_{self.accuracy_name}_ci95"] = [
            round(bound, 6) for bound in self.accuracy_ci95
        ]
        figures[f"n_{prefix}"] = self.n
        return figures


def accuracy(scores: np.ndarray, classes: np.ndarray) -> float:
    """Give the share of rows of `scores` `[n,c]` that are largest at the true class."""
    return float((scores.argmax(axis=1) == classes).mean())


def balanced_accuracy(scores: np.ndarray, classes: np.ndarray) -> float:
    """Give the mean recall over the classes that occur: accuracy if all were equally common."""
    hit = scores.argmax(axis=1) == classes
    return float(np.mean([hit[classes == present].mean() for present in np.unique(classes)]))


def log_loss(scores: np.ndarray, classes: np.ndarray) -> float:
    """Give the mean of -log p(true class) in nats, p being kept above 1e-12."""
    true = scores[np.arange(len(classes)), classes].astype(np.float64)
    return float(-np.log(np.maximum(true, 1e-12)).mean())


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "log_loss": log_loss,
}


def evaluate(scores: np.ndarray, classes: np.ndarray, labels: tuple[str, ...]) -> Report:
    """Score probabilities float `[n,c]` against class indices int `[n]`; n is at least 1."""
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (classes, scores.argmax(axis=1)), 1)
    right = confusion.diagonal()
    given, taken = confusion.sum(axis=1), confusion.sum(axis=0)
    per_label = tuple(
        LabelScore(
            label,
            float(right[i] / max(taken[i], 1)),
            float(right[i] / max(given[i], 1)),
            int(given[i]),
        )
        for i, label in enumerate(labels)
    )
    metrics = {name: metric(scores, classes) for name, metric in METRICS.items()}
    interval = wilson(int(right.sum()), len(classes))
    return Report(len(classes), metrics, interval, per_label, confusion)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Give the 95 % Wilson score interval of a proportion (Wilson 1927, equation 4)."""
    share, square = hits / n, Z95 * Z95
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
