"""Whether a trained model may replace the one in service: fixed minima and paired tests.

Both models have answered the same test images, so only the images on which they differ tell them
apart: `fixed` ones (wrong before, right now) and `broken` ones (right before, wrong now).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc

from job.evaluate import Report

RESAMPLES = 10_000
SEED = 20_240_229  # any number, always the same one: the same images give the same interval


@dataclass(frozen=True, slots=True)
class LabelComparison:
    """One label's `n` test images in both models; `p_value` is adjusted as in `Comparison`."""

    label: str
    n: int
    fixed: int
    broken: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A new model against `version`, the one in service, on the same `n` test images.

    `difference_ci95` is the paired bootstrap interval of the new accuracy less the old one, in
    [-1,1]. `p_value` is that of the exact one-sided test of "the new model is worse", adjusted
    together with those of the labels. `fixed` and `broken` are names of images.
    """

    version: int
    n: int
    accuracy_before: float
    accuracy_after: float
    difference_ci95: tuple[float, float]
    p_value: float
    fixed: tuple[str, ...]
    broken: tuple[str, ...]
    per_label: tuple[LabelComparison, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model may be published; `reasons` has a sentence for each check that failed."""

    passed: bool
    reasons: tuple[str, ...]


def compare(
    version: int,
    names: Sequence[str],
    labels: Sequence[str],
    classes: np.ndarray,
    before_right: np.ndarray,
    after_right: np.ndarray,
) -> Comparison:
    """Compare two models on the same images; there is at least one.

    Args:
        version: the version in service.
        names: the images' names, n of them.
        labels: `labels[i]` names class index i.
        classes: true class indices, int `[n]`.
        before_right: whether the version in service takes each image for its class, bool `[n]`.
        after_right: the same of the new model.
    """
    fixed, broken = ~before_right & after_right, before_right & ~after_right
    groups = classes == np.arange(len(labels))[:, None]
    counts = groups.sum(axis=1), (groups & fixed).sum(axis=1), (groups & broken).sum(axis=1)
    return _compared(version, names, labels, before_right, after_right, counts)


def compare_labels(
    version: int,
    names: Sequence[str],
    labels: Sequence[str],
    before_right: np.ndarray,
    after_right: np.ndarray,
) -> Comparison:
    """Compare two models on the same images with any number of labels; there is at least one.

    Arguments as for `compare`, but `before_right` and `after_right` are bool `[n,c]`: whether each
    image is given each label, or is not, as it should be. All n images are a label's test images.
    An image counts as right when it is in all its labels.
    """
    fixed, broken = ~before_right & after_right, before_right & ~after_right
    counts = np.full(len(labels), len(names)), fixed.sum(axis=0), broken.sum(axis=0)
    before, after = np.asarray(before_right.all(axis=1)), np.asarray(after_right.all(axis=1))
    return _compared(version, names, labels, before, after, counts)


