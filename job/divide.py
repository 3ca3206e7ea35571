"""The split as it is when contents are known: copies on one side, nobody moved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from job.config import InputOptions
from job.dataset import Example, Index
from job.embed import Embeddings
from job.index import in_order
from job.ledger import Ledger, known_sides, lines_of, make_ledger
from job.near import near_duplicates
from job.progress import log
from job.split import Sides, assign, check_split, number_groups
from job.traits import fingerprints


@dataclass(frozen=True, slots=True)
class Divided:
    """Embeddings by the sides of the split, and the ledger that says who went where.

    `groups`, int64 `[n]`, number the images that are kept together; row i is of example i.
    `copies`, int64 `[p,2]`, are the pairs of rows that show the same.
    """

    embeddings: Embeddings
    groups: np.ndarray
    copies: np.ndarray
    ledger: Ledger

    def only(self, rows: np.ndarray, note: str) -> Divided:
        """Give what is left of some rows, rising; the ledger has a note for the others.

        Rows are moved in place: this one is not to be used afterwards. Raises DataError as
        `split.check_split` does.
        """
        index = self.embeddings.index
        examples, kept = index.examples, tuple(index.examples[row] for row in rows)
        check_split(kept, index.labels, self.groups[rows].tolist())
        gone = {example.name for example in examples} - {example.name for example in kept}
        ledger = make_ledger(
            replace(line, note=note) if line.name in gone and not line.note else line
            for line in self.ledger.lines
        )
        left = rearranged(self.embeddings, kept, rows)
        return Divided(left, self.groups[rows], places_of(rows, self.copies), ledger)


def divide(config: InputOptions, embeddings: Embeddings, before: Ledger) -> Divided:
    """Split embedded images for good: those of `before` stay where they were.

    The rows of `embeddings` are moved in place; they are not to be used afterwards. Raises
    DataError as `split.assign` and `split.check_split` do.
    """
    examples, labels = embeddings.index.examples, embeddings.index.labels
    copies = find_copies(embeddings)
    groups = find_groups(config, embeddings, copies)
    known = known_sides(before, examples, embeddings.digests, apart=config.keep_copies_apart)
    percents = (config.validation_percent, config.test_percent)
    sides = assign(examples, groups, known, labels, percents)
    if sides.left_out:
        first = examples[sides.left_out[0]].name
        message = (
            f"{len(sides.left_out)} images take no part, the first being {first!r}: copies of them "
            "are on another side of the split, and neither may move"
        )
        log(message, level=logging.WARNING, left_out=len(sides.left_out))
    placed = [replace(e, split=side) for e, side in zip(examples, sides.splits, strict=True)]
    divided = _arranged(embeddings, placed, sides, copies)
    check_split(divided.embeddings.index.examples, labels, divided.groups.tolist())
    ledger = before.followed_by(lines_of(placed, embeddings.digests, sides, known))
    return replace(divided, ledger=ledger)


def find_groups(config: InputOptions, embeddings: Embeddings, copies: np.ndarray) -> np.ndarray:
    """Give int64 `[n]`: images with the same number are kept together.

    They are `copies` of each other, int64 `[p,2]`, or belong together by their names.
    """
    keys = [example.key for example in embeddings.index.examples]
    pairs = () if config.keep_copies_apart else copies
    return number_groups(keys, config.group_regex, pairs)


def find_copies(embeddings: Embeddings) -> np.ndarray:
    """Give int64 `[p,2]`: rows whose images are the same bytes, or near duplicates.

    One that shows the other mirrored is none under another label: it may be left and right that the
    labels tell apart.
    """
    first: dict[str, int] = {}
    same = [(first.setdefault(digest, row), row) for row, digest in enumerate(embeddings.digests)]
    near = near_duplicates(embeddings.features, fingerprints(embeddings.traits))
    targets = [example.targets for example in embeddings.index.examples]
    alike = [targets[a] == targets[b] for a, b in near.edges.tolist()]
    apart = [(a, b) for a, b in same if a != b]
    edges = near.edges[~near.mirrored | np.array(alike, bool)]
    return np.concatenate([np.array(apart, np.int64).reshape(-1, 2), edges])


def _arranged(
    embeddings: Embeddings, placed: Sequence[Example], sides: Sides, copies: np.ndarray
) -> Divided:
    """Put the images that take part in the order of their sides, and their rows with them."""
    out = frozenset(sides.left_out)
    row_of = {example.name: row for row, example in enumerate(placed)}
    examples = in_order(example for row, example in enumerate(placed) if row not in out)
    order = np.array([row_of[example.name] for example in examples], np.int64)
    moved = rearranged(embeddings, examples, order)
    return Divided(moved, sides.groups[order], places_of(order, copies), Ledger())


def rearranged(
    embeddings: Embeddings, examples: tuple[Example, ...], order: np.ndarray
) -> Embeddings:
    """Give the embeddings of `examples`, which are those of the rows `order`, moved in place."""
    for table in (embeddings.features, embeddings.traits):
        move_rows(table, order)
    return replace(
        embeddings,
        index=Index(embeddings.index.labels, examples),
        features=embeddings.features[: len(order)],
        traits=embeddings.traits[: len(order)],
        digests=tuple(embeddings.digests[row] for row in order),
    )


def places_of(order: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Give pairs of rows, int64 `[p,2]`, as places in `order`, less those that it has not both."""
    place = np.full(max(order.max(initial=-1), edges.max(initial=-1)) + 1, -1)
    place[order] = np.arange(len(order))
    moved = place[edges]
    return np.asarray(moved[(moved >= 0).all(axis=1)])


def move_rows(table: np.ndarray, order: np.ndarray) -> None:
    """Have row i of `table[:len(order)]` be what row `order[i]` was, in place; no row comes twice.

    Rows that are in no order are lost. Each cycle of the permutation is followed with one row in
    hand, because there may be no room for a second table.
    """
    rest = np.setdiff1d(np.arange(len(table)), order)
    source = np.concatenate([order, rest]).tolist()
    for start in range(len(source)):
        if source[start] == start:
            continue
        held, place = table[start].copy(), start
        while source[place] != start:
            table[place] = table[source[place]]
            source[place], place = place, source[place]
        table[place] = held
        source[place] = place
