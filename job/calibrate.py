"""Do the scores mean what they say: reliability, calibration error and temperature scaling.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

# Beyond these a softmax of usual logits is one-hot, or uniform, to three digits.
LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.05, 20.0

BINS = 15


@dataclass(frozen=True, slots=True)
class Bin:
    """The examples whose confidence, the largest score, is in (`low`, `high`].

    `count` is how many they are, `confidence` their mean confidence and `right` the number that
    were classified rightly. Where an image has any number of labels an example is an image and a
    label, its confidence the score, and `right` the number that have the label.
    """

    low: float
    high: float
    count: int
    confidence: float
    right: int


def fit_temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """Give the T that minimises the mean log loss of softmax(logits / T); Guo et al., section 4.2.

    `logits` are float `[n,c]`, `classes` int `[n]`, of examples the head was not fitted to. The
    loss is convex in 1/T, so it has one minimum, sought within LEAST_TEMPERATURE to
    GREATEST_TEMPERATURE. Where every true class has the largest logit (or n is 0) there is none:
    the loss falls with T all the way to 0, and 1.0 is given, which leaves the scores as they are.
    """
    if np.array_equal(logits.max(axis=1), logits[np.arange(len(classes)), classes]):
        return 1.0
    wide = logits.astype(np.float64)

    def loss(log_t: float) -> float:
        log_p = log_softmax(wide / np.exp(log_t), axis=1)
        return float(-log_p[np.arange(len(classes)), classes].mean())

    return _least(loss)


def fit_binary_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """Give the T that minimises the mean binary log loss of sigmoid(logits / T).

    `logits` are float `[n,c]`, `targets` bool `[n,c]`; all images and labels share the T. As for
    `fit_temperature`, 1.0 where the loss falls all the way: no logit is on the wrong side of 0.
    """
    signed = np.where(targets, logits, -logits).astype(np.float64)
    if (signed >= 0).all():
        return 1.0
    return _least(lambda log_t: float(np.logaddexp(0, -signed / np.exp(log_t)).mean()))


def _least(loss: Callable[[float], float]) -> float:
    """Give the temperature whose logarithm has the least loss."""
    bounds = (np.log(LEAST_TEMPERATURE), np.log(GREATEST_TEMPERATURE))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))


def reliability(scores: np.ndarray, classes: np.ndarray, bins: int = BINS) -> tuple[Bin, ...]:
    """Sort examples by confidence into equal-width bins over (0,1]; empty bins are left out.

    `scores` are probabilities float `[n,c]`, `classes` int `[n]`.
    """
    return _binned(scores.max(axis=1), scores.argmax(axis=1) == classes, bins)


def binary_reliability(
    scores: np.ndarray, targets: np.ndarray, bins: int = BINS
) -> tuple[Bin, ...]:
    """Sort every label's score of every image into equal-width bins over (0,1].

    `scores` are probabilities float `[n,c]`, `targets` bool `[n,c]`.
    """
    return _binned(scores.ravel(), targets.ravel(), bins)


def _binned(confidence: np.ndarray, right: np.ndarray, bins: int) -> tuple[Bin, ...]:
    edges = np.linspace(0.0, 1.0, bins + 1)
    # A sum of rounded exponentials may pass 1 by an ulp.
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    return tuple(
        Bin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            count=int((place == i).sum()),
            confidence=float(confidence[place == i].mean(dtype=np.float64)),
            right=int(right[place == i].sum()),
        )
        for i in np.unique(place)
    )


def bins_error(bins: tuple[Bin, ...]) -> float:
    """Give the expected calibration error, in [0,1], of what is in some bins, at least one.

    It is the mean over examples of |accuracy - mean confidence| of the bin that each is in: Guo et
    al., equation 3.
    """
    off = sum(abs(b.right - b.count * b.confidence) for b in bins)
    return off / sum(b.count for b in bins)