def _compared(
    version: int,
    names: Sequence[str],
    labels: Sequence[str],
    before_right: np.ndarray,
    after_right: np.ndarray,
    of_labels: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Comparison:
    """Test the whole, bool `[n]`, and each label's counts (images, fixed, broken), int `[c]`."""
    fixed, broken = ~before_right & after_right, before_right & ~after_right
    images, mended, lost = of_labels
    # The whole test set first, then the labels: one family of tests.
    p_values = holm(worse(np.append(fixed.sum(), mended), np.append(broken.sum(), lost)))
    counts = zip(labels, images, mended, lost, strict=True)
    per_label = tuple(
        LabelComparison(label, int(n), int(more), int(less), float(p_value))
        for (label, n, more, less), p_value in zip(counts, p_values[1:], strict=True)
    )
    return Comparison(
        version,
        len(names),
        float(before_right.mean()),
        float(after_right.mean()),
        bootstrap(int(fixed.sum()), int(broken.sum()), len(names)),
        float(p_values[0]),
        tuple(name for name, chosen in zip(names, fixed, strict=True) if chosen),
        tuple(name for name, chosen in zip(names, broken, strict=True) if chosen),
        per_label,
    )


def judge(
    report: Report,
    comparison: Comparison | None,
    *,
    min_accuracy: float | None,
    min_recall_per_class: float | None,
    alpha: float,
    min_mean_average_precision: float | None = None,
) -> Verdict:
    """Hold a model's test scores against the minima and against the version in service.

    `alpha` bounds the probability that a model which is as good as the one in service, overall and
    in every class, is refused by the comparison. A minimum that is None is not asked for; without
    a `comparison`, as for the first version, there is nothing to be worse than.
    """
    reasons = list(_below_minimum(report, min_accuracy, min_recall_per_class))
    reasons += _imprecise(report, min_mean_average_precision)
    if comparison is not None:
        reasons += _significantly_worse(comparison, alpha, report.accuracy_words)
    return Verdict(not reasons, tuple(reasons))


def _below_minimum(
    report: Report, min_accuracy: float | None, min_recall: float | None
) -> Iterator[str]:
    # Asked as "not at least", so that a figure that is no number is refused as well.
    if min_accuracy is not None and not report.accuracy >= min_accuracy:
        right = round(report.accuracy * report.n)
        yield (
            f"the {report.accuracy_words} is {report.accuracy:.4f} ({right} of {report.n} test "
            f"images), expected at least {min_accuracy:g}"
        )
    for score in report.per_label:
        if min_recall is None:
            break
        if not score.count:
            yield (
                f"the recall of {score.label!r} is unknown (none of the test images), "
                f"expected at least {min_recall:g}"
            )
        elif not score.recall >= min_recall:
            right = round(score.recall * score.count)
            yield (
                f"the recall of {score.label!r} is {score.recall:.4f} ({right} of {score.count} "
                f"test images), expected at least {min_recall:g}"
            )


def _imprecise(report: Report, minimum: float | None) -> Iterator[str]:
    name = "mean_average_precision"
    if minimum is not None and not report.metrics[name] >= minimum:
        yield (
            f"the mean average precision is {report.metrics[name]:.4f} on {report.n} test images, "
            f"expected at least {minimum:g}"
        )


def _significantly_worse(comparison: Comparison, alpha: float, accuracy: str) -> Iterator[str]:
    than = f"than version {comparison.version}, which is in service"
    if comparison.p_value <= alpha:
        low, high = comparison.difference_ci95
        yield (
            f"the {accuracy} is significantly worse {than}: {comparison.accuracy_after:.4f} after "
            f"{comparison.accuracy_before:.4f} on {comparison.n} test images (95 % interval of "
            f"the difference {low:+.4f} to {high:+.4f}), {len(comparison.broken)} newly wrong and "
            f"{len(comparison.fixed)} newly right, p = {comparison.p_value:.2g}, expected above "
            f"{alpha:g}"
        )
    for label in comparison.per_label:
        if label.p_value <= alpha:
            yield (
                f"{label.label!r} is recognised significantly worse {than}: of {label.n} test "
                f"images {label.broken} newly wrong and {label.fixed} newly right, "
                f"p = {label.p_value:.2g}, expected above {alpha:g}"
            )


def worse(fixed: np.ndarray, broken: np.ndarray) -> np.ndarray:
    """Give McNemar's exact one-sided p-values, float `[k]`, for counts int `[k]`.

    The probability that of `fixed + broken` images, each as likely to be the one as the other, at
    least `broken` are broken (McNemar 1947, with the binomial distribution itself).
    """
    # scipy.special, because scipy.stats takes half a second to import.
    p_values: np.ndarray = bdtrc(broken - 1.0, fixed + broken, 0.5)
    return p_values


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values, float `[k]`, for each other (Holm 1979): float `[k]` in [0,1].

    To refuse where an adjusted one is at most alpha refuses a true hypothesis in at most a share
    alpha of families, however the tests depend on each other.
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def bootstrap(fixed: int, broken: int, n: int) -> tuple[float, float]:
    """Give the 95 % percentile interval of (fixed - broken) / n over resamples of the n images.

    A resample of n images with replacement has multinomial numbers of fixed and broken ones, so
    those numbers are drawn and not the images. (Efron 1979.)
    """
    shares = np.array([fixed, broken, n - fixed - broken]) / n
    drawn = np.random.default_rng(SEED).multinomial(n, shares, RESAMPLES)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / n, [2.5, 97.5])
    return float(low), float(high)
