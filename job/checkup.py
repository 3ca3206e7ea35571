"""What the data doctor is given, and what it found: from embeddings that are there already."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np

from job.cache import EmbeddingCache
from job.doctor.examine import examine
from job.doctor.findings import Before, Copies, Findings, Material
from job.doctor.reduce import reduced
from job.embed import Embeddings
from job.ledger import EXAMPLES
from job.near import components
from job.neighbours import nearest
from job.storage import Store
from job.traits import TRAITS, fingerprints, sizes

# Neighbours of an image by which its label is judged, and how far it is from all others.
NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class Checkup:
    """A data set as the doctor has seen it, and what it found."""

    material: Material
    findings: Findings


def check_up(
    embeddings: Embeddings, groups: np.ndarray, copies: np.ndarray, before: Before | None
) -> Checkup:
    """Have the doctor look at embedded images of one label each.

    `groups`, int64 `[n]`, is that of `Material`, `copies` int64 `[p,2]` that of `find_copies`;
    `before` is the data of a version, None where there is nothing to compare with.
    """
    examples = embeddings.index.examples
    material = Material(
        names=tuple(example.name for example in examples),
        labels=embeddings.index.labels,
        classes=np.array([example.class_index for example in examples], np.int64),
        features=embeddings.features,
        fingerprints=fingerprints(embeddings.traits),
        sizes=sizes(embeddings.traits),
        digests=embeddings.digests,
        file_bytes=np.array([example.entry.size for example in examples], np.int64),
        groups=groups,
        skipped=embeddings.skipped,
    )
    neighbours = nearest(reduced(material.features), NEIGHBOURS)
    return Checkup(material, examine(material, before, _copies(material, copies), neighbours))


def _copies(material: Material, edges: np.ndarray) -> tuple[Copies, ...]:
    """Give the groups of images that show the same."""
    numbers = components(len(material.names), edges)
    order = np.argsort(numbers, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    return tuple(
        Copies(
            rows=tuple(part.tolist()),
            labels=tuple(np.unique(material.classes[part]).tolist()),
            exact=len({material.digests[row] for row in part}) == 1,
        )
        for part in parts
        if len(part) > 1
    )


def data_before(
    models: Store, version: int | None, cache: EmbeddingCache | None, width: int
) -> Before | None:
    """Give the data of a version, with those of its embeddings, of `width`, that a cache has.

    None where there is no version, or none that tells; one whose images may have several labels
    does not.
    """
    try:
        text = models.read(f"{version}/{EXAMPLES}").decode() if version else ""
    except FileNotFoundError:
        return None
    rows = [
        row
        for row in csv.DictReader(io.StringIO(text, newline=""))
        if row.get("sha256") and row.get("label")
    ]
    if version is None or not rows:
        return None
    digests = [row["sha256"] for row in rows]
    held = [place for place, digest in enumerate(digests) if cache and cache.holds(digest)]
    table = np.empty((len(held), width + TRAITS), np.float32)
    wanted: dict[str, list[int]] = {}
    for row, place in enumerate(held):
        wanted.setdefault(digests[place], []).append(row)
    lost = cache.fetch(wanted, table) if cache else set()
    kept = [row for row, place in enumerate(held) if digests[place] not in lost]
    return Before(
        version=version,
        names=tuple(row["name"] for row in rows),
        digests=tuple(digests),
        labels=tuple(row["label"] for row in rows),
        rows=np.array(held, np.int64)[kept],
        features=table[kept, :width],
    )
