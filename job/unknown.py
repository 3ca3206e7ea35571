"""When to say `unknown`: a threshold on the score of the best label, for images of no label.

A head must name one of its labels, whatever it is shown. Its best score, the largest softmax
probability of the tempered head, is lower for images of labels that it has never seen (Hendrycks
and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
Networks", ICLR 2017). There are no such images in the data, so each label is left out in turn:
a head that is fitted to the others, with its own temperature, scores the validation images of the
label that it does not know.

Other scores were measured by `benchmarks/unknown.py` (docs/unknown.md). On samples/clipart, asked
to let 10 % pass, the largest probability let 8.9 % of the images of truly new labels pass, at an
AUROC of 0.77. The largest logit (11.8 %, 0.77) and the energy of Liu et al., NeurIPS 2020 (12.6 %,
0.77) tell no better and grow with the number of labels, so that what is chosen with one left out
lets too many pass. The cosine to the nearest training embedding (10.4 %, 0.76) would need those in
the export. To drop a label's column from the fitted head, and fit none again, let 13.7 % pass:
that head was taught that those images are none of the others.

TensorFlow is not imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from job import lbfgs
from job.calibrate import fit_temperature
from job.errors import ConfigError, DataError
from job.evaluate import wilson
from job.fit import Pair
from job.head import Head

# With more labels than this, groups of them are left out: each group costs a fit.
MOST_GROUPS = 10

# A share of n images is a whole number of them: 0.29 * 100 is one in floats too.
ROUNDING = 1 + 1e-12

# Training pair, validation pair and number of classes to a head, not tempered.
Refit = Callable[[Pair, Pair, int], Head]


@dataclass(frozen=True, slots=True)
class Threshold:
    """An image is unknown where its best score, a probability, is below `value`, a float32.

    `false_accept_rate` is the share of `n_unknown` images, scored by heads that do not know their
    label, which pass as known; the interval is Wilson's at 95 %, for more images of such labels.
    `false_reject_rate` is the price: the share of `n_known` validation images that are unknown to
    the head itself. `auroc` is the probability that a known image scores above an unknown one.
    """

    value: float
    false_accept_rate: float
    false_accept_ci95: tuple[float, float]
    false_reject_rate: float
    auroc: float
    n_unknown: int
    n_known: int

    def rejects(self, scores: np.ndarray) -> np.ndarray:
        """Tell which rows of probabilities, float32 `[n,c]`, are unknown: bool `[n]`."""
        rejected: np.ndarray = ~(scores.max(axis=1) >= np.float32(self.value))
        return rejected

    def as_json(self) -> dict[str, Any]:
        """Give the fields as JSON can hold them; `value` is exact."""
        return asdict(self) | {"false_accept_ci95": list(self.false_accept_ci95)}


@dataclass(frozen=True, slots=True)
class Rejection:
    """What a threshold does to `n` test images, whose labels are all known.

    `false_reject_rate` is the share that it calls unknown, with Wilson's interval at 95 %;
    `passed_accuracy` the accuracy of the others, None where there are none.
    """

    threshold: Threshold
    false_reject_rate: float
    false_reject_ci95: tuple[float, float]
    passed_accuracy: float | None
    n: int

    def as_json(self) -> dict[str, Any]:
        """Give the threshold's figures, and those of the test images."""
        return self.threshold.as_json() | {
            "test_false_reject_rate": self.false_reject_rate,
            "test_false_reject_ci95": list(self.false_reject_ci95),
            "test_passed_accuracy": self.passed_accuracy,
            "n_test": self.n,
        }


def check_rate(rate: float, classes: int, n_validation: int) -> None:
    """See to it that a rate can be chosen, before anything is fitted.

    Raises DataError for fewer than 3 classes, and ConfigError where `rate` of `n_validation` images
    is less than one of them.
    """
    if classes < 3:
        raise DataError(
            f"--unknown-rate is {rate:g} and there are {classes} labels, expected 3 or more: with "
            "one left out, the others must be told from each other",
            hint="leave --unknown-rate out, or add a label, such as one for everything else",
        )
    if not _allowed(rate, n_validation):
        raise ConfigError(
            f"--unknown-rate is {rate:g}, which is less than one of the {n_validation} validation "
            "images",
            hint=f"give at least {math.ceil(1000 / n_validation) / 1000:g}, or more images to "
            "--validation-percent",
        )


