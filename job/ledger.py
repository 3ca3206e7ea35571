"""Who went where: the ledger beside a version, by which no image ever changes sides.

`ledger.csv` has a row for every image that this version or one before it has seen: `sha256`,
`split`, `group` (the first name of those that are kept together, empty for an image by itself),
`name` and `note`, which says why an image takes no part. No TensorFlow.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from job.dataset import Example, Split
from job.errors import ConfigError
from job.split import PRECEDENCE, Sides
from job.storage import Store

LEDGER = "ledger.csv"
EXAMPLES = "examples.csv"  # of a version from before there was a ledger; it has these columns too

GONE = "not in the data any more"
WRONG_LABEL = "left out: its label is likely wrong"
LEFT_OUT = "left out: a copy of it is on another side, where both have been since before"

SIDES = {side.value: side for side in Split}


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the ledger."""

    digest: str
    split: Split
    name: str
    group: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The sides that images have had.

    An image is its content: `by_digest` has the sides, the first of PRECEDENCE first, of what has
    an SHA-256. `by_name` has the lines by name, for an image that was edited.
    """

    lines: tuple[Line, ...] = ()
    by_digest: Mapping[str, tuple[Split, ...]] = field(default_factory=dict)
    by_name: Mapping[str, Line] = field(default_factory=dict)

    def side(self, name: str, digest: str, use: Split | None = None) -> Split | None:
        """Give the side that an image has been on, None for a new one.

        Content that was on several sides, before copies were kept together, counts for the side
        `use`, or else for the first of PRECEDENCE: what was tested on is never trained on.
        """
        sides = self.by_digest.get(digest)
        if sides:
            return use if use in sides else sides[0]
        line = self.by_name.get(name)
        return line.split if line else None

    def own_side(self, name: str, digest: str) -> Split | None:
        """Give the side of the file of this name if it still is what it was, else as `side`."""
        line = self.by_name.get(name)
        return line.split if line and line.digest == digest else self.side(name, digest)

    @property
    def left_out(self) -> tuple[Line, ...]:
        """Give the images that are there and take no part."""
        return tuple(line for line in self.lines if line.note == LEFT_OUT)

    def followed_by(self, lines: Iterable[Line]) -> Ledger:
        """Give the ledger with the images of today, and what is not among them as gone."""
        today = tuple(lines)
        best = make_ledger(today).by_digest
        gone = (
            Line(line.digest, line.split, line.name, note=GONE)
            for line in self.lines
            if line.digest not in best or _outranks(line.split, best[line.digest][0])
        )
        return make_ledger((*today, *gone))


def _outranks(side: Split, other: Split) -> bool:
    return PRECEDENCE.index(side) < PRECEDENCE.index(other)


def make_ledger(lines: Iterable[Line]) -> Ledger:
    """Give the ledger of some lines; of a name that stands twice the first one counts."""
    kept = tuple(lines)
    sides: dict[str, tuple[Split, ...]] = {}
    for line in sorted(kept, key=lambda line: PRECEDENCE.index(line.split)):
        found = sides.get(line.digest, ())
        sides[line.digest] = found if line.split in found else (*found, line.split)
    return Ledger(kept, sides, {line.name: line for line in reversed(kept)})


def read_ledger(models: Store, version: int | None) -> Ledger:
    """Read the ledger beside a version; an empty one where there is none, or no version.

    Raises ConfigError for one that is damaged: without it images would change sides.
    """
    for name in (LEDGER, EXAMPLES) if version else ():
        try:
            return parse_ledger(models.read(f"{version}/{name}"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise ConfigError(
                f"{models.uri}/{version}/{name} cannot be read: {error}",
                hint="put back the file that was published, or pass --resplit to assign every "
                "image anew",
            ) from error
    return Ledger()


def parse_ledger(contents: bytes) -> Ledger:
    """Read a ledger; raises ValueError for what is none."""
    rows = csv.DictReader(io.StringIO(contents.decode(), newline=""), strict=True)
    try:
        return make_ledger(
            Line(row["sha256"], SIDES[row["split"]], row["name"], "", row.get("note") or "")
            for row in rows
        )
    except (csv.Error, LookupError) as error:
        raise ValueError(f"line {rows.line_num}: {type(error).__name__}: {error}") from error


def write_ledger(folder: Path, ledger: Ledger) -> None:
    """Write `ledger.csv` into a bundle, in the order of the names."""
    # Names are bytes to an object store; one that is no Unicode is shown escaped, not lost.
    path = folder / LEDGER
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        # RFC 4180's line ends, because Python quotes only those that it writes itself.
        rows = csv.writer(file, lineterminator="\r\n")
        rows.writerow(["sha256", "split", "group", "name", "note"])
        for line in sorted(ledger.lines, key=lambda line: (line.name, line.digest)):
            rows.writerow([line.digest, line.split, line.group, line.name, line.note])


def known_sides(
    ledger: Ledger, examples: Sequence[Example], digests: Sequence[str], *, apart: bool = False
) -> list[Split | None]:
    """Give the side that each example has been on, None for a new one.

    The same content has the same side, unless copies are kept `apart`.
    """
    pairs = list(zip(examples, digests, strict=True))
    if apart:
        return [ledger.own_side(example.name, digest) for example, digest in pairs]
    known = [ledger.side(example.name, digest, example.use) for example, digest in pairs]
    best: dict[str, Split] = {}
    for side, digest in zip(known, digests, strict=True):
        if side and digest not in ledger.by_digest:  # several files were edited to be the same
            best[digest] = min(side, best.get(digest, side), key=PRECEDENCE.index)
    return [best.get(digest, side) for side, digest in zip(known, digests, strict=True)]


def lines_of(
    examples: Sequence[Example],
    digests: Sequence[str],
    sides: Sides,
    known: Sequence[Split | None],
) -> Iterator[Line]:
    """Give the rows of the examples of today, by the sides that they were assigned."""
    out = frozenset(sides.left_out)
    members: dict[int, list[str]] = {}
    for group, example in zip(sides.groups.tolist(), examples, strict=True):
        members.setdefault(group, []).append(example.name)
    named = {group: min(names) if len(names) > 1 else "" for group, names in members.items()}
    for row, (example, digest) in enumerate(zip(examples, digests, strict=True)):
        # One that takes no part stays where it has been, for the day when nothing keeps it out.
        split = known[row] or example.use or sides.splits[row]
        note = LEFT_OUT if row in out else ""
        yield Line(digest, split, example.name, named[int(sides.groups[row])], note)
