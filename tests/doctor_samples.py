"""A data set as the doctor has it, with findings of every kind, made of the sample drawings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from conftest import ROOT
from PIL import Image

from job.doctor.findings import (
    Alike,
    Copies,
    Curve,
    CurvePoint,
    Drift,
    Findings,
    Material,
    Outlier,
    Relabelled,
    Suspect,
    Wish,
)
from job.stream import Skipped

CLIPART = sorted((ROOT / "samples/clipart").glob("*/*"))
LABELS = tuple(sorted({path.parent.name for path in CLIPART}))


@dataclass(frozen=True, slots=True)
class Sample:
    """What the doctor looked at, what it found, and how images are read."""

    material: Material
    findings: Findings
    read_image: Callable[[str], bytes | None]


def make_sample(
    n: int = 240, labels: tuple[str, ...] = LABELS, names: tuple[str, ...] = ()
) -> Sample:
    """Give n drawings in the order of their labels; the first images are called `names`.

    n is at least 60 and, like the number of labels, even enough that every list has something.
    """
    random = np.random.default_rng(5)
    files = [CLIPART[i * len(CLIPART) // n] for i in range(n)]
    classes = np.arange(n, dtype=np.int64) * len(labels) // n
    if labels == LABELS:
        classes = np.array([labels.index(file.parent.name) for file in files], np.int64)
    called = [f"{labels[classes[i]]}/{i:04}-{file.name}" for i, file in enumerate(files)]
    called[: len(names)] = names
    copies = make_copies(classes)
    for group in copies:
        for row in group.rows:
            files[row] = files[group.rows[0]]
    contents = dict(zip(called, files, strict=True))
    sizes = {file: Image.open(file).size for file in set(files)}
    material = Material(
        names=tuple(called),
        labels=labels,
        classes=classes,
        features=random.normal(size=(n, 16)).astype(np.float32),
        fingerprints=random.normal(size=(n, 64)).astype(np.float32),
        sizes=np.array([sizes[file] for file in files], np.float32),
        digests=tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files),
        file_bytes=np.array([file.stat().st_size for file in files], np.int64),
        groups=np.arange(n, dtype=np.int64),
        skipped=tuple(
            Skipped(f"{labels[0]}/{name}", reason)
            for name, reason in (
                ("broken.jpg", "JPEG is truncated"),
                ("notes.txt", "empty file"),
                ("x.webp", "animated WebP, which TensorFlow cannot read"),
            )
        ),
    )
    return Sample(
        material, make_findings(material, copies), lambda name: contents[name].read_bytes()
    )


def make_copies(classes: np.ndarray) -> tuple[Copies, ...]:
    """Give groups of copies, exact and near, two contradictions first; classes are ascending."""
    count = int(classes.max()) + 1
    last = [int(np.flatnonzero(classes == c)[-1]) for c in range(count)]
    copies = [Copies((last[0], last[1]), (0, 1), exact=True)]
    copies += [Copies((last[0] - 3, last[1] - 3, last[1] - 4), (0, 1), exact=False)]
    for c in range(count):
        rows = tuple(range(last[c] - 7 - c % 3, last[c] - 5))
        copies.append(Copies(rows, (c,), exact=c % 2 == 0))
    return tuple(copies)


def make_findings(material: Material, copies: tuple[Copies, ...]) -> Findings:
    """Give findings of every kind, with rows from all over the material."""
    random = np.random.default_rng(6)
    n, count, classes = len(material.names), len(material.labels), material.classes
    doubtful = [int(row) for row in random.permutation(n)[: n // 12]]
    doubtful += [row for row in range(8) if row not in doubtful]
    suspects = []
    for place, row in enumerate(doubtful):
        given, score = int(classes[row]), 1 - place / len(doubtful) / 2
        p = round(0.97 * score, 3), round(0.6 * (1 - score), 3)
        suspects.append(
            Suspect(row, given, (given + 1 + place % (count - 1)) % count, p[1], p[0], score)
        )
    last = [int(np.flatnonzero(classes == c)[-1]) for c in range(count)]
    outliers = [Outlier(last[c] - 1, 9.4 - c) for c in range(min(count, 5))]
    alike = [
        Alike(c, c + 1, 0.55 + 0.1 * c, (0.42 + 0.1 * c, 0.68 + 0.08 * c), 60) for c in (0, 1, 2)
    ]
    wishes = [Wish(c, int((classes == c).sum()), 0.6 + 0.03 * c, 0.06 - 0.01 * c) for c in range(4)]
    names = material.names
    gone = tuple(f"{material.labels[-1]}/gone-{i}.jpg" for i in range(4))
    moved = (Relabelled(3, material.labels[-1]), Relabelled(n - 2, "an old label"))
    return Findings(
        counts=np.bincount(classes, minlength=count),
        accuracy=0.8625,
        copies=copies,
        suspects=tuple(suspects),
        outliers=tuple(outliers),
        alike=tuple(alike),
        curve=make_curve(n),
        wishes=tuple(wishes),
        drift=Drift(1760000000, tuple(range(0, len(names), 9)), gone, moved, 0.0713, 0.0098),
        left_out=("the drift of 12 images, whose embeddings are no longer in the cache",),
    )


def make_curve(n: int) -> Curve:
    """Give a learning curve up to n images, and beyond up to 4 n."""

    def point(images: int) -> CurvePoint:
        accuracy = 0.95 - 1.1 * images**-0.5
        half = 0.5 * images**-0.5
        return CurvePoint(images, accuracy, (accuracy - half, min(accuracy + half, 1.0)))

    shares = (n // 8, n // 4, n // 2, n)
    return Curve(tuple(map(point, shares)), tuple(map(point, (2 * n, 4 * n))))


def without_findings(sample: Sample) -> Sample:
    """Give the same images with nothing to say about them."""
    findings = Findings(sample.findings.counts, float("nan"), (), (), (), (), None, (), None)
    return replace(sample, material=replace(sample.material, skipped=()), findings=findings)
