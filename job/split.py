"""The split that leaks nothing: stable by name, copies and groups on one side. No TensorFlow."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from job.dataset import Example, Split
from job.errors import DataError
from job.labels import quoted
from job.near import components

# retrain.py's resolution of the hash: 2^27 - 1 images a class. Kept so that a data set split by it
# under the same relative names falls the same way here.
HASH_STEPS = 2**27 - 1

# Of copies that were on several sides before, those on the first of these are kept.
PRECEDENCE = (Split.TEST, Split.VALIDATION, Split.TRAIN)

Pairs = Sequence[tuple[int, int]] | np.ndarray


@dataclass(frozen=True, slots=True)
class Sides:
    """Where each of n images goes.

    `splits` are their sides; those of `left_out`, rows in rising order, take no part, because a
    copy of them is on another side, where both have been since before. `groups`, int64 `[n]`,
    number the images that belong together, from 0 in the order of their first members.
    """

    splits: tuple[Split, ...]
    left_out: tuple[int, ...]
    groups: np.ndarray


def splitter(validation_percent: float, test_percent: float) -> Callable[[str], Split]:
    """Give the function from an image's name to its side of the split.

    The side depends on the name relative to the source and on nothing else: not on the mount, the
    order or the number of images, so an image stays on its side as the data set grows. What follows
    `_nohash_` in the file's name is left out, which keeps shots of one subject on one side. The
    formula is `which_set` in TensorFlow's retrain.py, applied to the relative name.
    """

    def split_of(name: str) -> Split:
        percent = _hash(hashed_part(name)) % (HASH_STEPS + 1) * (100.0 / HASH_STEPS)
        if percent < validation_percent:
            return Split.VALIDATION
        if percent < validation_percent + test_percent:
            return Split.TEST
        return Split.TRAIN

    return split_of


def hashed_part(name: str) -> str:
    """Give the part of a name that decides: all up to `_nohash_` in the file's own name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition("_nohash_")[0]


def _hash(text: str) -> int:
    digest = hashlib.sha1(text.encode(errors="surrogateescape"), usedforsecurity=False)
    return int(digest.hexdigest(), 16)


def number_groups(keys: Sequence[str], regex: str | None, pairs: Pairs) -> np.ndarray:
    """Give int64 `[n]`: images with the same number belong together.

    They do when their names agree up to `_nohash_`, or in what `regex` matches (its first group,
    where it has one), or when a chain of `pairs`, int `[p,2]`, connects them.
    """
    links: list[tuple[int, int]] = []
    first: dict[tuple[str, str], int] = {}
    pattern = re.compile(regex) if regex else None
    for row, key in enumerate(keys):
        names = [("name", hashed_part(key))]
        if pattern and (found := pattern.search(key)):
            said = found[1] if pattern.groups else found[0]
            names += [("group", said)] if said else []
        links += [(first.setdefault(name, row), row) for name in names]
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    edges = np.concatenate([np.array(links, np.int64).reshape(-1, 2), pairs])
    return components(len(keys), edges)


def assign(
    examples: Sequence[Example],
    groups: np.ndarray,
    known: Sequence[Split | None],
    labels: tuple[str, ...],
    percents: tuple[float, float],
) -> Sides:
    """Give each group of images one side of the split.

    `groups`, int64 `[n]`, is from `number_groups`; `known` has the side that an earlier version had
    each image on; `percents` are those of validation and test. A group goes where its import file
    says, or where it was; a new one where the first of its names is hashed to. A label that has no
    image on a side gets the new group there that is hashed the lowest, from a side that has more.

    The share of a side differs from what is asked for by at most
    `sqrt(log(2 / d) * sum(g^2) / 2) / n` with probability 1 - d (Hoeffding's inequality), for
    groups of g images of which none is fixed; n is the number of images.

    Raises DataError for an image that an import file moves away from where it was, and for a label
    with fewer than three groups.
    """
    fixed = [_fixed(example, side) for example, side in zip(examples, known, strict=True)]
    members: list[list[int]] = [[] for _ in range(int(groups.max(initial=-1)) + 1)]
    for row, group in enumerate(groups.tolist()):
        members[group].append(row)
    split_of = splitter(*percents)
    sides: list[Split] = []
    free: list[int] = []
    for group, rows in enumerate(members):
        said = {side for row in rows if (side := fixed[row])}
        if not said:
            free.append(group)
        leader = min(examples[row].key for row in rows)
        sides.append(next((s for s in PRECEDENCE if s in said), None) or split_of(leader))
    _fill(examples, members, sides, free, labels)
    left_out = tuple(
        row for row, group in enumerate(groups.tolist()) if fixed[row] not in (None, sides[group])
    )
    return Sides(tuple(sides[group] for group in groups.tolist()), left_out, groups)


def _fixed(example: Example, known: Split | None) -> Split | None:
    if known and example.use and example.use is not known:
        raise DataError(
            f"{example.name!r} was on the {known} side in an earlier version, and the import file "
            f"says {example.use}",
            hint="an image that changes sides makes scores that cannot be compared: leave it where "
            "it is, or pass --resplit to assign all of them anew",
        )
    return example.use or known


def _fill(
    examples: Sequence[Example],
    members: list[list[int]],
    sides: list[Split],
    free: list[int],
    labels: tuple[str, ...],
) -> None:
    """Move free groups to sides that lack a label; `sides` is changed."""
    held: list[set[int]] = [{t for row in rows for t in examples[row].targets} for rows in members]
    count = Counter((label, side) for has, side in zip(held, sides, strict=True) for label in has)
    by_label: defaultdict[int, list[int]] = defaultdict(list)
    for group in free:
        for label in held[group]:
            by_label[label].append(group)
    for label, side in _lacking(count, len(labels)):
        candidates = [
            group
            for group in by_label[label]
            # No label may lose its last group on the side that this one comes from.
            if all(count[other, sides[group]] > 1 for other in held[group])
        ]
        if count[label, side] or not candidates:
            continue
        chosen = min(candidates, key=lambda g: _hash(min(examples[r].key for r in members[g])))
        for other in held[chosen]:
            count[other, sides[chosen]] -= 1
            count[other, side] += 1
        sides[chosen] = side


def _lacking(count: Counter[tuple[int, Split]], labels: int) -> Iterator[tuple[int, Split]]:
    for label in range(labels):
        yield from ((label, side) for side in PRECEDENCE if not count[label, side])


def check_split(
    examples: Sequence[Example], labels: tuple[str, ...], groups: Sequence[int]
) -> None:
    """Check that every label is on every side of the split; `groups` are the examples' numbers.

    Raises DataError that names the labels: a score without them would not be of them.
    """
    held = {(target, e.split) for e in examples for target in e.targets}
    apart = {(t, group) for e, group in zip(examples, groups, strict=True) for t in e.targets}
    independent = Counter(target for target, _ in apart)
    for side in Split:
        missing = [label for i, label in enumerate(labels) if (i, side) not in held]
        if missing:
            found = [independent[labels.index(label)] for label in missing[:5]]
            raise DataError(
                f"no {side} image of {quoted(missing)}: there are {', '.join(map(str, found))} "
                "readable ones that are no copies of each other, expected at least 3 of each label",
                hint="add images of it (30 are usually enough): each side of the split needs one, "
                "and what earlier versions or an import file have placed stays where it is",
            )
