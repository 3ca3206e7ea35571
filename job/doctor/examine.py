"""All that the doctor can tell of a data set from its embeddings, put together.

Imports no TensorFlow. At 100,000 images of 1,280 features it takes minutes on two cores, and
memory for the reduced features a few times over: 256 of 4 bytes a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from job.doctor.alike import alike
from job.doctor.drift import LEAST_COMPARED, drift
from job.doctor.findings import Before, Copies, Drift, Findings, Material
from job.doctor.folds import FOLDS, cross_validate, shares
from job.doctor.growth import curve, try_fractions, wishes
from job.doctor.outliers import LEAST_IMAGES, outliers
from job.doctor.reduce import reduced
from job.doctor.suspects import Neighbours, suspects, with_neighbours

# Groups of images below which there is no learning curve: of 40, a head is fitted to four.
LEAST_GROUPS = 40


def examine(
    material: Material, before: Before | None, near: tuple[Copies, ...], neighbours: Neighbours
) -> Findings:
    """Give all findings about `material`, and what changed since `before`.

    `near` are the copies that were found. `neighbours`, indices int64 `[n,k]` and similarities
    float32 `[n,k]`, are those of each row, as `job.neighbours.nearest` gives them, best for
    `reduce.reduced` features and a k of 10; an index below 0 stands for none. The same data gives
    the same findings. Where images cannot be classified at all, the accuracy is that of always
    guessing the commonest label, and 0 of no images.
    """
    counts = np.bincount(material.classes, minlength=len(material.labels))
    judged = _judge(material, neighbours)
    changes = drift(material, before) if before else None
    copies = sorted(near, key=lambda c: (-len(c.labels), -len(c.rows), c.rows))
    return Findings(
        counts=counts,
        accuracy=judged.accuracy,
        copies=tuple(copies),
        suspects=judged.suspects,
        outliers=outliers(*neighbours),
        alike=judged.alike,
        curve=judged.curve,
        wishes=judged.wishes,
        drift=changes,
        left_out=(*judged.left_out, *_not_measured(material, changes)),
    )
