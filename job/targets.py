"""What a solver learns from: the labels of examples as an array, one an image or any number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from job.dataset import Example

# Gives the targets of n examples for c labels.
Targets = Callable[[Sequence[Example], int], np.ndarray]


def class_indices(examples: Sequence[Example], count: int) -> np.ndarray:
    """Give the class index of each example, int64 `[n]`.

    Raises ValueError for an example that has not exactly one label.
    """
    return np.array([example.class_index for example in examples], np.int64)


def target_matrix(examples: Sequence[Example], count: int) -> np.ndarray:
    """Give bool `[n,count]`: whether example i has label j; a row may have none, or all."""
    matrix = np.zeros((len(examples), count), bool)
    for row, example in enumerate(examples):
        matrix[row, list(example.targets)] = True
    return matrix
