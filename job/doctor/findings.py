"""What the doctor looks at and what it finds; rows are those of the images in `Material`.

Imports no TensorFlow, which `job.stream` would: what judges the findings is NumPy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from job.stream import Skipped


@dataclass(frozen=True, slots=True)
class Material:
    """A data set of n readable images with c labels, as a run has it after embedding.

    `names` are relative to the data, `classes` int64 `[n]` the given class indices, `features`
    float32 `[n,d]` the embeddings. `fingerprints` float32 `[n,64]` and `sizes` float32 `[n,2]`
    (width and height in pixels as stored, 0 where unknown) come from `job.traits`. `digests` are
    the SHA-256 of the files, hexadecimal, `file_bytes` int64 `[n]` their sizes. Rows with the same
    number in `groups`, int64 `[n]`, are kept on one side of every split: copies and bursts.
    `skipped` are the files that could not be read.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    classes: np.ndarray
    features: np.ndarray
    fingerprints: np.ndarray
    sizes: np.ndarray
    digests: tuple[str, ...]
    file_bytes: np.ndarray
    groups: np.ndarray
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Before:
    """The data of a version, m images: what drift is measured against.

    `names`, `digests` and `labels` are as its `examples.csv` has them, a row an image; `features`
    float32 `[k,d]` are the embeddings of those rows `rows`, int64 `[k]`, that the cache still has.
    """

    version: int
    names: tuple[str, ...]
    digests: tuple[str, ...]
    labels: tuple[str, ...]
    rows: np.ndarray
    features: np.ndarray


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image whose label is likely wrong.

    `given` and `suggested` are class indices with the cross-validated probabilities `p_given` and
    `p_suggested`. `score`, in [0,1], sorts suspects, the surest first being the largest.
    """

    row: int
    given: int
    suggested: int
    p_given: float
    p_suggested: float
    score: float


@dataclass(frozen=True, slots=True)
class Copies:
    """Images that show the same: `exact` when their files are the same bytes.

    `labels` are the class indices among them: more than one is a contradiction.
    """

    rows: tuple[int, ...]
    labels: tuple[int, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class Outlier:
    """An image unlike all others; `score` is its distance in robust standard deviations."""

    row: int
    score: float


@dataclass(frozen=True, slots=True)
class Alike:
    """Two labels, and how well they are told apart.

    `accuracy` is the balanced accuracy between them, in [0,1], with its 95 % interval; 0.5 is
    chance. `count` is how many images it is from.
    """

    first: int
    second: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    count: int


@dataclass(frozen=True, slots=True)
class Relabelled:
    """An image that was under another label in the version's data."""

    row: int
    before: str


@dataclass(frozen=True, slots=True)
class Drift:
    """What changed since the data of a version.

    `new` are rows whose content that data did not have, `gone` the names of its images whose
    content is not here any more. `distance` is between the embeddings of the new images and of
    those from before (None where either has too few), `p_value` how likely one as large is by
    chance.
    """

    version: int
    new: tuple[int, ...]
    gone: tuple[str, ...]
    relabelled: tuple[Relabelled, ...]
    distance: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Accuracy with so many training images, in [0,1], with its 95 % interval."""

    images: int
    accuracy: float
    accuracy_ci95: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """How accuracy grows with training images: as measured, and beyond by the fitted curve."""

    measured: tuple[CurvePoint, ...]
    expected: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """A label that more images would help most.

    `recall` is the cross-validated one, `gain` the expected rise of it, as a share, if its images
    were doubled.
    """

    label: int
    count: int
    recall: float
    gain: float


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the doctor found, every list with the worst first.

    `counts` int64 `[c]` are the images a label. `accuracy` is the cross-validated one. `left_out`
    says, in sentences, what could not be looked at and why.
    """

    counts: np.ndarray
    accuracy: float
    copies: tuple[Copies, ...]
    suspects: tuple[Suspect, ...]
    outliers: tuple[Outlier, ...]
    alike: tuple[Alike, ...]
    curve: Curve | None
    wishes: tuple[Wish, ...]
    drift: Drift | None
    left_out: tuple[str, ...] = ()
