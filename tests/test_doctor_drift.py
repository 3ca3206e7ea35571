"""What changed since a version, by content and by what the images look like."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import kstest

from job.doctor.drift import drift, energy_test
from job.doctor.findings import Before, Material, Relabelled


def material(digests: str, classes: list[int], features: np.ndarray | None = None) -> Material:
    """Give a data set of labels a, b and c with a letter as the digest of each image."""
    n = len(digests)
    return Material(
        names=tuple(f"now/{i}.jpg" for i in range(n)),
        labels=("a", "b", "c"),
        classes=np.array(classes, np.int64),
        features=np.zeros((n, 4), np.float32) if features is None else features,
        fingerprints=np.zeros((n, 64), np.float32),
        sizes=np.zeros((n, 2), np.float32),
        digests=tuple(digests),
        file_bytes=np.ones(n, np.int64),
        groups=np.arange(n),
    )


def before(digests: str, labels: str, features: np.ndarray | None = None) -> Before:
    """Give the data of version 7; every row of it that has features has them in its place."""
    kept = np.zeros((0, 4), np.float32) if features is None else features
    names = tuple(f"then/{i}.jpg" for i in range(len(digests)))
    return Before(7, names, tuple(digests), tuple(labels), np.arange(len(kept)), kept)


def test_images_are_known_by_their_content() -> None:
    """A renamed image is no news, a moved one is relabelled, the others are new or gone."""
    found = drift(material("UVWX", [0, 1, 2, 0]), before("VUYX", "cabb"))
    assert found.version == 7
    assert found.new == (2,)
    assert found.gone == ("then/2.jpg",)
    assert found.relabelled == (Relabelled(1, "c"), Relabelled(3, "b"))
    assert (found.distance, found.p_value) == (None, None)


def test_a_content_with_two_labels_is_relabelled_to_a_third_only() -> None:
    """Where copies contradicted each other before, either label is one from before."""
    assert drift(material("UU", [0, 1]), before("UU", "ab")).relabelled == ()
    assert drift(material("UU", [0, 2]), before("UU", "ba")).relabelled == (Relabelled(1, "b"),)


def test_nothing_changed() -> None:
    """The same data has no drift at all; nor has no data."""
    same = drift(material("UVW", [0, 1, 2]), before("UVW", "abc"))
    assert (same.new, same.gone, same.relabelled, same.distance) == ((), (), (), None)
    empty = drift(material("", []), before("", ""))
    assert (empty.new, empty.gone, empty.distance) == ((), (), None)


@pytest.mark.parametrize(("shift", "most", "least"), [(0.0, 1.0, 0.02), (1.5, 0.002, 0.0)])
def test_new_images_of_another_kind_are_told_from_more_of_the_same(
    shift: float, most: float, least: float
) -> None:
    """A shifted cloud of new images has the smallest p-value, one that is not has a usual one."""
    random = np.random.default_rng(3)
    letters = "".join(chr(200 + i) for i in range(120))
    old = random.normal(size=(60, 4)).astype(np.float32)
    new = random.normal(size=(60, 4)).astype(np.float32) + np.float32(shift)
    now = material(letters, [0] * 120, np.concatenate([old, new]))
    found = drift(now, before(letters[:60], "a" * 60, old))
    assert found.new == tuple(range(60, 120))
    assert found.p_value is not None
    assert least <= found.p_value <= most
    assert drift(now, before(letters[:60], "a" * 60, old)) == found


def test_a_burst_is_one_image() -> None:
    """Sixty shots of four new subjects are too few to say that the new ones are different."""
    random = np.random.default_rng(0)
    letters = "".join(chr(200 + i) for i in range(120))
    now = material(letters, [0] * 120, random.normal(size=(120, 4)).astype(np.float32))
    now.groups[60:] = 1000 + np.arange(60) % 4
    found = drift(now, before(letters[:60], "a" * 60, now.features[:60]))
    assert len(found.new) == 60
    assert found.p_value is None


def test_images_that_are_gone_are_compared_too() -> None:
    """Where everything was replaced, what is here is compared with what was there."""
    random = np.random.default_rng(0)
    old, new = random.normal(size=(2, 60, 4)).astype(np.float32)
    letters = "".join(chr(200 + i) for i in range(120))
    found = drift(material(letters[:60], [0] * 60, new), before(letters[60:], "a" * 60, old))
    assert len(found.new) == len(found.gone) == 60
    assert found.p_value is not None


def test_of_very_many_images_some_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the most compared a sample is drawn, which has a distance of its own."""
    random = np.random.default_rng(0)
    old, new = random.normal(size=(2, 60, 4)).astype(np.float32)
    letters = "".join(chr(200 + i) for i in range(120))
    then, now = before(letters[60:], "a" * 60, old), material(letters[:60], [0] * 60, new)
    whole = drift(now, then).distance
    monkeypatch.setattr("job.doctor.drift.MOST_COMPARED", 10)
    drawn = drift(now, then).distance
    assert drawn is not None
    assert drawn != whole


def test_ties_count_as_large() -> None:
    """Two sides that are the same points differ least of all: every permutation is as large."""
    for seed in range(20):
        points = np.random.default_rng(seed).normal(size=(3, 2))
        distance, p_value = energy_test(points, points[::-1], permutations=99)
        assert distance == pytest.approx(0, abs=1e-12)
        assert p_value == 1


def test_p_values_are_uniform_where_nothing_drifts() -> None:
    """Over 300 pairs of samples of one law the p-values follow the uniform distribution."""
    random = np.random.default_rng(1)
    p_values = [
        energy_test(
            random.normal(size=(25, 3)), random.normal(size=(15, 3)), seed=i, permutations=199
        )[1]
        for i in range(300)
    ]
    # The law of the statistic under uniform p-values is passed with 99 %.
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert min(p_values) >= 1 / 200


def test_a_shift_is_seen_in_most_samples() -> None:
    """Half a standard deviation in each of three features is found by 60 images a side."""
    random = np.random.default_rng(2)
    p_values = [
        energy_test(
            random.normal(size=(60, 3)), random.normal(0.5, 1, (60, 3)), seed=i, permutations=199
        )[1]
        for i in range(40)
    ]
    assert np.mean(np.array(p_values) < 0.05) > 0.8


def test_the_distance_is_the_energy_statistic() -> None:
    """The distance is what its definition gives with SciPy's pairwise distances."""
    random = np.random.default_rng(4)
    first, second = random.normal(size=(9, 5)), random.normal(1, 2, (14, 5))
    expected = 2 * cdist(first, second).mean()
    expected -= cdist(first, first).mean() + cdist(second, second).mean()
    assert energy_test(first, second)[0] == pytest.approx(expected, rel=1e-9)
    assert energy_test(second, first)[0] == pytest.approx(expected, rel=1e-9)


def test_points_that_are_all_the_same_do_not_differ() -> None:
    """Constant features have no distance, and every permutation is as large."""
    distance, p_value = energy_test(np.full((6, 3), 0.1), np.full((9, 3), 0.1))
    assert distance == pytest.approx(0, abs=1e-6)
    assert p_value == 1
