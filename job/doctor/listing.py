r"""The findings as a CSV, for people to go through, and back as the images to leave out.

A row is one finding about one image. Someone deletes the rows of images that are fine and gives the
rest back: every image that a row is left of is excluded. Given back whole, the file leaves of each
group of copies one image (see `staying`). What only changed, such as an image that was under
another label before, has no row: nobody wants it excluded.

Columns: name, finding (one of `Finding`), label as given, suggested label, score (of a wrong label
and an outlier), with (the copy that stays; of a contradiction the image that contradicts it).

Lines end as in RFC 4180, and what is no Unicode in a name is escaped, both as in `examples.csv`. A
backslash that could be taken for such an escape becomes `\x5c`, so that names come back exactly.
A spreadsheet would run a cell that begins like a formula: such a cell, and one that begins with
white space or an apostrophe, has an apostrophe put in front, which reading takes away again
(https://owasp.org/www-community/attacks/CSV_Injection). No TensorFlow.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from job.errors import ConfigError

if TYPE_CHECKING:  # its module loads TensorFlow
    from job.doctor.findings import Copies, Findings, Material

COLUMNS = ("name", "finding", "label", "suggested", "score", "with")

# What a spreadsheet takes for the beginning of a formula, the wide forms in East Asian ones, and
# what it skips before that.
_FORMULA = r"[=+\-@'\s\uff1d\uff0b\uff0d\uff20]"
_RISKY = re.compile(_FORMULA)
_GUARDED = re.compile(r"\A'(?=" + _FORMULA + ")")

# What `backslashreplace` writes for a lone surrogate, and our own escape of a backslash.
_ESCAPE = re.compile(r"\\x5c|\\ud[89a-f][0-9a-f]{2}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")

# Spreadsheets of many countries save with semicolons.
_HEADER = re.compile(r'\s*"?name"?\s*(?:([,;\t])|$)')


class Finding(StrEnum):
    """What a row says about its image."""

    WRONG_LABEL = "wrong-label"
    CONTRADICTION = "contradiction"  # the same image is under another label, too
    COPY = "copy"  # the same bytes under the same label
    NEAR_COPY = "near-copy"  # shows the same under the same label
    OUTLIER = "outlier"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Row:
    """One finding about one image; text is empty, and `score` None, where it does not apply."""

    name: str
    finding: Finding
    label: str = ""
    suggested: str = ""
    score: float | None = None
    other: str = ""


def csv_text(material: Material, findings: Findings) -> str:
    r"""Give the CSV. It can be encoded as UTF-8; write it without translating its line ends."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in rows(material, findings):
        score = "" if row.score is None else f"{row.score:.6g}"
        texts = (row.name, row.label, row.suggested, row.other)
        name, label, suggested, other = (_cell(text) for text in texts)
        writer.writerow([name, row.finding, label, suggested, score, other])
    return file.getvalue()


def rows(material: Material, findings: Findings) -> Iterator[Row]:
    """Give the rows: by finding, and of each the worst first as in `findings`."""
    names, labels = material.names, [material.labels[i] for i in material.classes]
    for s in findings.suspects:
        suggested = material.labels[s.suggested]
        yield Row(names[s.row], Finding.WRONG_LABEL, labels[s.row], suggested, s.score)
    stay = staying(material, findings)
    pairs = list(zip(findings.copies, stay, strict=True))
    for group, kept in pairs:
        if is_contradiction(group):
            yield from _contradiction(group, kept, names, labels)
    for group, kept in pairs:
        if not is_contradiction(group) and kept is not None:
            yield from _copies(group, kept, names, labels)
    for o in findings.outliers:
        yield Row(names[o.row], Finding.OUTLIER, labels[o.row], score=o.score)
    for skipped in material.skipped:
        yield Row(skipped.name, Finding.UNREADABLE)


def is_contradiction(group: Copies) -> bool:
    """Tell whether the same image is there under several labels."""
    return len(group.labels) > 1


