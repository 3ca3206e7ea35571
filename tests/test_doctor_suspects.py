"""Wrong labels, outliers and labels alike, out of probabilities and neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_doctor_folds import clouds

from job.doctor.alike import alike
from job.doctor.folds import cross_validate
from job.doctor.outliers import outliers
from job.doctor.reduce import reduced
from job.doctor.suspects import suspects, with_neighbours


def nearest(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Give each row's k nearest others by cosine, exactly."""
    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    alikeness = rows @ rows.T
    np.fill_diagonal(alikeness, -9)
    indices = np.argsort(-alikeness, axis=1)[:, :k]
    return indices, np.take_along_axis(alikeness, indices, axis=1).astype(np.float32)


def test_swapped_labels_are_the_first_suspects() -> None:
    """Of six wrong labels among 200 images all are among the first six, with the true label."""
    features, classes = clouds(4, 50, apart=6)
    rows = np.array([3, 40, 77, 120, 160, 199])
    swapped = classes.copy()
    swapped[rows] = (classes[rows] + 1) % 4
    features = reduced(features)
    scores = cross_validate(features, swapped, np.arange(200), 4)
    agreed = with_neighbours(scores, nearest(features, 10), swapped, np.arange(200))
    found = suspects(agreed, swapped)
    assert {suspect.row for suspect in found[:6]} == set(rows.tolist())
    for suspect in found[:6]:
        assert suspect.suggested == classes[suspect.row]
        assert suspect.given == swapped[suspect.row]
        assert suspect.p_suggested > suspect.p_given


def test_a_label_that_is_never_sure_makes_no_suspects_of_its_images() -> None:
    """The same probability is usual for a hard label and suspicious for an easy one."""
    easy, hard = [0.9, 0.1, 0.0], [0.6, 0.1, 0.3]
    scores = np.array([easy] * 9 + [[0.3, 0.1, 0.6]] + [hard] * 10, np.float32)
    classes = np.array([0] * 10 + [2] * 10)
    assert [suspect.row for suspect in suspects(scores, classes)] == [9]


def test_an_unclear_image_whose_label_is_still_the_likeliest_is_no_suspect() -> None:
    """A suspect has a better label to suggest, however unsure the head is of its own."""
    scores = np.array([[0.9, 0.1, 0.0]] * 9 + [[0.34, 0.33, 0.33]], np.float32)
    assert suspects(scores, np.zeros(10, np.int64)) == ()


@given(seed=st.integers(0, 999), n=st.integers(0, 40), count=st.integers(1, 5))
def test_suspects_are_sorted_and_within_bounds(seed: int, n: int, count: int) -> None:
    """Every suspect has a likelier label than its own and a score in (0.5,1], largest first."""
    random = np.random.default_rng(seed)
    scores = random.dirichlet(np.full(count, 0.3), n).astype(np.float32).reshape(n, count)
    classes = random.integers(0, count, n)
    found = suspects(scores, classes)
    assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
    for suspect in found:
        assert suspect.given == classes[suspect.row] != suspect.suggested
        assert suspect.p_suggested > suspect.p_given
        assert 0.5 < suspect.score <= 1


def test_neighbours_vote_with_the_head_unless_they_are_copies() -> None:
    """The mean of both is given; a neighbour of the same group has no vote."""
    scores = np.full((3, 2), 0.5, np.float32)
    near = np.array([[1, 2], [0, 2], [0, 1]]), np.full((3, 2), 0.9, np.float32)
    classes = np.array([0, 1, 1])
    apart = with_neighbours(scores, near, classes, np.array([0, 1, 2]))
    np.testing.assert_allclose(apart, [[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]])
    copies = with_neighbours(scores, near, classes, np.array([0, 0, 2]))
    np.testing.assert_allclose(copies, [[0.25, 0.75], [0.25, 0.75], [0.5, 0.5]])


def test_a_neighbour_that_is_none_has_no_vote() -> None:
    """An index below 0 or a similarity that is no number leaves the head's word as it is."""
    scores = np.full((3, 2), 0.5, np.float32)
    indices = np.array([[-1, -1], [0, 2], [1, -1]])
    similarities = np.array([[-1, -1], [0.9, np.nan], [0.9, -1]], np.float32)
    found = with_neighbours(scores, (indices, similarities), np.array([0, 1, 1]), np.arange(3))
    np.testing.assert_allclose(found, [[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]])
    none = np.zeros((3, 0), np.int64), np.zeros((3, 0), np.float32)
    assert np.array_equal(with_neighbours(scores, none, np.array([0, 1, 1]), np.arange(3)), scores)


def test_a_nearer_neighbour_counts_for_more() -> None:
    """Of two neighbours of different labels the nearer one has the larger share."""
    found = with_neighbours(
        np.full((3, 2), 0.5, np.float32),
        (np.array([[1, 2]] * 3), np.array([[0.9, 0.5]] * 3, np.float32)),
        np.array([0, 0, 1]),
        np.array([0, 5, 6]),
    )
    expected = 1 / (1 + np.exp(-5 * 0.4))
    np.testing.assert_allclose(found[0], [0.25 + expected / 2, 0.75 - expected / 2], rtol=1e-5)


