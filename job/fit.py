"""What every solver is given, and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from job.checkpoints import Checkpoints
from job.head import Head

# Features float32 `[n,d]` and targets: class indices int `[n]` for a softmax; for a sigmoid bool
# `[n,c]`, whether each image has each label.
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Fit:
    """A head that a solver found.

    `loss` is the training objective (mean log loss plus penalty), `validation_loss` the mean log
    loss on the validation examples, `gradient_norm` the largest absolute component of the
    objective's gradient at the head, `iterations` those of the solver, all penalties together.
    Fine-tuning, whose objective changes from step to step, gives None for the first and the third.
    """

    head: Head
    l2: float
    loss: float | None
    validation_loss: float
    gradient_norm: float | None
    iterations: int


class Observe(Protocol):
    """Takes scores, by name, of a side of the split (train or validation) after so many steps."""

    def __call__(self, side: str, step: int, **values: float) -> None:
        """Take them."""


def _ignore(side: str, step: int, **values: float) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Session:
    """Where a solver says how it gets on, and keeps its state.

    `advance` is told of steps of the solver's own kind, `observe` of scores on the way.
    """

    advance: Callable[[int], None] = lambda count: None
    observe: Observe = _ignore
    checkpoints: Checkpoints = field(default_factory=Checkpoints)


def class_weights(classes: np.ndarray, count: int) -> np.ndarray:
    """Give float64 `[count]`: what an example of each class weighs so that all classes weigh alike.

    `classes` int `[n]` are the examples' class indices. The weight is n / (count * examples of the
    class), which is `class_weight="balanced"` of scikit-learn; 0 for a class without examples.
    """
    examples = np.bincount(classes, minlength=count)
    return np.where(examples, len(classes) / (count * np.maximum(examples, 1)), 0.0)


def label_weights(targets: np.ndarray, count: int) -> np.ndarray:
    """Give float64 `[2,count]`: what an image without, and with, each label weighs in its loss.

    `targets` are bool `[n,count]`. The weights are those of `class_weights` for each label's own
    two classes, so that a rare label is not drowned by the images without it.
    """
    columns = (class_weights(targets[:, label].astype(int), 2) for label in range(count))
    return np.array(list(columns)).T
