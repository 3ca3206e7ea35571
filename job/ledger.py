"""Who went where: the ledger beside a version, by which no image ever changes sides.

`ledger.csv` has a row for every image that this version or one before it has seen: `sha256`,
`split`, `group` (images with the same number are kept together), `name` and `note`, which says why
an image takes no part. No TensorFlow.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from job.dataset import Example, Split
from job.split import PRECEDENCE, Sides
from job.storage import Store

LEDGER = "ledger.csv"
EXAMPLES = "examples.csv"  # of a version from before there was a ledger; it has these columns too

GONE = "not in the data any more"
LEFT_OUT = "left out: a copy of it is on another side, where both have been since before"

SIDES = {side.value: side for side in Split}


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the ledger; `group` is None for an image that is not there any more."""

    digest: str
    split: Split
    name: str
    group: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The sides that images have had, by the SHA-256 of their content and by their name."""

    lines: tuple[Line, ...] = ()
    by_digest: Mapping[str, Line] = field(default_factory=dict)
    by_name: Mapping[str, Line] = field(default_factory=dict)

    def side(self, name: str, digest: str) -> Split | None:
        """Give the side that an image has been on, None for a new one.

        It is known by name and content; else by its content, as one that was renamed or moved; else
        by its name, as one that was edited.
        """
        named = self.by_name.get(name)
        if named and named.digest == digest:
            return named.split
        line = self.by_digest.get(digest) or named
        return line.split if line else None

    @property
    def left_out(self) -> tuple[Line, ...]:
        """Give the images that are there and take no part."""
        return tuple(line for line in self.lines if line.note == LEFT_OUT)

    def followed_by(self, lines: Iterable[Line]) -> Ledger:
        """Give the ledger with the images of today, and what is not among them as gone."""
        today = tuple(lines)
        seen = {line.digest for line in today}
        gone = (
            Line(line.digest, line.split, line.name, None, GONE)
            for line in self.lines
            if line.digest not in seen
        )
        return make_ledger((*today, *gone))


def make_ledger(lines: Iterable[Line]) -> Ledger:
    """Give the ledger of some lines; of content that was on several sides the first one counts."""
    kept = tuple(lines)
    last_first = sorted(kept, key=lambda line: -PRECEDENCE.index(line.split))
    return Ledger(
        kept,
        {line.digest: line for line in last_first},
        {line.name: line for line in reversed(kept)},
    )


def read_ledger(models: Store, version: int | None) -> Ledger:
    """Read the ledger beside a version; an empty one where there is none, or no version."""
    for name in (LEDGER, EXAMPLES) if version else ():
        try:
            text = models.read(f"{version}/{name}").decode()
        except FileNotFoundError:
            continue
        return parse_ledger(text)
    return Ledger()


def parse_ledger(text: str) -> Ledger:
    """Read a ledger; rows that are none are passed over."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return make_ledger(
        Line(row["sha256"], SIDES[row["split"]], row["name"], None, row.get("note") or "")
        for row in rows
        if row.get("split") in SIDES and row.get("sha256") and row.get("name") is not None
    )


def write_ledger(folder: Path, ledger: Ledger) -> None:
    """Write `ledger.csv` into a bundle, in the order of the names."""
    # Names are bytes to an object store; one that is no Unicode is shown escaped, not lost.
    path = folder / LEDGER
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        # RFC 4180's line ends, because Python quotes only those that it writes itself.
        rows = csv.writer(file, lineterminator="\r\n")
        rows.writerow(["sha256", "split", "group", "name", "note"])
        for line in sorted(ledger.lines, key=lambda line: (line.name, line.digest)):
            group = "" if line.group is None else line.group
            rows.writerow([line.digest, line.split, group, line.name, line.note])


def known_sides(
    ledger: Ledger, examples: Iterable[Example], digests: Iterable[str]
) -> list[Split | None]:
    """Give the side that each example has been on, None for a new one."""
    pairs = zip(examples, digests, strict=True)
    return [ledger.side(example.name, digest) for example, digest in pairs]


def lines_of(
    examples: Sequence[Example],
    digests: Sequence[str],
    sides: Sides,
    known: Sequence[Split | None],
) -> Iterator[Line]:
    """Give the rows of the examples of today, by the sides that they were assigned."""
    out = frozenset(sides.left_out)
    takes_part = {digest for row, digest in enumerate(digests) if row not in out}
    for row, (example, digest) in enumerate(zip(examples, digests, strict=True)):
        split = sides.splits[row]
        if digest not in takes_part:
            # It stays where it has been, for the day when what keeps it out is gone. Content that
            # takes part under another name is where that is.
            split = known[row] or example.use or split
        note = LEFT_OUT if row in out else ""
        yield Line(digest, split, example.name, int(sides.groups[row]), note)
