"""The gate refuses what is worse, says why in numbers, and lets an equal model pass."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, norm

from job.evaluate import Report, evaluate
from job.gate import Comparison, Verdict, bootstrap, compare, holm, judge, worse

LABELS = tuple("abcdefgh")
N = 480
CLASSES = np.arange(N) % len(LABELS)
NAMES = [f"{LABELS[c]}/{i:03}.jpg" for i, c in enumerate(CLASSES)]


def report(classes: np.ndarray, taken: np.ndarray, labels: tuple[str, ...] = LABELS) -> Report:
    """Score a model that takes images of `classes` for the classes `taken`."""
    return evaluate(np.eye(len(labels), dtype=np.float32)[taken], classes, labels)


def verdict(comparison: Comparison | None, alpha: float = 0.05) -> Verdict:
    """Judge by the comparison alone."""
    return judge(
        report(CLASSES, CLASSES),
        comparison,
        min_accuracy=None,
        min_recall_per_class=None,
        alpha=alpha,
    )


def right_except(*wrong: int) -> np.ndarray:
    """Give bool [N], True but at `wrong`."""
    return ~np.isin(np.arange(N), wrong)


@pytest.mark.parametrize(
    ("fixed", "broken", "p_value"),
    [
        (0, 0, 1.0),
        (3, 0, 1.0),
        (0, 5, 1 / 32),
        (1, 1, 3 / 4),
        (1, 7, (8 + 1) / 256),
        (3, 7, (120 + 45 + 10 + 1) / 1024),
    ],
)
def test_mcnemar_is_the_binomial_tail(fixed: int, broken: int, p_value: float) -> None:
    """The p-value is the share of coin tosses with at least so many broken, counted by hand."""
    assert worse(np.array([fixed]), np.array([broken]))[0] == pytest.approx(p_value, rel=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_counts_every_toss(fixed: int, broken: int) -> None:
    """For any counts it is the sum of binomial coefficients over 2 to the power of the tosses."""
    tosses = fixed + broken
    tail = sum(comb(tosses, k) for k in range(broken, tosses + 1)) / 2**tosses
    assert worse(np.array([fixed]), np.array([broken]))[0] == pytest.approx(tail, rel=1e-9)


def test_holm_on_a_worked_example() -> None:
    """Four p-values times 4, 3, 2 and 1 in rising order, none below the one before it."""
    adjusted = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.6])) == pytest.approx([1.0, 1.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_lies_between_false_discovery_and_bonferroni(p_values: list[float]) -> None:
    """It adjusts no more than Bonferroni and no less than Benjamini and Hochberg's."""
    given_ = np.array(p_values)
    adjusted = holm(given_)
    assert (adjusted <= np.minimum(given_ * len(given_), 1) + 1e-12).all()
    assert (adjusted >= false_discovery_control(given_) - 1e-12).all()


@pytest.mark.parametrize(("fixed", "broken"), [(40, 10), (25, 25), (0, 60)])
def test_the_interval_is_the_normal_one_where_that_holds(fixed: int, broken: int) -> None:
    """With enough differing images the bootstrap agrees with the normal approximation."""
    n = 500
    difference = (fixed - broken) / n
    deviation = np.sqrt(((fixed + broken) / n - difference**2) / n)
    low, high = difference + deviation * norm.ppf([0.025, 0.975])
    assert bootstrap(fixed, broken, n) == pytest.approx((low, high), abs=0.003)


def test_the_interval_is_always_the_same() -> None:
    """The bootstrap is seeded, and a model that differs nowhere has an interval of no width."""
    assert bootstrap(7, 3, 100) == bootstrap(7, 3, 100)
    assert bootstrap(0, 0, 100) == (0.0, 0.0)


def test_a_comparison_counts_and_names_the_images() -> None:
    """Fixed and broken images are named in order, counted by label, and shift the accuracy."""
    before, after = right_except(0, 8, 1), right_except(3, 11, 19, 1, 27, 35)
    found = compare(17, NAMES, LABELS, CLASSES, before, after)
    assert (found.version, found.n) == (17, N)
    assert found.accuracy_before == pytest.approx(1 - 3 / N)
    assert found.accuracy_after == pytest.approx(1 - 6 / N)
    assert found.fixed == ("a/000.jpg", "a/008.jpg")
    assert found.broken == ("d/003.jpg", "d/011.jpg", "d/019.jpg", "d/027.jpg", "d/035.jpg")
    counts = {label.label: (label.n, label.fixed, label.broken) for label in found.per_label}
    assert counts == dict.fromkeys(LABELS, (60, 0, 0)) | {"a": (60, 2, 0), "d": (60, 0, 5)}
    low, high = found.difference_ci95
    assert low < -3 / N < high
    # By hand: the label's 1/32 times nine tests; the overall (21 + 7 + 1)/128 times eight is 1.
    assert found.per_label[3].p_value == pytest.approx(9 / 32)
    assert found.p_value == 1.0


