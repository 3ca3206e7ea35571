"""Labels that cannot be told apart.

Imports no TensorFlow.
"""

from __future__ import annotations

import numpy as np

from job.doctor.findings import Alike
from job.evaluate import wilson

# Two labels are alike where, at the best, one image in five is taken for the other: the upper end
# of the interval is asked, so that labels of few images are not called alike for lack of proof.
MOST_ACCURACY = 0.8

# Images that a label needs on this count to be compared.
LEAST_IMAGES = 5


def alike(probabilities: np.ndarray, classes: np.ndarray) -> tuple[Alike, ...]:
    """Give the pairs of labels that are alike, the worst first.

    `probabilities` `[n,c]` are cross-validated, `classes` int `[n]` the labels given. Of a pair
    each image is taken for the label of the larger probability relative to how common the label is:
    a rare label is not overruled for being rare. A tie is half a hit. The interval of the balanced
    accuracy, half the sum of two independent recalls, is put together from their Wilson intervals
    by the method of variance estimates recovery (Zou and Donner 2008, "Construction of confidence
    limits about effect measures: a general approach", Statistics in Medicine 27). Pairs
    are given whose interval ends below MOST_ACCURACY; labels of fewer than LEAST_IMAGES are left
    out. Shots of one burst count as images of their own, which makes the interval too narrow.
    """
    count = probabilities.shape[1]
    counts = np.bincount(classes, minlength=count)
    common = [int(label) for label in np.flatnonzero(counts >= LEAST_IMAGES)]
    relative = probabilities / np.maximum(counts, 1)
    hits = np.zeros((count, count))
    for label in common:
        own = relative[classes == label]
        mine = own[:, [label]]
        hits[label] = (mine > own).sum(axis=0) + (mine == own).sum(axis=0) / 2
    found = [
        _pair(first, second, hits, counts)
        for place, first in enumerate(common)
        for second in common[place + 1 :]
    ]
    return tuple(
        sorted(
            (pair for pair in found if pair.accuracy_ci95[1] < MOST_ACCURACY),
            key=lambda pair: (pair.accuracy, -pair.count, pair.first, pair.second),
        )
    )


def _pair(first: int, second: int, hits: np.ndarray, counts: np.ndarray) -> Alike:
    recalls, lows, highs = [], [], []
    for label, other in ((first, second), (second, first)):
        recall = hits[label, other] / counts[label]
        low, high = wilson(hits[label, other], int(counts[label]))
        recalls.append(recall)
        lows.append(recall - low)
        highs.append(high - recall)
    accuracy = sum(recalls) / 2
    interval = (accuracy - np.hypot(*lows) / 2, accuracy + np.hypot(*highs) / 2)
    ends = (float(max(0.0, interval[0])), float(min(1.0, interval[1])))
    return Alike(first, second, float(accuracy), ends, int(counts[first] + counts[second]))
