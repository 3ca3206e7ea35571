"""The doctor as a whole: what it finds, and what it says of data too poor to look at."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_doctor_folds import clouds
from test_doctor_suspects import nearest

from job.doctor.examine import examine
from job.doctor.findings import Before, Copies, Findings, Material


def material(features: np.ndarray, classes: np.ndarray, labels: int) -> Material:
    """Give a data set of these embeddings, whose images all differ."""
    n = len(classes)
    return Material(
        names=tuple(f"x/{i}.jpg" for i in range(n)),
        labels=tuple(f"label {i}" for i in range(labels)),
        classes=classes,
        features=features,
        fingerprints=np.zeros((n, 64), np.float32),
        sizes=np.zeros((n, 2), np.float32),
        digests=tuple(str(i) for i in range(n)),
        file_bytes=np.ones(n, np.int64),
        groups=np.arange(n),
    )


def before(data: Material, rows: np.ndarray) -> Before:
    """Give some of a data set as that of version 3."""
    return Before(
        version=3,
        names=tuple(data.names[row] for row in rows),
        digests=tuple(data.digests[row] for row in rows),
        labels=tuple(data.labels[data.classes[row]] for row in rows),
        rows=np.arange(len(rows)),
        features=data.features[rows],
    )


def figures(thing: object) -> list[float]:
    """Give every number in some findings."""
    if is_dataclass(thing):
        return [x for field in fields(thing) for x in figures(getattr(thing, field.name))]
    if isinstance(thing, tuple | np.ndarray):
        return [x for part in thing for x in figures(part)]
    return [] if thing is None or isinstance(thing, str) else [float(thing)]  # type: ignore[arg-type]


def test_a_data_set_is_examined_as_a_whole() -> None:
    """Wrong labels, an outlier, labels alike, a curve and drift are all found in one go."""
    features, truth = clouds(3, 80, apart=6)
    features[100] = -20
    halves = np.where((truth == 2) & (np.arange(240) % 2 == 0), 3, truth)
    halves[[5, 90]] = [1, 0]
    data = material(features, halves, 4)
    copies = (Copies((1, 2), (0,), exact=True), Copies((3, 90), (0, 1), exact=False))
    found = examine(data, before(data, np.arange(0, 240, 2)), copies, nearest(features, 10))
    assert found.counts.tolist() == np.bincount(halves).tolist()
    assert {5, 90} <= {suspect.row for suspect in found.suspects[:4]}
    assert found.outliers[0].row == 100
    assert [(pair.first, pair.second) for pair in found.alike] == [(2, 3)]
    assert found.copies == copies[::-1]
    assert found.curve is not None
    assert found.curve.measured[-1].accuracy == pytest.approx(found.accuracy)
    assert found.drift is not None
    assert len(found.drift.new) == 120
    assert found.drift.p_value is not None
    assert found.left_out == ()


def test_the_same_data_gives_the_same_findings() -> None:
    """Nothing depends on chance or on an earlier call."""
    features, classes = clouds(3, 20, apart=2)
    data = material(features, classes, 3)
    neighbours = nearest(features, 5)
    first, second = (examine(data, before(data, np.arange(30)), (), neighbours) for _ in range(2))
    assert np.array_equal(first.counts, second.counts)
    nothing = np.zeros(0)
    assert replace(first, counts=nothing).__repr__() == replace(second, counts=nothing).__repr__()


def test_a_rare_label_is_named_and_not_judged() -> None:
    """One image, or two bursts, that look like another label are neither suspects nor alike."""
    features, classes = clouds(2, 40, apart=6)
    classes[0], classes[1:9] = 2, 3
    data = material(features, classes, 5)
    data.groups[1:9] = [100] * 4 + [101] * 4
    found = examine(data, None, (), nearest(features, 5))
    assert found.alike == ()
    assert not [suspect for suspect in found.suspects if suspect.given > 1]
    one, bursts, empty = found.left_out
    assert "'label 2': 1 images" in one
    assert "'label 3': 8 images" in bursts
    assert "'label 4': 0 images" in empty
    assert found.curve is not None


def test_neighbours_have_a_say_in_what_is_suspected() -> None:
    """With other neighbours the suspects' probabilities are others."""
    features, classes = clouds(3, 30, apart=4)
    classes[0] = 1
    data = material(features, classes, 3)
    none = np.zeros((90, 0), np.int64), np.zeros((90, 0), np.float32)
    with_them, without = (examine(data, None, (), near) for near in (nearest(features, 5), none))
    assert with_them.suspects[0].row == without.suspects[0].row == 0
    assert with_them.suspects[0].p_given != without.suspects[0].p_given
    assert with_them.accuracy == without.accuracy


def test_too_few_images_have_no_curve() -> None:
    """Thirty images are classified, and it is said that they are too few for a curve."""
    features, classes = clouds(3, 10, apart=6)
    found = examine(material(features, classes, 3), None, (), nearest(features, 5))
    assert found.accuracy > 0.9
    assert found.curve is None
    assert found.left_out == ("the learning curve: 30 different images, at least 40 expected",)


def test_one_label_is_not_classified() -> None:
    """With a single label the accuracy is that of guessing, and it is said why."""
    features, classes = clouds(1, 30, apart=1)
    found = examine(material(features, classes, 1), None, (), nearest(features, 5))
    assert found.accuracy == 1
    assert (found.suspects, found.alike, found.curve, found.wishes) == ((), (), None, ())
    assert "expected at least 2" in found.left_out[-1]


@settings(deadline=None, max_examples=40)
@given(
    n=st.sampled_from([0, 1, 2, 5, 11, 25, 60]),
    labels=st.integers(1, 6),
    kind=st.sampled_from(["random", "constant", "zero", "one feature", "twins", "broken"]),
    group=st.sampled_from([1, 2, 1000]),
    some=st.integers(0, 60),
    seed=st.integers(0, 99),
)
def test_no_data_is_too_poor(
    n: int, labels: int, kind: str, group: int, some: int, seed: int
) -> None:
    """Few, equal or constant images, empty labels and one group give findings without a NaN."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(n, 6)).astype(np.float32)
    if kind == "constant":
        features[:] = 0.3
    elif kind == "zero":
        features[:] = 0
    elif kind == "one feature":
        features = features[:, :1]
    elif kind == "twins":
        features[n // 2 :] = features[: n - n // 2]
    elif kind == "broken":
        features[:1] = np.nan
    data = replace(
        material(features, random.integers(0, labels, n), labels), groups=np.arange(n) // group
    )
    neighbours = nearest(features, min(10, max(n - 1, 0)))
    found = examine(data, before(data, np.arange(min(some, n))), (), neighbours)
    assert isinstance(found, Findings)
    assert np.isfinite(figures(found)).all()
    assert 0 <= found.accuracy <= 1
    assert all(found.left_out)


def test_the_doctor_does_without_tensorflow() -> None:
    """What judges labels loads in a moment, and in a process that has no TensorFlow."""
    code = "import job.doctor.examine, sys; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