def choose_threshold(
    train: Pair,
    validation: Pair,
    classes: int,
    head: Head,
    *,
    rate: float,
    l2: float,
    balanced: bool,
    temperature: float,
) -> Threshold:
    """Choose a threshold for a head that `lbfgs` fitted with the penalty `l2`; see `choose`."""

    def refit(train: Pair, validation: Pair, classes: int) -> Head:
        return lbfgs.fit(train, validation, classes, l2=l2, balanced=balanced).head

    return choose(refit, train, validation, classes, head.tempered(temperature), rate)


def choose(
    refit: Refit, train: Pair, validation: Pair, classes: int, head: Head, rate: float
) -> Threshold:
    """Choose a threshold that lets at most `rate`, in (0,1), of unknown images pass.

    `head`, tempered, was fitted to `train`. `refit` fits one to fewer classes as `head` was fitted
    to all: where no validation image is mistaken, a temperature cannot make up for a difference.
    The same input gives the same threshold.

    Raises what `check_rate` does, and DataError when every known validation image would be unknown.
    """
    check_rate(rate, classes, len(validation[1]))
    groups = min(classes, MOST_GROUPS)
    left_out = [np.arange(classes) % groups == group for group in range(groups)]
    of_unknown = np.concatenate([_unknown_scores(refit, train, validation, g) for g in left_out])
    of_known = head.probabilities(validation[0]).max(axis=1)
    found = measure(of_unknown, of_known, threshold_at(of_unknown, rate))
    if found.false_reject_rate == 1:
        raise DataError(
            f"to let at most {rate:g} of unknown images pass, all {found.n_known} known validation "
            "images would be unknown as well: the scores do not tell them apart",
            hint="raise --unknown-rate, or leave it out",
        )
    return found


def _unknown_scores(
    refit: Refit, train: Pair, validation: Pair, left_out: np.ndarray
) -> np.ndarray:
    """Give the best scores, float32 `[n]`, of validation images whose classes a head never saw.

    `left_out` bool `[c]` says which classes. Of more embeddings than `lbfgs` copies, every so many
    are taken: the heads are only there to score what they do not know.
    """
    features, classes = train
    index_of = np.cumsum(~left_out) - 1
    step = -(-features.size // lbfgs.PREPARED_ELEMENTS)
    rows = np.flatnonzero(~left_out[classes])[::step]
    known = ~left_out[validation[1]]
    side = validation[0][known], index_of[validation[1][known]]
    head = refit((features[rows], index_of[classes[rows]]), side, int((~left_out).sum()))
    temperature = fit_temperature(head.logits(side[0]), side[1])
    scores = head.tempered(temperature).probabilities(validation[0][~known])
    best: np.ndarray = scores.max(axis=1)
    return best


def threshold_at(of_unknown: np.ndarray, rate: float) -> float:
    """Give the lowest threshold that at most `rate`, in (0,1), of scores float32 `[n]` reach.

    It is the float32 right above the order statistic that must not pass any more.
    """
    falling = np.sort(of_unknown)[::-1]
    last = falling[_allowed(rate, len(falling))]
    return float(np.nextafter(last, np.float32(np.inf)))


def _allowed(rate: float, n: int) -> int:
    """Give how many of n images are at most the share `rate` of them."""
    return math.floor(rate * n * ROUNDING)


def measure(of_unknown: np.ndarray, of_known: np.ndarray, value: float) -> Threshold:
    """Give what a threshold does to best scores, float32 `[n]` and `[m]`, neither empty."""
    passed = int((of_unknown >= np.float32(value)).sum())
    return Threshold(
        value,
        passed / len(of_unknown),
        wilson(passed, len(of_unknown)),
        float((of_known < np.float32(value)).mean()),
        auroc(of_unknown, of_known),
        len(of_unknown),
        len(of_known),
    )


def auroc(of_unknown: np.ndarray, of_known: np.ndarray) -> float:
    """Give the probability that a known score is above an unknown one, ties counting half.

    It is the area under the ROC curve (Mann and Whitney 1947; Hanley and McNeil 1982).
    """
    rising = np.sort(of_unknown)
    below = np.searchsorted(rising, of_known, "left") + np.searchsorted(rising, of_known, "right")
    return float(below.mean() / (2 * len(rising)))


def reject(threshold: Threshold, scores: np.ndarray, classes: np.ndarray) -> Rejection:
    """Hold a threshold against test images: probabilities float32 `[n,c]`, classes int `[n]`."""
    rejected = threshold.rejects(scores)
    count, n = int(rejected.sum()), len(classes)
    right = scores.argmax(axis=1) == classes
    accuracy = float(right[~rejected].mean()) if count < n else None
    return Rejection(threshold, count / n, wilson(count, n), accuracy, n)
