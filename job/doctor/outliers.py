"""Images unlike all others: far from even their nearest neighbours.

Imports no TensorFlow.
"""

from __future__ import annotations

import numpy as np

from job.doctor.findings import Outlier

# The modified z-score above which Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers",
# call a value an outlier.
LEAST_SCORE = 3.5

# Fewer images than this have no usual distance.
LEAST_IMAGES = 10

# What makes the median absolute deviation, and the mean one, of a normal sample its standard one.
PER_MEDIAN_DEVIATION = 1.4826
PER_MEAN_DEVIATION = 1.2533


def outliers(indices: np.ndarray, similarities: np.ndarray) -> tuple[Outlier, ...]:
    """Give the outliers, the farthest first.

    `indices` int64 `[n,k]` and `similarities` float32 `[n,k]`, cosines in [-1,1], are those of
    each image's nearest neighbours; an index below 0 stands for none. An image's distance is the
    mean of 1 - cosine over them (Angiulli and Pizzuti 2002, "Fast Outlier Detection in High
    Dimensional Spaces": the sum over the k nearest). The score is how far that is above the median,
    in robust standard deviations: 1.4826 times the median absolute deviation, or, where more than
    half the distances are the same, 1.2533 times the mean one. Those above LEAST_SCORE are given;
    none of fewer than LEAST_IMAGES.
    """
    valid = (indices >= 0) & np.isfinite(similarities)
    rows = np.flatnonzero(valid.any(axis=1))
    if len(rows) < LEAST_IMAGES:
        return ()
    apart = np.where(valid, 1 - similarities.astype(np.float64), 0.0)[rows]
    distances = apart.sum(axis=1) / valid[rows].sum(axis=1)
    above = distances - np.median(distances)
    spread = PER_MEDIAN_DEVIATION * np.median(np.abs(above))
    # Cosines of float32 features differ by this much where the features do not differ.
    if spread < 1e-6:
        spread = PER_MEAN_DEVIATION * np.abs(above).mean()
    if spread < 1e-6:
        return ()
    scores = above / spread
    far = np.flatnonzero(scores > LEAST_SCORE)
    ordered = far[np.argsort(-scores[far], kind="stable")]
    return tuple(Outlier(int(rows[i]), float(scores[i])) for i in ordered)
