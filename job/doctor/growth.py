"""Would more images help, and of which label: learning curves.

Imports no TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from job.doctor.findings import Curve, CurvePoint, Wish
from job.doctor.folds import FOLDS, deal, fit_and_score
from job.evaluate import wilson

# Images that the curve is measured on, drawn at random, in groups, from more.
MOST_IMAGES = 20_000

# Of the images that a fold trains on, so many eighths at a time; all of them, `probabilities` has.
EIGHTHS = (1, 2, 3, 4, 6)
WHOLE = 8

# The exponents that are tried: between them lie the learning curves of classifiers that are found.
EXPONENTS = np.linspace(0.1, 1.0, 37)

BOOTSTRAPS = 400

# How many times the images of now accuracy is expected for.
TIMES = (2, 4)


@dataclass(frozen=True, slots=True)
class Trials:
    """What heads made of images that they had not seen, with more and more training images.

    `right` bool `[s,p]` has a row for each image looked at, of `groups` and `classes`, int64 `[s]`,
    and a column for each number of training images, `images` float64 `[p]`, ascending. The last
    column is of all that there are.
    """

    classes: np.ndarray
    groups: np.ndarray
    right: np.ndarray
    images: np.ndarray


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """Curves a - b * n^-c: `limit` a and `slope` b float64 `[k]`, `exponent` c float64 `[k]`."""

    limit: np.ndarray
    slope: np.ndarray
    exponent: np.ndarray

    def at(self, images: float) -> np.ndarray:
        """Give float64 `[k]` in [0,1], what the curves say for so many images."""
        value: np.ndarray = np.clip(self.limit - self.slope * images**-self.exponent, 0, 1)
        return value


def try_fractions(
    features: np.ndarray,
    classes: np.ndarray,
    groups: np.ndarray,
    probabilities: np.ndarray,
    *,
    seed: int = 0,
) -> Trials:
    """Fit heads to fractions of the images, each judged on images of none of its groups.

    `features` float32 `[n,w]` are those of `reduce.reduced`, `probabilities` `[n,c]` those of
    `folds.cross_validate`. Each fold is the test side once; of the rest, dealt to eight hands by
    label and group, heads get one hand, two and so on, so that a larger fraction has all of a
    smaller one. At most MOST_IMAGES are looked at.
    """
    count, n = probabilities.shape[1], len(classes)
    parts = max(1, -(-n // MOST_IMAGES))
    rows = np.flatnonzero(deal(classes, groups, parts, seed=seed) == 0)
    features, classes, groups = features[rows], classes[rows], groups[rows]
    fold_of = deal(classes, groups, FOLDS, seed=seed)
    right = np.zeros((len(rows), len(EIGHTHS) + 1), bool)
    right[:, -1] = probabilities[rows].argmax(axis=1) == classes
    images = np.zeros(len(EIGHTHS) + 1)
    images[-1] = n * (1 - 1 / FOLDS)
    for fold in range(FOLDS):
        test, rest = fold_of == fold, np.flatnonzero(fold_of != fold)
        hand = deal(classes[rest], groups[rest], WHOLE, seed=seed + fold)
        for place, eighths in enumerate(EIGHTHS):
            train = rest[hand < eighths]
            images[place] += len(train) / FOLDS
            if len(train):
                scores = fit_and_score(features[train], classes[train], features[test], count)
                right[test, place] = scores.argmax(axis=1) == classes[test]
    return Trials(classes, groups, right, images)


def fit_power_law(images: np.ndarray, accuracy: np.ndarray, exponents: np.ndarray) -> PowerLaw:
    """Fit a - b * n^-c to each row of `accuracy` `[k,p]` at `images` `[p]`, by least squares.

    The form is that of Figueroa, Zeng-Treitler, Kandula and Ngo 2012, "Predicting sample size
    required for classification performance". c is the best of `exponents`, b is at least 0 and a at
    most 1: more images do no harm, and no accuracy is above 1.
    """
    best = np.full(len(accuracy), np.inf)
    limit, slope, exponent = np.zeros_like(best), np.zeros_like(best), np.zeros_like(best)
    mean = accuracy.mean(axis=1)
    for c in exponents:
        x = images**-c
        apart = x - x.mean()
        b = np.maximum(0, -(accuracy @ apart) / max(float(apart @ apart), 1e-300))
        a = mean + b * x.mean()
        high = a > 1
        b = np.where(high, ((1 - accuracy) @ x) / (x @ x), b)
        a = np.where(high, 1.0, a)
        error = ((accuracy - a[:, None] + np.outer(b, x)) ** 2).sum(axis=1)
        better = error < best
        best = np.where(better, error, best)
        limit, slope = np.where(better, a, limit), np.where(better, b, slope)
        exponent = np.where(better, c, exponent)
    return PowerLaw(limit, slope, exponent)


def curve(trials: Trials, *, seed: int = 0) -> Curve:
    """Give accuracy as measured, and as expected for TIMES as many images.

    Measured intervals are Wilson's of as many trials as there are groups: copies of an image prove
    no more than one. Expected ones are the 2.5 and 97.5 % quantiles of the curves fitted to
    BOOTSTRAPS draws of the groups' weights (the Bayesian bootstrap, Rubin 1981). One image that
    every head has right and one that every head has wrong are drawn with them, as if seen: of no
    errors among few images, it does not follow that there are none. The intervals hold if more
    images are like those of now, and if a power law goes on as it began.
    """
    accuracy = trials.right.mean(axis=0)
    groups = np.unique(trials.groups, return_inverse=True)[1]
    count = int(groups.max()) + 1
    measured = tuple(
        _point(n, share, wilson(share * count, count))
        for n, share in zip(trials.images, accuracy, strict=True)
    )
    random = np.random.default_rng(seed)
    right = np.concatenate([trials.right, [[True], [False]] * np.ones((1, len(accuracy)), bool)])
    groups = np.concatenate([groups, [count, count + 1]])
    drawn = np.empty((BOOTSTRAPS, len(accuracy)))
    for place in range(BOOTSTRAPS):
        weights = random.standard_exponential(count + 2)[groups]
        drawn[place] = weights @ right / weights.sum()
    found = fit_power_law(trials.images, np.stack([accuracy, *drawn]), EXPONENTS)
    expected = []
    for images in np.multiply(TIMES, trials.images[-1]):
        values = found.at(float(images))
        low, high = np.quantile(values[1:], (0.025, 0.975))
        # Errors of all heads and none may put what was measured at the very end of what is drawn.
        ends = (min(low, values[0]), max(high, values[0]))
        expected.append(_point(images, values[0], ends))
    return Curve(measured, tuple(expected))


def _point(images: float, accuracy: float, interval: tuple[float, float]) -> CurvePoint:
    low, high = interval
    return CurvePoint(round(float(images)), float(accuracy), (float(low), float(high)))


def wishes(trials: Trials, probabilities: np.ndarray, classes: np.ndarray) -> tuple[Wish, ...]:
    """Give the labels that more images would help, the most helped first.

    A label's recall at each fraction is fitted with a - b * n^-c, c being that of the accuracy of
    all labels: a label alone has too few images to tell it. The gain is what this curve rises from
    the images of now to twice as many, and no more than is missing from the recall. It was measured
    with all labels growing at once, so that it is the gain if all are doubled; which label gains
    most is the same question. Labels without a gain are left out.
    """
    overall = fit_power_law(trials.images, trials.right.mean(axis=0)[None], EXPONENTS)
    now = float(trials.images[-1])
    given = []
    for label in np.unique(trials.classes).tolist():
        recalls = trials.right[trials.classes == label].mean(axis=0)
        found = fit_power_law(trials.images, recalls[None], overall.exponent)
        own = classes == label
        recall = float((probabilities[own].argmax(axis=1) == label).mean())
        gain = min(1 - recall, float((found.at(2 * now) - found.at(now))[0]))
        if gain > 0:
            given.append(Wish(label, int(own.sum()), recall, gain))
    return tuple(sorted(given, key=lambda wish: (-wish.gain, wish.label)))
