"""What there is to learn from: the index of a data set, and its stable split."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from job.errors import DataError
from job.storage import Entry, Store

# Files that file managers and version control leave behind; nobody means them as images.
IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini"})

# retrain.py's resolution of the hash: 2^27 - 1 images a class. Kept so that a data set split by it
# under the same relative names falls the same way here.
HASH_STEPS = 2**27 - 1


class Split(StrEnum):
    """Which side of the experiment an example is on."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled image: its object, its labels' indices, ascending, and its side of the split."""

    entry: Entry
    targets: tuple[int, ...]
    split: Split

    @property
    def name(self) -> str:
        """The object's name relative to the data URI."""
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


def build_index(store: Store, validation_percent: float, test_percent: float) -> Index:
    """List a data set of one folder per label and split it; the labels are sorted.

    Raises DataError when there is nothing to learn: no images, fewer than two labels, a label
    without images, two labels that are the same line of `labels.txt`, or a label that is missing
    on one side of the split.
    """
    folders = scan(store)
    counts = {folder: len(entries) for folder, entries in folders.items()}
    labels = _labels(store.uri, counts)
    split_of = splitter(validation_percent, test_percent)
    class_of = {folder: labels.index(label_line(folder)) for folder in folders}
    examples = [
        Example(entry, (class_of[folder],), split_of(entry.name))
        for folder, entries in folders.items()
        for entry in entries
    ]
    # Each side in one piece, so that a solver can have its embeddings without a copy.
    order = {side: place for place, side in enumerate(Split)}
    examples.sort(key=lambda example: (order[example.split], example.name))
    index = Index(labels, tuple(examples))
    check_split(index)
    return index


def scan(store: Store) -> dict[str, list[Entry]]:
    """Give the objects below each top folder of a store; an empty folder has none.

    Objects next to the folders, dot files and what file managers leave behind are passed over;
    anything else in a folder counts, whatever its name ends in. Folders inside a folder belong
    to it.
    """
    folders: dict[str, list[Entry]] = {}
    for entry in store.list():
        folder, slash, rest = entry.name.partition("/")
        if slash and not is_ignored(folder):
            entries = folders.setdefault(folder, [])
            if not rest.endswith("/") and rest and not is_ignored(rest):
                entries.append(entry)
    return folders


def _labels(uri: str, folders: dict[str, int]) -> tuple[str, ...]:
    """Give the sorted lines of `labels.txt` for folders with so many images each, or complain."""
    if not sum(folders.values()):
        raise DataError(
            f"{uri}: no images were found",
            hint="expected one folder per label with images inside, such as DATA/cat/1.jpg",
        )
    if empty := [folder for folder, count in folders.items() if not count]:
        raise DataError(
            f"{uri}: no images in {_quoted(empty)}", hint="add images or remove the folder"
        )
    seen: dict[str, str] = {}
    for folder in folders:
        _check_name(uri, folder)
        other = seen.setdefault(_likeness(folder), folder)
        if other != folder:
            raise DataError(
                f"{uri}: the folders {_quoted([other, folder])} cannot be told apart in labels.txt",
                hint="merge them, or give them names that differ in more than case and spaces",
            )
    if len(folders) < 2:
        raise DataError(
            f"{uri}: one label only, {_quoted(folders)}, expected at least two",
            hint="a classifier needs something to tell apart; is --data one folder too deep?",
        )
    return tuple(sorted(label_line(folder) for folder in folders))


def _check_name(uri: str, folder: str) -> None:
    if not label_line(folder):
        raise DataError(
            f"{uri}: the folder {folder!r} has no name that can be seen",
            hint="rename it; in a bucket, look for objects with two slashes in a row",
        )
    try:
        folder.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{uri}: the name of the folder {folder!r} is not UTF-8, expected text for labels.txt",
            hint="rename it",
        ) from error


def label_line(folder: str) -> str:
    """Give a folder's line in `labels.txt`: its name in Unicode NFC, white space as one space."""
    return " ".join(re.sub(r"[\x00-\x1f]", " ", unicodedata.normalize("NFC", folder)).split())


def _likeness(folder: str) -> str:
    """Give what two folders share when people would take them for one label."""
    return " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFKC", folder).casefold())).strip()


def is_ignored(name: str) -> bool:
    """Tell whether an object is a leftover of a file manager or version control."""
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) or parts[-1].lower() in IGNORED_NAMES


def splitter(validation_percent: float, test_percent: float) -> Callable[[str], Split]:
    """Give the function from an object's name to its side of the split.

    The side depends on the name relative to the data URI and on nothing else: not on the mount, the
    order or the number of images, so an image stays on its side as the data set grows. What follows
    `_nohash_` in the file's name is left out, which keeps shots of one subject on one side. The
    formula is `which_set` in TensorFlow's retrain.py, applied to the relative name.
    """

    def split_of(name: str) -> Split:
        folder, slash, base = name.rpartition("/")
        key = folder + slash + base.partition("_nohash_")[0]
        digest = hashlib.sha1(key.encode(errors="surrogateescape"), usedforsecurity=False)
        percent = int(digest.hexdigest(), 16) % (HASH_STEPS + 1) * (100.0 / HASH_STEPS)
        if percent < validation_percent:
            return Split.VALIDATION
        if percent < validation_percent + test_percent:
            return Split.TEST
        return Split.TRAIN

    return split_of


def check_split(index: Index) -> None:
    """Check that every label is on every side of the split.

    Raises DataError that names the labels: a score without them would not be of them.
    """
    count = Counter((example.class_index, example.split) for example in index.examples)
    for split in Split:
        missing = [lab for i, lab in enumerate(index.labels) if not count[i, split]]
        if missing:
            totals = [sum(count[index.labels.index(lab), s] for s in Split) for lab in missing]
            raise DataError(
                f"no readable {split} image of {_quoted(missing)} "
                f"(images in all: {', '.join(map(str, totals[:5]))})",
                hint="add images of it (30 are usually enough), or raise --validation-percent and "
                "--test-percent; the side is chosen by the file's name and stays the same",
            )


def _quoted(names: Iterable[str], most: int = 5) -> str:
    shown = list(names)
    rest = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(repr(name) for name in shown[:most]) + rest
