"""Every image judged by a head that has not seen it, on features of one scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.doctor.folds import FOLDS, cross_validate, deal, fit_and_score
from job.doctor.reduce import reduced
from job.lbfgs import fit


def clouds(count: int, each: int, apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Give `each` points of every one of `count` labels around means that far from another."""
    random = np.random.default_rng(seed)
    classes = np.repeat(np.arange(count), each)
    means = apart * np.eye(count, 12)
    return (means[classes] + random.normal(size=(len(classes), 12))).astype(np.float32), classes


groupings = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=60)


@given(rows=groupings, hands=st.integers(1, 8), seed=st.integers(0, 99))
def test_a_group_is_never_dealt_to_two_hands(
    rows: list[tuple[int, int]], hands: int, seed: int
) -> None:
    """Rows of one group number are in one hand, whatever their labels."""
    classes, groups = np.array(rows).T
    hand = deal(classes, groups, hands, seed=seed)
    assert ((hand >= 0) & (hand < hands)).all()
    for group in np.unique(groups):
        assert len(np.unique(hand[groups == group])) == 1


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_every_label_is_shared_out_evenly(counts: list[int], seed: int) -> None:
    """Without groups no hand has more than one image of a label more than another hand."""
    classes = np.repeat(np.arange(len(counts)), counts)
    hand = deal(classes, np.arange(len(classes)), FOLDS, seed=seed)
    for label in range(len(counts)):
        dealt = np.bincount(hand[classes == label], minlength=FOLDS)
        assert dealt.max() - dealt.min() <= 1
    totals = np.bincount(hand, minlength=FOLDS)
    assert totals.max() - totals.min() <= 1


def test_large_groups_are_dealt_first() -> None:
    """A burst of ten and ten single images fill two hands alike."""
    groups = np.array([7] * 10 + list(range(10, 20)))
    hand = deal(np.zeros(20, np.int64), groups, 2)
    assert np.bincount(hand).tolist() == [10, 10]


