"""What there is to learn from: the examples of a data set, each on a side of the split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from job.storage import Entry


class Split(StrEnum):
    """Which side of the experiment an example is on."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled image: its object, its labels' indices, ascending, and its side of the split.

    `key` is the object's name relative to its own source, by which images are split; `use` is the
    side that an import file asks for.
    """

    entry: Entry
    targets: tuple[int, ...]
    split: Split
    key: str = ""
    use: Split | None = None

    @property
    def name(self) -> str:
        """The object's name in the data set."""
        return self.entry.name

    @property
    def class_index(self) -> int:
        """The index of its label, where every image has one."""
        (only,) = self.targets
        return only


@dataclass(frozen=True, slots=True)
class Index:
    """The examples of a data set, sorted by side of the split and then by name, and their labels.

    `labels[i]` is the line of `labels.txt` for class index `i`.
    """

    labels: tuple[str, ...]
    examples: tuple[Example, ...]

    def count(self, split: Split) -> int:
        """Give the number of examples on one side of the split."""
        return sum(example.split is split for example in self.examples)

    def rows(self, split: Split) -> slice:
        """Give where the examples of one side stand: they are next to each other."""
        before = list(Split)[: list(Split).index(split)]
        start = sum(self.count(side) for side in before)
        return slice(start, start + self.count(split))

    def arranged(self, labels: tuple[str, ...]) -> Index:
        """Give the index with the same labels in another order, each example keeping its own."""
        moved = [labels.index(label) for label in self.labels]
        examples = (
            replace(e, targets=tuple(sorted(moved[i] for i in e.targets))) for e in self.examples
        )
        return Index(labels, tuple(examples))

    def without(self, names: Iterable[str]) -> Index:
        """Give the index less the examples of these names; the labels stay."""
        gone = frozenset(names)
        return replace(self, examples=tuple(e for e in self.examples if e.name not in gone))
