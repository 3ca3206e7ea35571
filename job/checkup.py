"""What the data doctor is given, and what it found: from embeddings that are there already."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, replace

import numpy as np

from job.cache import EmbeddingCache
from job.config import SINGLE, RunConfig
from job.dataset import Split
from job.divide import Divided
from job.doctor.examine import examine
from job.doctor.findings import Before, Copies, Findings, Material
from job.doctor.listing import csv_text
from job.doctor.reduce import reduced
from job.doctor.summary import Line, lines
from job.embed import Embeddings
from job.ledger import EXAMPLES, WRONG_LABEL
from job.near import components
from job.neighbours import nearest
from job.progress import Progress
from job.result import Result
from job.stages import Source
from job.storage import Store
from job.traits import TRAITS, fingerprints, sizes

# A suspect with such a score is dropped where that is asked for: benchmarks/drop_suspects.py, with
# its table in docs/data.md. To drop every suspect, from 0.5 on, costs accuracy with good labels.
DROPPED = 0.8

# So many images of a version are drawn from for its distance to new ones.
MOST_BEFORE = 4000

SHA256 = re.compile("[0-9a-f]{64}")

# Neighbours of an image by which its label is judged, and how far it is from all others.
NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class Checkup:
    """A data set as the doctor has seen it, and what it found."""

    material: Material
    findings: Findings

    @property
    def lines(self) -> tuple[Line, ...]:
        """What was found, in short."""
        return lines(self.material, self.findings)

    @property
    def listing(self) -> str:
        """The CSV of it."""
        return csv_text(self.material, self.findings)


def check_up(
    embeddings: Embeddings,
    groups: np.ndarray,
    copies: np.ndarray,
    before: Before | None,
    *,
    growth: bool = True,
) -> Checkup:
    """Have the doctor look at embedded images of one label each.

    `groups`, int64 `[n]`, is that of `Material`, `copies` int64 `[p,2]` that of `find_copies`;
    `before` is the data of a version, None where there is nothing to compare with; `growth` is that
    of `examine`.
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
    features = reduced(material.features)
    neighbours = nearest(features, NEIGHBOURS)
    near = _copies(material, copies)
    found = examine(material, before, near, neighbours, features=features, growth=growth)
    return Checkup(material, found)


def look_at_data(
    config: RunConfig, source: Source, divided: Divided, progress: Progress, result: Result
) -> tuple[Divided, Checkup | None]:
    """Have the doctor look at what a run learns from; likely wrong labels go where that is asked.

    Gives what is left to learn from, and what was found: None where the doctor is not to look.
    """
    if config.skip_doctor or config.task != SINGLE:
        return divided, None
    plan, embeddings = source.plan, divided.embeddings
    with progress.phase("examine"):
        version = plan.serving.version if plan.serving else None
        before = data_before(plan.models, version, source.cache, embeddings)
        found = check_up(embeddings, divided.groups, divided.copies, before, growth=False)
        if config.drop_suspects:
            divided = without_suspects(divided)
            result.images["dropped"] = len(embeddings.index.examples) - len(divided.groups)
            result.images["train"] = divided.embeddings.index.count(Split.TRAIN)
    return divided, found


def without_suspects(divided: Divided) -> Divided:
    """Give what is left without the training images whose label is likely wrong.

    They are told from the training images alone: what is said of the test images must not decide
    what is learned. Raises DataError when a label has no training image left.
    """
    embeddings = divided.embeddings
    side = embeddings.index.rows(Split.TRAIN)
    rows = np.arange(side.start, side.stop)
    training = replace(
        embeddings,
        index=replace(embeddings.index, examples=embeddings.index.examples[side]),
        features=embeddings.features[side],
        traits=embeddings.traits[side],
        digests=embeddings.digests[side],
    )
    none = np.empty((0, 2), np.int64)
    found = check_up(training, divided.groups[side], none, None, growth=False).findings
    doubted = [rows[s.row] for s in found.suspects if s.score >= DROPPED]
    kept = np.setdiff1d(np.arange(len(divided.groups)), doubted)
    return divided.only(kept, WRONG_LABEL)


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
    models: Store, version: int | None, cache: EmbeddingCache | None, now: Embeddings
) -> Before | None:
    """Give the data of a version, with the embeddings of some of its images.

    Those come from the images that are here `now`, and where these are too few from a cache: what
    is compared is drawn from MOST_BEFORE of them at most, and a shard is fetched as a whole. None
    where there is no version, or none that tells; one whose images may have several labels does
    not.
    """
    rows = _read_examples(models, version)
    if version is None or not rows:
        return None
    digests = [row["sha256"] for row in rows]
    row_of = {digest: row for row, digest in enumerate(now.digests)}
    here = _some([place for place, digest in enumerate(digests) if digest in row_of], MOST_BEFORE)
    features = now.features[[row_of[digests[place]] for place in here]]
    if cache and len(here) < MOST_BEFORE:
        gone = [p for p, d in enumerate(digests) if d not in row_of and cache.holds(d)]
        gone = _some(gone, MOST_BEFORE - len(here))
        table = np.empty((len(gone), now.features.shape[1] + TRAITS), np.float32)
        wanted: dict[str, list[int]] = {}
        for row, place in enumerate(gone):
            wanted.setdefault(digests[place], []).append(row)
        lost = cache.fetch(wanted, table)
        kept = [row for row, place in enumerate(gone) if digests[place] not in lost]
        here += [gone[row] for row in kept]
        features = np.concatenate([features, table[kept, : now.features.shape[1]]])
    return Before(
        version=version,
        names=tuple(row["name"] for row in rows),
        digests=tuple(digests),
        labels=tuple(row["label"] for row in rows),
        rows=np.array(here, np.int64),
        features=features,
    )


def _read_examples(models: Store, version: int | None) -> list[dict[str, str]]:
    """Read the rows of a version's examples that say what is needed; none where there are none."""
    try:
        text = models.read(f"{version}/{EXAMPLES}").decode() if version else ""
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (FileNotFoundError, ValueError, csv.Error):
        return []
    return [row for row in rows if SHA256.fullmatch(row.get("sha256") or "") and row.get("label")]


def _some(places: list[int], most: int) -> list[int]:
    """Draw at most so many, in rising order; the same ones every time."""
    if len(places) <= most:
        return places
    drawn = np.random.default_rng(0).choice(len(places), most, replace=False)
    return [places[row] for row in np.sort(drawn)]