def test_a_group_of_several_labels_counts_as_one_of_its_commonest() -> None:
    """Five bursts with one odd image, and five of another label, are dealt one of each a hand."""
    classes = np.array([0, 0, 1] * 5 + [1, 1, 1] * 5)
    hand = deal(classes, np.arange(30) // 3, 5)
    for dealt in range(5):
        assert sorted(classes[hand == dealt].tolist()) == [0, 0, 1, 1, 1, 1]


def test_another_seed_deals_otherwise() -> None:
    """The same seed gives the same hands, another one others."""
    classes, groups = np.zeros(100, np.int64), np.arange(100)
    first = deal(classes, groups, FOLDS, seed=1)
    assert np.array_equal(first, deal(classes, groups, FOLDS, seed=1))
    assert not np.array_equal(first, deal(classes, groups, FOLDS, seed=2))


def test_separate_labels_are_told_apart_and_random_ones_are_not() -> None:
    """Labels far apart are all found; labels that mean nothing are right by chance only."""
    features, classes = clouds(4, 30, apart=9)
    groups = np.arange(len(classes))
    scores = cross_validate(reduced(features), classes, groups, 4)
    assert (scores.argmax(axis=1) == classes).mean() > 0.97
    noise = np.random.default_rng(5).permutation(classes)
    scores = cross_validate(reduced(features), noise, groups, 4)
    assert (scores.argmax(axis=1) == noise).mean() < 0.45


def test_a_copy_does_not_vouch_for_itself() -> None:
    """Twins of random labels are right by chance when they are a group; apart, they give away."""
    random = np.random.default_rng(0)
    points = random.normal(size=(60, 200)).astype(np.float32)
    twins = reduced(np.repeat(points, 2, axis=0))
    classes = np.repeat(random.integers(0, 2, 60), 2)
    apart = cross_validate(twins, classes, np.arange(120), 2)
    together = cross_validate(twins, classes, np.repeat(np.arange(60), 2), 2)
    assert (apart.argmax(axis=1) == classes).mean() > 0.85
    assert (together.argmax(axis=1) == classes).mean() < 0.7


def test_it_is_the_jobs_own_regression() -> None:
    """A fold's head is the one that `lbfgs.fit` finds for the same penalty."""
    features, classes = clouds(3, 40, apart=2)
    features = reduced(features)
    train, test = features[::2], features[1::2]
    expected = fit(
        (train, classes[::2]), (test, classes[1::2]), 3, l2=0.15 / len(train)
    ).head.probabilities(test)
    found = fit_and_score(train, classes[::2], test, 3)
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_a_label_without_training_images_has_no_probability() -> None:
    """The other labels keep their own columns, and are found."""
    features, classes = clouds(3, 30, apart=9)
    features, classes = reduced(features), np.array([0, 2, 4])[classes]
    scores = fit_and_score(features[::2], classes[::2], features[1::2], 5)
    assert not scores[:, [1, 3]].any()
    assert (scores.argmax(axis=1) == classes[1::2]).mean() > 0.95


@settings(deadline=None, max_examples=30)
@given(
    classes=st.lists(st.integers(0, 3), min_size=1, max_size=25),
    constant=st.booleans(),
    bursts=st.integers(1, 30),
)
def test_probabilities_are_probabilities_whatever_the_data(
    classes: list[int], constant: bool, bursts: int
) -> None:
    """With few images, empty labels, equal images or one group, rows are finite and sum to 1."""
    n = len(classes)
    features = np.ones((n, 5)) if constant else np.random.default_rng(n).normal(size=(n, 5))
    rows = reduced(features.astype(np.float32))
    scores = cross_validate(rows, np.array(classes), np.arange(n) % bursts, 5)
    assert scores.shape == (n, 5)
    assert scores.dtype == np.float32
    assert (scores >= 0).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_reduced_features_have_one_scale(scale: float) -> None:
    """Whatever the backbone's scale, rows have a mean squared length of 1 and a mean of 0."""
    features, _ = clouds(3, 40, apart=4)
    rows = reduced(features * np.float32(scale))
    assert rows.shape == (120, 12)
    assert rows.dtype == np.float32
    np.testing.assert_allclose((rows**2).sum(axis=1).mean(), 1, rtol=1e-3)
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(rows, reduced(features), atol=1e-3)


def test_reduction_keeps_distances_and_reads_a_part_of_wider_rows() -> None:
    """Rotated to its axes the data is the same, also out of a column slice of a table."""
    features, _ = clouds(3, 40, apart=4)
    table = np.concatenate([features, np.full((120, 3), 7, np.float32)], axis=1)
    rows = reduced(table[:, :12])
    assert np.array_equal(rows, reduced(features))
    roots = np.sign(features) * np.sqrt(np.abs(features))
    roots /= np.linalg.norm(roots, axis=1, keepdims=True)
    near = np.linalg.norm(roots[0] - roots, axis=1) / np.linalg.norm(roots - roots.mean(0))
    found = np.linalg.norm(rows[0] - rows, axis=1) / np.linalg.norm(rows)
    np.testing.assert_allclose(found, near, atol=1e-4)


def test_the_axes_are_those_of_the_differences() -> None:
    """What all rows share does not take the place of what tells them apart."""
    sides = np.where(np.arange(40) % 2 == 0, 1, -1)
    features = np.stack([np.full(40, 100), sides, np.zeros(40)], axis=1).astype(np.float32)
    rows = reduced(features, 1)
    assert rows.shape == (40, 1)
    np.testing.assert_allclose(np.abs(rows), 1, atol=1e-2)
    assert abs(rows[:, 0] @ sides) > 39


def test_blocks_do_not_change_what_is_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked on a few rows at a time, features come out the same."""
    features, _ = clouds(3, 40, apart=4)
    whole = reduced(features)
    monkeypatch.setattr("job.doctor.reduce.ROWS", 7)
    np.testing.assert_allclose(np.abs(reduced(features)), np.abs(whole), atol=1e-3)


def test_what_is_not_finite_does_not_spread() -> None:
    """A broken feature makes neither its row nor another one NaN."""
    features, _ = clouds(3, 10, apart=4)
    features[3, 2], features[4] = np.nan, np.inf
    assert np.isfinite(reduced(features)).all()
    row = np.random.default_rng(0).uniform(size=(1, 300)).astype(np.float32)
    rounding = 1 + 1e-7 * np.random.default_rng(1).normal(size=(50, 1))
    assert not reduced((row * rounding).astype(np.float32)).any()
    assert reduced(np.zeros((0, 3), np.float32)).shape == (0, 0)
