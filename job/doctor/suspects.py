"""Images whose label is likely wrong, by confident learning.

Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
JAIR 70. Written from the paper: the authors' cleanlab has a licence (AGPL) that this job has not.

Imports no TensorFlow.
"""

from __future__ import annotations

import numpy as np

from job.doctor.findings import Suspect

# What `job.neighbours.nearest` gives: indices int64 `[n,k]` and cosine similarities float32
# `[n,k]`, the nearest first.
Neighbours = tuple[np.ndarray, np.ndarray]

# An image is a suspect where its label is less than half as likely as is usual for that label.
MOST_RATIO = 0.5

# Neighbours that are e^-1 less alike count e^-5 as much.
SHARPNESS = 5.0


def suspects(probabilities: np.ndarray, classes: np.ndarray) -> tuple[Suspect, ...]:
    """Give the suspects among images with cross-validated `probabilities` `[n,c]`, surest first.

    `classes` int `[n]` are the labels given. A label's threshold is the mean probability of it
    over the images given it, so that a label of which no head is ever sure does not make suspects
    of all its images. Images are ranked by the probability of their
    label over its threshold; suspects are those with another label that is more likely, and less
    than MOST_RATIO of the threshold. `score` is 1 - that ratio, in (0.5,1].

    The paper's confident joint, as a filter, asks that the other label passes its own threshold: on
    the samples (benchmarks/suspects.py) the 60 first then hold 60 % of the wrong labels in place of
    85 %, so it is not asked here.
    """
    if not len(classes):
        return ()
    rows = np.arange(len(classes))
    scores = probabilities.astype(np.float64)
    given = scores[rows, classes]
    counts = np.bincount(classes, minlength=scores.shape[1])
    thresholds = np.bincount(classes, given, scores.shape[1]) / np.maximum(counts, 1)
    ratio = given / np.maximum(thresholds[classes], np.finfo(np.float64).tiny)
    suggested = scores.argmax(axis=1)
    chosen = np.flatnonzero((scores[rows, suggested] > given) & (ratio < MOST_RATIO))
    return tuple(
        Suspect(
            row=int(row),
            given=int(classes[row]),
            suggested=int(suggested[row]),
            p_given=float(given[row]),
            p_suggested=float(scores[row, suggested[row]]),
            score=float(1 - ratio[row]),
        )
        for row in chosen[np.argsort(ratio[chosen], kind="stable")]
    )


def with_neighbours(
    probabilities: np.ndarray, neighbours: Neighbours, classes: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Give the mean of a head's `probabilities` `[n,c]` and what the neighbours of a row are.

    The second is the share of each label among a row's neighbours, weighed by how alike they are:
    where a linear head sees a wrong label beside many, the nearest few see one that is alone. A
    neighbour of the row's own group (`groups` int `[n]`) has no say, since a copy of an image with
    a wrong label has the same wrong label; nor has an index below 0, which stands for none. Rows
    that are left without neighbours keep their probabilities.
    """
    indices, similarities = neighbours
    if not indices.size:
        return probabilities
    valid = (indices >= 0) & np.isfinite(similarities)
    valid &= groups[indices] != groups[:, None]
    least = np.where(valid, similarities, -np.inf).max(axis=1, keepdims=True)
    nearness = np.where(valid, similarities - least, -np.inf)
    weights = np.exp(SHARPNESS * nearness, where=valid, out=np.zeros(valid.shape))
    found = np.zeros(probabilities.shape)
    np.add.at(found, (np.arange(len(found))[:, None], classes[indices]), weights)
    totals = weights.sum(axis=1)
    mixed = probabilities.astype(np.float64)
    heard = totals > 0
    mixed[heard] = (mixed[heard] + found[heard] / totals[heard, None]) / 2
    return mixed.astype(np.float32)
