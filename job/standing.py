"""How far a fine-tuning run is, what it needs to go on, and what comes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from job.backbone import Backbone
from job.feed import FinetuneData, Side
from job.head import Head
from job.recipe import FinetuneOptions
from job.trainable import Trainable

# Given the `arrays` and the `meta` of a `State`.
Checkpoint = Callable[[dict[str, np.ndarray], dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class State:
    """All that a run needs to go on: `arrays`, and `meta`, an object that JSON can hold."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Give the shape of each array."""
        return {name: value.shape for name, value in self.arrays.items()}


@dataclass(frozen=True, slots=True)
class Finetuned:
    """The weights that validated best.

    `validation_loss` (nats) and `validation_accuracy` are theirs, `start_loss` is the head's that
    training began with, `best_step` how many steps they took (0: none did better than the start)
    and `steps` how many were taken.
    """

    backbone: Backbone
    head: Head
    validation_loss: float
    validation_accuracy: float
    start_loss: float
    best_step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run is; `stale` counts the epochs since the validation loss fell last."""

    step: int = 0
    start_loss: float = 0.0
    best_loss: float = 0.0
    best_accuracy: float = 0.0
    best_step: int = 0
    stale: int = 0


def origin_of(
    trainable: Trainable, head: Head, data: FinetuneData, options: FinetuneOptions
) -> str:
    """Give a SHA-256, in hex, of what a run depends on; of images the numbers and classes."""
    digest = hashlib.sha256(repr((tf.__version__, trainable.digest(), options)).encode())
    sides: tuple[Side, ...] = (data.train, data.validation)
    for array in (head.kernel, head.bias, *(a for s in sides for a in (s.rows, s.classes))):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