def test_a_label_without_test_images_is_no_evidence() -> None:
    """A class that no test image has gets a p-value of 1."""
    found = compare(1, NAMES, (*LABELS, "new"), CLASSES, right_except(), right_except())
    assert (found.per_label[-1].n, found.per_label[-1].p_value) == (0, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_an_equal_model_passes(seed: int) -> None:
    """Models that differ on a tenth of the images, as many for the better as for the worse."""
    differing = np.random.default_rng(seed).permutation(N)[:48]
    before, after = right_except(*differing[::2]), right_except(*differing[1::2])
    assert verdict(compare(1, NAMES, LABELS, CLASSES, before, after)) == Verdict(True, ())


def test_a_better_model_passes() -> None:
    """The test has one side: to be significantly better is no reason to refuse."""
    before = right_except(*range(100))
    assert verdict(compare(1, NAMES, LABELS, CLASSES, before, right_except())).passed


def test_ten_points_worse_is_refused_overall() -> None:
    """48 of 480 images newly wrong, spread over all labels: the overall test refuses it."""
    found = compare(17, NAMES, LABELS, CLASSES, right_except(), right_except(*range(48)))
    refused = judge(
        report(CLASSES, CLASSES), found, min_accuracy=None, min_recall_per_class=None, alpha=0.01
    )
    assert not refused.passed
    (reason,) = refused.reasons
    for part in ("version 17", "0.9000", "1.0000", "480", "48 newly wrong", "expected above 0.01"):
        assert part in reason


def test_swapped_classes_are_refused_by_their_labels() -> None:
    """Two classes that change places are named, while no other label is."""
    swapped = ~np.isin(CLASSES, [2, 5])
    reasons = verdict(compare(17, NAMES, LABELS, CLASSES, right_except(), swapped)).reasons
    assert [reason[:3] for reason in reasons[1:]] == ["'c'", "'f'"]
    assert "60 newly wrong and 0 newly right" in reasons[1]


def test_a_label_that_breaks_while_others_mend_is_refused() -> None:
    """As many fixed as broken overall, yet one class lost 20 of its 60: its own test refuses."""
    before = right_except(*(i for i in range(20 * 8) if CLASSES[i] == 0))
    after = right_except(*(i for i in range(20 * 8) if CLASSES[i] == 1))
    found = compare(17, NAMES, LABELS, CLASSES, before, after)
    assert found.accuracy_before == found.accuracy_after
    (reason,) = verdict(found).reasons
    assert reason.startswith("'b' is recognised significantly worse")


def test_alpha_is_the_bound() -> None:
    """The very p-value is refused, anything below it is not."""
    # One label and eight broken images of it: both tests give 2/256 after adjustment.
    classes = np.zeros(20, int)
    after = np.arange(20) >= 8
    found = compare(1, [str(i) for i in range(20)], ("a",), classes, np.ones(20, bool), after)
    assert found.p_value == found.per_label[0].p_value == 2 / 256
    assert len(verdict(found, alpha=2 / 256).reasons) == 2
    assert verdict(found, alpha=2 / 257).passed


@pytest.mark.parametrize(("minimum", "passed"), [(None, True), (0.9, True), (0.9001, False)])
def test_the_minimum_accuracy_is_inclusive(minimum: float | None, passed: bool) -> None:
    """Nine of ten images are enough for 0.9; a refusal has both figures and the counts."""
    classes = np.zeros(10, int)
    taken = (np.arange(10) == 4).astype(int)
    judged = judge(
        report(classes, taken, ("a", "b")),
        None,
        min_accuracy=minimum,
        min_recall_per_class=None,
        alpha=0.05,
    )
    assert judged.passed is passed
    if not passed:
        assert judged.reasons == (
            "the accuracy is 0.9000 (9 of 10 test images), expected at least 0.9001",
        )


def test_every_class_needs_its_recall() -> None:
    """A label below the minimum and one that was not tested are named, a good one is not."""
    classes = np.array([0, 0, 0, 0, 1, 1, 1])
    taken = np.array([0, 0, 0, 1, 1, 1, 0])
    judged = judge(
        report(classes, taken, ("good", "poor", "absent")),
        None,
        min_accuracy=None,
        min_recall_per_class=0.75,
        alpha=0.05,
    )
    assert judged.reasons == (
        "the recall of 'poor' is 0.6667 (2 of 3 test images), expected at least 0.75",
        "the recall of 'absent' is unknown (none of the test images), expected at least 0.75",
    )


def test_without_a_version_in_service_only_the_minima_count() -> None:
    """The first version has nothing to be worse than."""
    assert verdict(None) == Verdict(True, ())
