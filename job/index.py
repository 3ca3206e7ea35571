"""The index of a data set: what the sources hold, with labels, split by name. No TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from job.dataset import Example, Index, Split
from job.errors import DataError
from job.labels import find_labels, quoted
from job.sources import Found, Row
from job.split import assign, check_split, number_groups


def build_index(
    found: Found,
    validation_percent: float,
    test_percent: float,
    *,
    renamed: Mapping[str, str] | None = None,
    group_regex: str | None = None,
    check: bool = True,
) -> Index:
    """Split by name what the sources hold; the labels are sorted.

    `renamed` is as in `labels.find_labels`, `group_regex` as in `split.number_groups`. Copies are
    told by their content, which is not known yet. Without `check` a label may have any number of
    images.

    Raises DataError when there is nothing to learn: no images, fewer than two labels, a label
    without images, two labels that are the same line of `labels.txt`, or a label of which there
    are too few images.
    """
    _check_found(found, check)
    lines = find_labels(
        found.store.uri, (name for row in found.rows for name in row.labels), renamed or {}
    )
    labels = tuple(sorted(set(lines.values()) - {""}))
    examples = labelled(found.rows, lines, labels)
    groups = number_groups([example.key for example in examples], group_regex, ())
    percents = (validation_percent, test_percent)
    sides = assign(examples, groups, [None] * len(examples), labels, percents)
    placed = [replace(e, split=side) for e, side in zip(examples, sides.splits, strict=True)]
    if check:
        check_split(placed, labels, groups.tolist())
    return Index(labels, in_order(placed))


def _check_found(found: Found, check: bool) -> None:
    uri = found.store.uri
    if not found.rows:
        because = f" ({found.excluded} were left out)" if found.excluded else ""
        raise DataError(
            f"{uri}: no images were found{because}",
            hint="expected one folder per label with images inside, such as DATA/cat/1.jpg, or an "
            "import file with a label for each image",
        )
    if found.empty and check:
        raise DataError(
            f"{uri}: no images in {quoted(found.empty)}", hint="add images or remove the folder"
        )


def labelled(
    rows: Iterable[Row], lines: Mapping[str, str], labels: tuple[str, ...]
) -> list[Example]:
    """Give examples, all on the training side; a row whose labels are all left out has none.

    `lines` has the line of `labels.txt` for each name of a label, empty where it is left out.
    """
    class_of = {label: number for number, label in enumerate(labels)}
    examples = []
    for row in rows:
        kept = {class_of[lines[name]] for name in row.labels if lines[name]}
        if kept or not row.labels:
            targets = tuple(sorted(kept))
            examples.append(Example(row.entry, targets, Split.TRAIN, row.key, row.use))
    return examples


def in_order(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Sort examples by side and name: each side in one piece, so that no solver needs a copy."""
    order = {side: place for place, side in enumerate(Split)}
    return tuple(sorted(examples, key=lambda example: (order[example.split], example.name)))
