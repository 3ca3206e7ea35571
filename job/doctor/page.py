"""The findings as one HTML page, of the kind that the report is: see `job.page`.

Every list is cut, so that the page has a few MB however large the data set is; the CSV and the JSON
have the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from job.doctor.charts import byte_bars, bytes_text, curve_chart, size_grid
from job.doctor.findings import Alike, Copies, Findings, Material, Outlier, Suspect
from job.doctor.listing import is_contradiction, staying
from job.doctor.summary import headline, lines, share
from job.page import environment
from job.thumbnails import thumbnails

# Together there are up to 360 pictures, of 8 kB each.
MOST_SUSPECTS = 60
MOST_GROUPS = 24
MOST_IN_GROUP = 4
MOST_PAIRS = 8
MOST_OF_A_LABEL = 4
MOST_OUTLIERS = 36
MOST_SMALLEST = 10
MOST_ROWS = 30
MOST_NAMES = 200


@dataclass(frozen=True, slots=True)
class Shown:
    """An image that is shown, with the label that it has."""

    name: str
    label: str


@dataclass(frozen=True, slots=True)
class Doubt:
    """An image whose label is likely wrong, and the label that it may be."""

    image: Shown
    suspect: Suspect
    suggested: str


@dataclass(frozen=True, slots=True)
class Group:
    """`count` images that show the same, the first of them `images`.

    `kept` is the name of the one that stays when the CSV is given back whole, if any does. Of files
    of the same bytes one picture is enough: `pictures` are those that have one.
    """

    exact: bool
    count: int
    kept: str | None
    images: tuple[Shown, ...]

    @property
    def pictures(self) -> tuple[Shown, ...]:
        """The images of which the page has a picture."""
        return self.images[:1] if self.exact else self.images


@dataclass(frozen=True, slots=True)
class Side:
    """One of two labels that are hard to tell apart, with some of its images."""

    label: str
    images: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two labels that are hard to tell apart."""

    alike: Alike
    sides: tuple[Side, Side]


@dataclass(frozen=True, slots=True)
class Odd:
    """An image unlike all others."""

    image: Shown
    outlier: Outlier


@dataclass(frozen=True, slots=True)
class Small:
    """One of the images with the fewest pixels, as texts."""

    image: Shown
    size: str
    file_size: str


@dataclass(frozen=True, slots=True)
class LabelCount:
    """How many images a label has; `share` is of the label with the most, in [0,1]."""

    label: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Contents:
    """What the page shows of images, each list cut; `contradictions` and `copies` may have more."""

    suspects: tuple[Doubt, ...]
    contradictions: tuple[Group, ...]
    contradiction_count: int
    copies: tuple[Group, ...]
    copy_count: int
    pairs: tuple[Pair, ...]
    outliers: tuple[Odd, ...]

    def names(self) -> Iterator[str]:
        """Give the names of the images of which the page has pictures."""
        yield from (doubt.image.name for doubt in self.suspects)
        for group in (*self.contradictions, *self.copies):
            yield from (image.name for image in group.pictures)
        for pair in self.pairs:
            yield from (image.name for side in pair.sides for image in side.images)
        yield from (odd.image.name for odd in self.outliers)


def render(
    material: Material,
    findings: Findings,
    read_image: Callable[[str], bytes | None],
    title: str,
) -> str:
    """Give the page under a title.

    `read_image` gives an image's bytes by its name, or None; it is called from several threads.
    Raises what it raises.
    """
    shown = contents(material, findings)
    page = environment()
    page.filters["share"] = share
    return page.get_template("inspect.html").render(
        title=title,
        material=material,
        findings=findings,
        headline=headline(material, findings),
        lines=lines(material, findings),
        shown=shown,
        uris=thumbnails(shown.names(), read_image),
        counts=label_counts(material.labels, findings.counts),
        grid=size_grid(material.sizes),
        bars=byte_bars(material.file_bytes),
        smallest=smallest(material),
        chart=curve_chart(findings.curve) if findings.curve else None,
        most_rows=MOST_ROWS,
        most_names=MOST_NAMES,
    )


def contents(material: Material, findings: Findings) -> Contents:
    """Choose what is shown of each kind of finding that has pictures."""
    groups = list(zip(findings.copies, staying(material, findings), strict=True))
    contradictions = [pair for pair in groups if is_contradiction(pair[0])]
    copies = [pair for pair in groups if not is_contradiction(pair[0])]
    suspects = findings.suspects[:MOST_SUSPECTS]
    return Contents(
        tuple(Doubt(_image(material, s.row), s, material.labels[s.suggested]) for s in suspects),
        tuple(_group(material, *pair) for pair in contradictions[:MOST_GROUPS]),
        len(contradictions),
        tuple(_group(material, *pair) for pair in copies[:MOST_GROUPS]),
        len(copies),
        _pairs(material, findings),
        tuple(Odd(_image(material, o.row), o) for o in findings.outliers[:MOST_OUTLIERS]),
    )


def _image(material: Material, row: int) -> Shown:
    return Shown(material.names[row], material.labels[material.classes[row]])


def _group(material: Material, group: Copies, kept: int | None) -> Group:
    """Give a group with the one that stays first, then one of each label, then the others."""
    order = list(dict.fromkeys((*([] if kept is None else [kept]), *group.rows)))
    first = {int(material.classes[row]): row for row in reversed(order)}.values()
    order.sort(key=lambda row: row not in first)
    images = tuple(_image(material, row) for row in order[:MOST_IN_GROUP])
    name = None if kept is None else material.names[kept]
    return Group(group.exact, len(group.rows), name, images)


def _pairs(material: Material, findings: Findings) -> tuple[Pair, ...]:
    # An image that may have the wrong label is no example of it.
    doubted = {suspect.row for suspect in findings.suspects}

    def side(label: int) -> Side:
        rows = [int(r) for r in np.flatnonzero(material.classes == label) if int(r) not in doubted]
        step = max(len(rows) // MOST_OF_A_LABEL, 1)
        images = (_image(material, row) for row in rows[::step][:MOST_OF_A_LABEL])
        return Side(material.labels[label], tuple(images))

    pairs = findings.alike[:MOST_PAIRS]
    return tuple(Pair(pair, (side(pair.first), side(pair.second))) for pair in pairs)


def label_counts(labels: tuple[str, ...], counts: np.ndarray) -> list[LabelCount]:
    """Give the labels by their number of images, the fewest first."""
    most = max(int(counts.max(initial=0)), 1)
    order = np.argsort(counts, kind="stable")
    return [LabelCount(labels[i], int(counts[i]), int(counts[i]) / most) for i in order]


def smallest(material: Material) -> list[Small]:
    """Give the images with the fewest pixels, of those whose size is known."""
    pixels = material.sizes.astype(np.float64).prod(axis=1)
    known = np.flatnonzero(pixels)
    rows = known[np.argsort(pixels[known], kind="stable")][:MOST_SMALLEST]
    return [
        Small(
            _image(material, int(row)),
            "{:.0f} \u00d7 {:.0f}".format(*material.sizes[row]),
            bytes_text(int(material.file_bytes[row])),
        )
        for row in rows
    ]
