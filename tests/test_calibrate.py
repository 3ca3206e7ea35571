"""Temperature and calibration error are what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from job.calibrate import (
    GREATEST_TEMPERATURE,
    LEAST_TEMPERATURE,
    bins_error,
    fit_temperature,
    reliability,
)


def drawn(scale: float, n: int = 4000, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits and, from their softmax, classes; then overstate the logits by `scale`."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, 4)) * 1.5
    classes = (softmax(logits, axis=1).cumsum(axis=1) < random.random((n, 1))).sum(axis=1)
    return (scale * logits).astype(np.float32), classes.clip(max=3)


def test_the_temperature_undoes_an_overstatement() -> None:
    """Logits that are k times what the classes were drawn from have a temperature near k."""
    for scale in (0.4, 1.0, 3.0):
        assert fit_temperature(*drawn(scale)) == pytest.approx(scale, rel=0.06)


def test_the_temperature_is_what_logistic_regression_finds() -> None:
    """With two classes, 1/T is the slope of an unpenalised regression on the logit difference."""
    logits, classes = drawn(2.0, n=600)
    keep = classes < 2
    logits, classes = logits[keep][:, :2], classes[keep]
    difference = (logits[:, 1] - logits[:, 0]).astype(np.float64)[:, None]
    peer = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-12).fit(difference, classes)
    assert fit_temperature(logits, classes) == pytest.approx(1 / peer.coef_.item(), rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.2, 5.0), st.integers(0, 1000))
def test_the_temperature_scales_with_the_logits(factor: float, seed: int) -> None:
    """Measuring logits in another unit changes T by that unit, so scores / T stay the same."""
    logits, classes = drawn(1.0, n=300, seed=seed)
    wide = logits.astype(np.float64)
    expected = factor * fit_temperature(wide, classes)
    assert fit_temperature(factor * wide, classes) == pytest.approx(expected, rel=1e-4)


def test_without_a_mistake_the_scores_stay_as_they_are() -> None:
    """Nothing says how sure to be when all is right, or when there is no example: T is 1."""
    logits = np.array([[2.0, 0.0], [0.0, 3.0]])
    assert fit_temperature(logits, np.array([0, 1])) == 1.0
    assert fit_temperature(np.zeros((0, 2)), np.zeros(0, np.int64)) == 1.0


def test_the_temperature_stays_in_bounds() -> None:
    """Logits that are all wrong want an infinite T, ones that are nearly all right a tiny one."""
    wrong = np.array([[9.0, 0.0], [0.0, 9.0]])
    near = np.array([[0.01, 0.0]] * 99 + [[0.0, 1e-5]])
    assert fit_temperature(wrong, np.array([1, 0])) == pytest.approx(GREATEST_TEMPERATURE, rel=1e-4)
    found = fit_temperature(near, np.zeros(100, np.int64))
    assert found == pytest.approx(LEAST_TEMPERATURE, rel=1e-4)


def test_the_calibration_error_of_a_case_done_by_hand() -> None:
    """Two bins: four at 0.95 of which two are right, one at 0.55 that is right."""
    scores = np.array([[0.95, 0.05]] * 4 + [[0.55, 0.45]])
    classes = np.array([0, 0, 1, 1, 0])
    assert bins_error(reliability(scores, classes)) == pytest.approx((4 * 0.45 + 1 * 0.45) / 5)
    low, high = reliability(scores, classes)
    assert (low.count, low.right, low.confidence) == (1, 1, pytest.approx(0.55))
    assert (high.count, high.right, high.confidence) == (4, 2, pytest.approx(0.95))


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    """Bins are open below and closed above, so certainty itself is in the last one."""
    scores = np.array([[0.5, 0.5], [0.51, 0.49], [1.0, 0.0], [np.float32(1 + 1e-7), 0.0]])
    counts = [(b.low, b.high, b.count) for b in reliability(scores, np.zeros(4, np.int64), bins=2)]
    assert counts == [(0.0, 0.5, 1), (0.5, 1.0, 3)]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(2, 5), st.integers(1, 20), st.integers(0, 10**6))
def test_the_calibration_error_agrees_with_a_loop(n: int, c: int, bins: int, seed: int) -> None:
    """Equation 3 written the slow way gives the same, whatever the scores."""
    random = np.random.default_rng(seed)
    scores = softmax(random.normal(size=(n, c)) * 3, axis=1)
    classes = random.integers(0, c, n)
    total = 0.0
    for i in range(bins):
        rows = [r for r in range(n) if i / bins < scores[r].max() <= (i + 1) / bins]
        if rows:
            hits = np.mean([scores[r].argmax() == classes[r] for r in rows])
            total += len(rows) / n * abs(hits - np.mean([scores[r].max() for r in rows]))
    assert bins_error(reliability(scores, classes, bins)) == pytest.approx(total, abs=1e-9)


def test_scaling_mends_the_calibration_of_overconfident_scores() -> None:
    """Scores that overstate have a large error; scaled by a T fitted elsewhere, a small one."""
    temperature = fit_temperature(*drawn(3.0, seed=1))
    logits, classes = drawn(3.0, seed=2)
    assert bins_error(reliability(softmax(logits, axis=1), classes)) > 0.15
    assert bins_error(reliability(softmax(logits / temperature, axis=1), classes)) < 0.03