def staying(material: Material, findings: Findings) -> list[int | None]:
    """Give for each group of copies the row of the one that has no row as a copy.

    It is the first by name of those that no other finding doubts, or of all where each is doubted:
    then those other rows decide. Of a contradiction it is one with the label that most have, those
    that are likely wrong not counted; None where that is a tie, as either label may be the wrong
    one.
    """
    wrong = {suspect.row for suspect in findings.suspects}
    doubted = wrong | {outlier.row for outlier in findings.outliers}
    found: list[int | None] = []
    for group in findings.copies:
        candidates = set(group.rows)
        if is_contradiction(group):
            label = _most(int(material.classes[row]) for row in group.rows if row not in wrong)
            candidates = {row for row in group.rows if material.classes[row] == label}
        # One order for all groups: the first of it is never a copy, even where groups overlap.
        order = {row: (row in doubted, material.names[row]) for row in candidates}
        found.append(min(order, key=order.__getitem__, default=None))
    return found


def _most(classes: Iterable[int]) -> int | None:
    ranked = Counter(classes).most_common(2)
    is_tie = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
    return None if is_tie or not ranked else ranked[0][0]


def _contradiction(
    group: Copies, kept: int | None, names: tuple[str, ...], labels: list[str]
) -> Iterator[Row]:
    for row in group.rows:
        if row == kept:
            continue
        if kept is not None and labels[row] == labels[kept]:
            yield _copy(group, row, kept, names, labels)
        else:
            suggested = "" if kept is None else labels[kept]
            contrary = (other for other in group.rows if labels[other] != labels[row])
            other = names[next(contrary) if kept is None else kept]
            yield Row(names[row], Finding.CONTRADICTION, labels[row], suggested, None, other)


def _copies(group: Copies, kept: int, names: tuple[str, ...], labels: list[str]) -> Iterator[Row]:
    return (_copy(group, row, kept, names, labels) for row in group.rows if row != kept)


def _copy(group: Copies, row: int, kept: int, names: tuple[str, ...], labels: list[str]) -> Row:
    finding = Finding.COPY if group.exact else Finding.NEAR_COPY
    return Row(names[row], finding, labels[row], other=names[kept])


def read_exclusions(text: str) -> frozenset[str]:
    r"""Give the names in such a CSV, or in a list of names, one a line.

    It is a CSV when its first line begins with the column `name`; other columns, their order and
    rows without a name do not matter, nor whether commas, semicolons or tabs part them. In both,
    escapes of what is no Unicode are resolved. Decode the file as UTF-8 with `surrogateescape`, as
    a list may have such names as bytes, and without translating line ends, which a name may hold.
    Raises ConfigError where quotes in the CSV do not match: they would swallow the rest of it.
    """
    text = text.removeprefix("\ufeff")  # as spreadsheets save
    first = text.partition("\n")[0].removesuffix("\r")
    header = _HEADER.match(first)
    # The name of an image has a slash, its label's, and a header has none.
    if header is None or "/" in first:
        lines = (line.removesuffix("\r") for line in text.split("\n"))
        return frozenset(_unescaped(line) for line in lines if line)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=header[1] or ",", strict=True)
    try:
        cells = [row[0] for row in reader if row and row[0]]
    except csv.Error as error:
        raise ConfigError(
            f"the list of images to exclude is no CSV at line {reader.line_num}: {error}, "
            "expected every quote to have its match",
            hint="delete whole rows in a spreadsheet, or give a list of names, one a line",
        ) from error
    return frozenset(_unescaped(_GUARDED.sub("", cell)) for cell in cells[1:])


def _cell(text: str) -> str:
    escaped = _ESCAPE.sub(lambda found: "\\x5c" + found[0][1:], text)
    escaped = _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", escaped)
    return "'" + escaped if _RISKY.match(escaped) else escaped


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[0][2:], 16)), text)
