"""Learning curves, and of which label more images would help."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_doctor_folds import clouds

from job.doctor.folds import cross_validate
from job.doctor.growth import (
    EXPONENTS,
    Trials,
    curve,
    fit_power_law,
    try_fractions,
    wishes,
)
from job.doctor.reduce import reduced

IMAGES = np.array([100.0, 200, 300, 400, 600, 800])


@given(a=st.floats(0.3, 1.0), b=st.floats(0.5, 3.0), place=st.integers(0, len(EXPONENTS) - 1))
def test_a_power_law_is_found_again(a: float, b: float, place: int) -> None:
    """Points on a curve give the curve, also where it is extrapolated."""
    c = EXPONENTS[place]
    found = fit_power_law(IMAGES, (a - b * IMAGES**-c)[None], EXPONENTS)
    assert found.at(3200.0)[0] == pytest.approx(np.clip(a - b * 3200**-c, 0, 1), abs=1e-6)


@given(points=st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_no_curve_falls_or_leaves_the_possible(points: list[float]) -> None:
    """Whatever was measured, more images do no harm and no accuracy is above 1."""
    found = fit_power_law(IMAGES, np.array([points]), EXPONENTS)
    now, later = found.at(800.0)[0], found.at(3200.0)[0]
    assert 0 <= now <= later <= 1
    assert found.slope[0] >= 0
    assert found.limit[0] <= 1


def grown(share: np.ndarray, n: int = 400, seed: int = 0) -> Trials:
    """Give trials of n images that are each right with a probability, one for each fraction."""
    random = np.random.default_rng(seed)
    right = random.uniform(size=(n, 1)) < share
    return Trials(np.zeros(n, np.int64), np.arange(n), right, IMAGES)


def test_the_true_curve_is_within_the_interval() -> None:
    """At four times the images the accuracy of the law behind the data is in most intervals."""
    law = 0.95 - 2.0 * np.concatenate([IMAGES, [3200]]) ** -0.5
    inside = 0
    for seed in range(20):
        found = curve(grown(law[:-1], seed=seed), seed=seed)
        low, high = found.expected[1].accuracy_ci95
        inside += low <= law[-1] <= high
    assert inside >= 17


def test_measured_points_are_shares_with_their_intervals() -> None:
    """Every number of training images has its accuracy; two and four times the last follow."""
    found = curve(grown(np.linspace(0.5, 0.9, 6)))
    assert [point.images for point in found.measured] == IMAGES.tolist()
    assert [point.images for point in found.expected] == [1600, 3200]
    for point in found.measured + found.expected:
        assert 0 <= point.accuracy_ci95[0] <= point.accuracy <= point.accuracy_ci95[1] <= 1
    assert found.expected[0].accuracy <= found.expected[1].accuracy


def test_copies_prove_no_more_than_one_image() -> None:
    """The interval of 400 images in 20 groups is that of 20."""
    trials = grown(np.full(6, 0.7))
    bursts = Trials(trials.classes, np.arange(400) // 20, trials.right, IMAGES)
    alone, burst = curve(trials).measured[0], curve(bursts).measured[0]
    assert burst.accuracy == alone.accuracy
    widths = [np.ptp(point.accuracy_ci95) for point in (alone, burst)]
    assert widths[1] > 3 * widths[0]


def test_no_errors_among_few_images_are_no_certainty() -> None:
    """Forty images that are all right leave room for errors in what is expected."""
    found = curve(grown(np.ones(6), n=40))
    assert found.expected[0].accuracy == 1
    assert 0.8 < found.expected[0].accuracy_ci95[0] < 0.999


def test_accuracy_grows_with_images_of_separate_labels() -> None:
    """Of 240 images in overlapping clouds a larger fraction is right more often, group by group."""
    features, classes = clouds(4, 60, apart=2.5, seed=1)
    groups, features = np.arange(240), reduced(features)
    scores = cross_validate(features, classes, groups, 4)
    trials = try_fractions(features, classes, groups, scores)
    assert trials.images[-1] == 192
    assert np.all(np.diff(trials.images) > 0)
    shares = trials.right.mean(axis=0)
    assert shares[-1] > shares[0] + 0.1
    assert shares[-1] == (scores.argmax(axis=1) == classes).mean()


def test_no_fraction_is_judged_on_what_it_was_fitted_to() -> None:
    """Twins of random labels, each pair a group, are right by chance with any number of images."""
    random = np.random.default_rng(0)
    features = np.repeat(random.normal(size=(100, 200)), 2, axis=0).astype(np.float32)
    classes, groups = np.repeat(random.integers(0, 2, 100), 2), np.arange(200) // 2
    trials = try_fractions(reduced(features), classes, groups, np.eye(2)[classes])
    assert (trials.right[:, :-1].mean(axis=0) < 0.68).all()


def test_of_very_many_images_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the most images whole groups of each label are drawn; the last point is of all."""
    monkeypatch.setattr("job.doctor.growth.MOST_IMAGES", 100)
    features, classes = clouds(3, 100, apart=3)
    groups, features = np.arange(300) // 2, reduced(features)
    scores = cross_validate(features, classes, groups, 3)
    trials = try_fractions(features, classes, groups, scores)
    assert 90 <= len(trials.groups) <= 110
    assert set(np.unique(trials.groups, return_counts=True)[1].tolist()) == {2}
    assert trials.images[-1] == 240
    assert trials.images[-2] < 80


def test_a_label_that_is_still_rising_is_wished_for_first() -> None:
    """The label whose recall grows comes first; one that is at its end is left out."""
    random = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], 300)
    shares = np.stack([np.full(6, 0.6), 0.95 - 6 * IMAGES**-0.5, np.full(6, 1.0)])
    right = random.uniform(size=(900, 1)) < shares[classes]
    trials = Trials(classes, np.arange(900), right, IMAGES)
    scores = np.where(right[:, -1:], np.eye(3)[classes], np.eye(3)[(classes + 1) % 3])
    first, *others = wishes(trials, scores, classes)
    assert first.label == 1
    assert first.count == 300
    assert first.recall == pytest.approx(right[classes == 1, -1].mean())
    truth = 6 * (800**-0.5 - 1600**-0.5)
    assert first.gain == pytest.approx(truth, abs=0.03)
    assert all(wish.label == 0 and wish.gain < first.gain / 2 for wish in others)


def test_no_gain_is_beyond_a_recall_of_one() -> None:
    """A label that was just found without an error is not wished for, however fast it rose."""
    right = np.arange(100)[:, None] < np.array([50, 60, 70, 80, 90, 100])
    trials = Trials(np.zeros(100, np.int64), np.arange(100), right, IMAGES)
    assert wishes(trials, np.ones((100, 1)), np.zeros(100, np.int64)) == ()
