"""All that the doctor can tell of a data set from its embeddings, put together.

Imports no TensorFlow. 100,000 images of 1,280 features and 20 labels take 80 s on two cores and
1.4 GiB at the most (benchmarks/suspects.py): beside the file of the embeddings, what is in memory
is the 256 features that they are reduced to, three times over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from job.doctor.alike import alike
from job.doctor.drift import LEAST_COMPARED, drift
from job.doctor.findings import Before, Copies, Findings, Material
from job.doctor.folds import FOLDS, cross_validate, shares
from job.doctor.growth import curve, try_fractions, wishes
from job.doctor.outliers import LEAST_IMAGES, outliers
from job.doctor.reduce import reduced
from job.doctor.suspects import Neighbours, suspects, with_neighbours

# Different images below which there is no learning curve: of 40 a head is fitted to as few as four.
LEAST_FOR_CURVE = 40


def examine(
    material: Material,
    before: Before | None,
    near: tuple[Copies, ...],
    neighbours: Neighbours,
    *,
    features: np.ndarray | None = None,
    growth: bool = True,
) -> Findings:
    """Give all findings about `material`, and what changed since `before`.

    `near` are the copies that were found. `neighbours` are those of each row as
    `job.neighbours.nearest` gives them, best of `reduce.reduced` features and with a k of 10; an
    index below 0 stands for none. `features` are the reduced ones, where they are there already;
    without `growth` there is no learning curve, which takes half of the time. The same data gives
    the same findings. No figure is NaN. Where images cannot be classified at all, the accuracy is
    that of always guessing the commonest label, and 0 of no images.
    """
    found = _counted(material, before, near, neighbours)
    rare = _rare(material)
    common = len(material.labels) - len(rare)
    reasons = list(_reasons(material, found, rare))
    if common < 2:
        reasons.append(
            f"wrong labels, labels alike and the learning curve: {common} of the labels have "
            f"{FOLDS} different images, expected at least 2"
        )
        return replace(found, left_out=tuple(reasons))
    found = replace(found, left_out=tuple(reasons))
    features = reduced(material.features) if features is None else features
    scores = cross_validate(features, material.classes, material.groups, len(material.labels))
    judged = _judged(found, material, scores, neighbours, rare)
    return _grown(judged, material, features, scores) if growth else judged


def _counted(
    material: Material, before: Before | None, near: tuple[Copies, ...], neighbours: Neighbours
) -> Findings:
    """Give the findings for which no head is needed."""
    return Findings(
        counts=np.bincount(material.classes, minlength=len(material.labels)),
        accuracy=float(shares(material.classes, len(material.labels)).max(initial=0)),
        copies=tuple(sorted(near, key=lambda c: (-len(c.labels), -len(c.rows), c.rows))),
        suspects=(),
        outliers=outliers(*neighbours),
        alike=(),
        curve=None,
        wishes=(),
        drift=drift(material, before) if before else None,
    )


def _judged(
    found: Findings,
    material: Material,
    scores: np.ndarray,
    neighbours: Neighbours,
    rare: frozenset[int],
) -> Findings:
    """Give the findings with those that are told from cross-validated probabilities."""
    classes, groups = material.classes, material.groups
    agreed = with_neighbours(scores, neighbours, classes, groups)
    return replace(
        found,
        accuracy=float((scores.argmax(axis=1) == classes).mean()),
        suspects=tuple(s for s in suspects(agreed, classes) if s.given not in rare),
        alike=tuple(p for p in alike(scores, classes) if not rare & {p.first, p.second}),
    )


def _grown(
    found: Findings, material: Material, features: np.ndarray, scores: np.ndarray
) -> Findings:
    """Give the findings with the learning curve, and the labels to photograph next."""
    classes, groups = material.classes, material.groups
    different = len(np.unique(groups))
    if different < LEAST_FOR_CURVE:
        reason = f"the learning curve: {different} different images, at least {LEAST_FOR_CURVE}"
        return replace(found, left_out=(*found.left_out, f"{reason} expected"))
    trials = try_fractions(features, classes, groups, scores)
    return replace(found, curve=curve(trials), wishes=wishes(trials, scores, classes))


def _rare(material: Material) -> frozenset[int]:
    """Give the labels that some fold would have to be judged without, or nearly so."""
    pairs = np.unique(np.stack([material.classes, material.groups]), axis=1)
    different = np.bincount(pairs[0], minlength=len(material.labels))
    return frozenset(np.flatnonzero(different < FOLDS).tolist())


def _reasons(material: Material, found: Findings, rare: Iterable[int]) -> Iterator[str]:
    for label in sorted(rare):
        yield (
            f"wrong labels and likeness of {material.labels[label]!r}: {found.counts[label]} "
            f"images of it, at least {FOLDS} different ones expected"
        )
    if len(material.classes) < LEAST_IMAGES:
        yield f"outliers: {len(material.classes)} images, at least {LEAST_IMAGES} expected"
    if found.drift and found.drift.distance is None:
        yield (
            f"the distance to the images of version {found.drift.version}: expected at least "
            f"{LEAST_COMPARED} different new images and as many embeddings of those before"
        )
