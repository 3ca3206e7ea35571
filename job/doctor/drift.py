"""What changed since the data of a version.

Imports no TensorFlow.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from job.doctor.findings import Before, Drift, Material, Relabelled
from job.doctor.reduce import reduced

# Images of each side that are compared, drawn at random: the table of their distances has 32 MB.
MOST_COMPARED = 1000

# With fewer of either no permutation says anything.
LEAST_COMPARED = 5

PERMUTATIONS = 999


def drift(material: Material, before: Before, *, seed: int = 0) -> Drift:
    """Give what is new, gone and under another label, told by the content of the files.

    A file that was only renamed is none of these. An image that had several labels is relabelled
    where none of them is its label now. The distance is between the embeddings of what is new and
    of what was there before, of which at most MOST_COMPARED each are drawn; images of one group
    count once, so that a burst does not pass for a new kind of image. It is None where either
    has fewer than LEAST_COMPARED.
    """
    labels_before: dict[str, list[str]] = {}
    for digest, label in zip(before.digests, before.labels, strict=True):
        labels_before.setdefault(digest, []).append(label)
    new, relabelled = [], []
    for row, digest in enumerate(material.digests):
        known = labels_before.get(digest)
        if known is None:
            new.append(row)
        elif material.labels[material.classes[row]] not in known:
            relabelled.append(Relabelled(row, known[0]))
    here = frozenset(material.digests)
    gone = [n for n, d in zip(before.names, before.digests, strict=True) if d not in here]
    distance, p_value = _apart(material, before, np.array(new, np.int64), seed)
    return Drift(before.version, tuple(new), tuple(gone), tuple(relabelled), distance, p_value)


def energy_test(
    first: np.ndarray, second: np.ndarray, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> tuple[float, float]:
    """Give the energy distance between two samples of points, and its permutation p-value.

    `first` float `[n,w]` and `second` float `[m,w]`, n and m at least 1. The distance, 0 or more,
    is the statistic 2 E|X-Y| - E|X-X'| - E|Y-Y'| of Székely and Rizzo 2013, "Energy statistics: a
    class of statistics based on distances", over all pairs. The p-value is the share of
    random re-allotments to the two sides with a distance at least as large, the one observed
    counting as one of them (Phipson and Smyth 2010): never 0, and, under no difference, at most
    alpha with a probability of at most alpha.
    """
    points = np.concatenate([first, second]).astype(np.float64)
    between = cdist(points, points)
    random = np.random.default_rng(seed)
    weights = np.concatenate([np.full(len(first), 1 / len(first)), np.full(len(second), -1.0)])
    weights[len(first) :] /= len(second)
    # One allotment a row, the observed one first; a weight's sign says the side.
    allotted = np.stack([weights, *(random.permutation(weights) for _ in range(permutations))])
    with threadpool_limits(1, "blas"):  # as in `reduce.reduced`
        distances = -((allotted @ between) * allotted).sum(axis=1)
    # Sums in another order differ in the last digits; where all points are the same, all tie.
    slack = 1e-9 * max(float(between.max()), np.finfo(np.float64).tiny)
    as_large = int((distances[1:] >= distances[0] - slack).sum())
    return max(0.0, float(distances[0])), (1 + as_large) / (1 + permutations)


def _apart(
    material: Material, before: Before, new: np.ndarray, seed: int
) -> tuple[float | None, float | None]:
    random = np.random.default_rng(seed)
    ours = _sample(new, material.groups[new], random)
    group_of = dict(zip(material.digests, material.groups.tolist(), strict=True))
    lowest = min(group_of.values(), default=0)
    # What is gone has no group: each image is its own.
    groups = [group_of.get(before.digests[row], lowest - 1 - row) for row in before.rows.tolist()]
    theirs = _sample(np.arange(len(before.rows)), np.array(groups, np.int64), random)
    if min(len(ours), len(theirs)) < LEAST_COMPARED:
        return None, None
    both = reduced(np.concatenate([material.features[ours], before.features[theirs]]))
    return energy_test(both[: len(ours)], both[len(ours) :], seed=seed)


def _sample(rows: np.ndarray, groups: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Give at most MOST_COMPARED of the rows, one of each group, ascending."""
    if not len(rows):
        return rows
    shuffled = random.permutation(len(rows))
    first = np.unique(groups[shuffled], return_index=True)[1]
    chosen = rows[shuffled[random.permutation(first)[:MOST_COMPARED]]]
    return np.sort(chosen)