def test_an_image_unlike_all_others_is_the_outlier() -> None:
    """One point in its own direction is found among a hundred, alone, and far out."""
    random = np.random.default_rng(0)
    features = random.normal(size=(100, 8)) * 0.3 + np.eye(8)[0] * 3
    features[42] = -3 * np.eye(8)[5]
    (found,) = [o for o in outliers(*nearest(features, 5)) if o.score > 10]
    assert found.row == 42
    assert outliers(*nearest(features, 5))[0] == found


def test_the_score_is_in_robust_standard_deviations() -> None:
    """Distances 0.1, 0.2 ... 1.1 and one of 5 have their known median and deviation."""
    similarities = 1 - np.array([*(0.1 * np.arange(1, 12)), 5.0], np.float32)[:, None]
    (found,) = outliers(np.zeros((12, 1), np.int64), similarities)
    assert found.row == 11
    assert found.score == pytest.approx((5 - 0.65) / (1.4826 * 0.3), rel=1e-5)


def test_a_missing_neighbour_does_not_count() -> None:
    """A row is as far as the neighbours it has, and one without any is not judged."""
    similarities = np.repeat(1 - 0.1 * np.arange(1, 13, dtype=np.float32)[:, None], 2, axis=1)
    indices = np.zeros((12, 2), np.int64)
    indices[3, 1], similarities[3, 1] = -1, -100
    indices[4], similarities[4] = -1, -100
    similarities[5, 1] = np.nan
    similarities[0] = -3
    assert [outlier.row for outlier in outliers(indices, similarities)] == [0]


@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_equal_images_and_few_have_no_outliers(n: int) -> None:
    """Where nothing is apart nothing is an outlier; a missing neighbour is skipped."""
    indices, similarities = np.full((n, 3), -1), np.full((n, 3), -np.inf, np.float32)
    assert outliers(indices, similarities) == ()
    indices[:, 0], similarities[:, 0] = 0, 1
    assert outliers(indices, similarities) == ()
    assert outliers(np.zeros((n, 0), np.int64), np.zeros((n, 0), np.float32)) == ()


def test_of_few_images_none_is_unusual() -> None:
    """Nine images have no usual distance that the ninth could be beyond; ten have."""
    similarities = np.linspace(0.9, 0.8, 10, dtype=np.float32)[:, None]
    similarities[0] = -1
    indices = np.zeros((10, 1), np.int64)
    assert outliers(indices[:9], similarities[:9]) == ()
    assert [outlier.row for outlier in outliers(indices, similarities)] == [0]


def test_one_far_image_among_equal_ones_is_an_outlier() -> None:
    """Where most distances are the same the mean deviation is the yardstick."""
    similarities = np.ones((50, 2), np.float32)
    similarities[7] = 0
    assert [o.row for o in outliers(np.zeros((50, 2), np.int64), similarities)] == [7]


def test_one_label_split_at_random_is_two_that_are_alike() -> None:
    """Halves of one cloud are alike, about at chance; labels apart are not, rare ones neither."""
    features, classes = clouds(3, 120, apart=7)
    halves = np.where(classes == 2, np.random.default_rng(0).integers(2, 4, 360), classes)
    keep = (halves != 3) | (np.arange(360) % 3 == 0)
    features, halves = features[keep], halves[keep]
    scores = cross_validate(reduced(features), halves, np.arange(len(halves)), 4)
    (found,) = alike(scores, halves)
    assert (found.first, found.second) == (2, 3)
    assert found.accuracy_ci95[0] <= 0.5 <= found.accuracy_ci95[1] + 0.05
    assert found.count == (halves >= 2).sum()


def test_a_rare_label_is_not_alike_for_being_rare() -> None:
    """A label that a head gives less than it should, but knows, is told from a common one."""
    scores = np.array([[0.95, 0.05]] * 100 + [[0.7, 0.3]] * 10, np.float32)
    assert alike(scores, np.array([0] * 100 + [1] * 10)) == ()


def test_the_worst_pair_is_first_and_a_tie_is_half_a_hit() -> None:
    """A pair that is at chance comes before one that is at 60 %."""
    one, two, three, four = np.eye(4, dtype=np.float32)
    scores = np.array(
        [(one + two) / 2] * 80 + [three] * 24 + [four] * 16 + [four] * 24 + [three] * 16, np.float32
    )
    classes = np.repeat([0, 1, 2, 3], 40)
    first, second = alike(scores, classes)
    assert (first.first, first.second, first.accuracy) == (0, 1, 0.5)
    assert (second.first, second.second) == (2, 3)
    assert second.accuracy == pytest.approx(0.6)
    low, high = second.accuracy_ci95
    assert 0.48 < low < 0.5
    assert 0.69 < high < 0.72


def test_labels_of_few_images_are_not_alike_for_lack_of_proof() -> None:
    """Five images of each that are all told apart, or two that are not, prove nothing."""
    right = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    assert alike(right, np.repeat([0, 1], 5)) == ()
    assert alike(right[[5, 5, 0, 0]], np.repeat([0, 1], 2)) == ()
    most = np.tile(np.eye(2, dtype=np.float32)[[0, 0, 0, 1]], (2, 1))
    assert alike(np.concatenate([most, 1 - most]), np.repeat([0, 1], 8)) == ()
    many = np.repeat(np.concatenate([most, 1 - most]), 20, axis=0)
    assert len(alike(many, np.repeat([0, 1], 160))) == 1
