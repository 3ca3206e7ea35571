"""Vertex AI's import files for image classification: CSV and JSON Lines. No TensorFlow.

The formats are those of "Prepare image training data for classification" in its documentation:
`[ML_USE,]PATH,LABEL[,LABEL...]`, and an object a line with `imageGcsUri`. Paths may also be
relative to the file's own folder.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from job.config import CSV
from job.dataset import Split
from job.documents import parse_object
from job.errors import DataError

ML_USE = "aiplatform.googleapis.com/ml_use"

# What ML_USE may say. UNASSIGNED is of the AutoML formats before, and leaves the split to us.
USES: dict[str, Split | None] = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "validate": Split.VALIDATION,
    "validation": Split.VALIDATION,
    "test": Split.TEST,
    "unassigned": None,
    "": None,
}


@dataclass(frozen=True, slots=True)
class Listed:
    """A row: an image's path as written, its labels as written, and the side it is meant for.

    `labels` is None where it has none yet, and empty where it is known to have none of them.
    """

    path: str
    labels: tuple[str, ...] | None
    use: Split | None


def parse_import(uri: str, contents: bytes) -> list[Listed]:
    """Read an import file; what it is, its URI's ending tells.

    Raises DataError that names the line which is not as expected.
    """
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{uri} is not UTF-8: {error}", hint="save it as UTF-8 text") from error
    read = _read_csv if uri.lower().endswith(CSV) else _read_json_lines
    return list(read(uri, text))


def _read_csv(uri: str, text: str) -> Iterator[Listed]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield _csv_row(uri, rows.line_num, cells)
    except csv.Error as error:
        raise _unexpected(uri, rows.line_num, f"{error}", "[ML_USE,]PATH,LABEL") from error


def _csv_row(uri: str, line: int, cells: list[str]) -> Listed:
    use = None
    # A path that is called like a use has a folder, or an ending.
    if len(cells) > 1 and cells[0].lower() in USES:
        use, cells = USES[cells[0].lower()], cells[1:]
    if not cells[0]:
        raise _unexpected(uri, line, repr(",".join(cells)), "[ML_USE,]PATH,LABEL")
    return Listed(cells[0], tuple(filter(None, cells[1:])) or None, use)


def _read_json_lines(uri: str, text: str) -> Iterator[Listed]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _json_row(parse_object(line.encode()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wanted = '{"imageGcsUri": PATH, "classificationAnnotation": {"displayName": LABEL}}'
            found = f"{line.strip()[:120]!r} ({type(error).__name__}: {error})"
            raise _unexpected(uri, number, found, wanted) from error


def _json_row(row: dict[str, Any]) -> Listed:
    path = _text(row["imageGcsUri"])
    labels: tuple[str, ...] | None = None
    if "classificationAnnotations" in row:
        labels = tuple(_text(item["displayName"]) for item in row["classificationAnnotations"])
    elif "classificationAnnotation" in row:
        labels = (_text(row["classificationAnnotation"]["displayName"]),)
    said = _text(row.get("dataItemResourceLabels", {}).get(ML_USE, "unassigned")).lower()
    if said not in USES:
        raise ValueError(f"{ML_USE} is {said!r}, expected training, validation or test")
    return Listed(path, labels, USES[said])


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"found {value!r} where there should be text")
    return value.strip()


def _unexpected(uri: str, line: int, found: str, wanted: str) -> DataError:
    return DataError(
        f"{uri}, line {line}: found {found}, expected {wanted}",
        hint="mend the line; docs/data.md has the formats",
    )
