"""Where labelled images come from: folders and import files, one or several. No TensorFlow."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

from job.dataset import Split
from job.errors import ConfigError, DataError
from job.importfile import Listed, parse_import
from job.labels import quoted
from job.places import Open, expanded, parent
from job.storage import Entry, Readable, Store

# Files that file managers and version control leave behind; nobody means them as images.
IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class Row:
    """One image as a source has it.

    `entry` is its object, under the name that it has in the whole data set. `labels` are as
    written. `key` is its name relative to its own source, wherever that lies: the split goes by it.
    `use` is the side of the split that it is meant for, None where that is left to the split.
    """

    entry: Entry
    labels: tuple[str, ...]
    key: str
    use: Split | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images count.

    Their names fit any of `include` (all, where it is empty), none of `exclude`, and are not among
    `names`. Patterns are those of `fnmatch`, on the name relative to the source or the whole one.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()

    def takes(self, row: Row) -> bool:
        """Tell whether an image counts."""
        known = (row.key, row.entry.name)
        if self.names.intersection(known) or _fits(known, self.exclude):
            return False
        return not self.include or _fits(known, self.include)


def _fits(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


@dataclass(frozen=True, slots=True)
class Found:
    """What the sources hold: a place to read from, and a row an image.

    `empty` are folders without images. `excluded` is how many images a selection left out,
    `unmatched` how many of the names that it was given no image has, `unlabelled` how many rows of
    import files name no label, and are left out for it.
    """

    store: Readable
    rows: tuple[Row, ...]
    empty: tuple[str, ...] = ()
    excluded: int = 0
    unmatched: int = 0
    unlabelled: int = 0


class Union:
    """Several stores as one to read from; a name begins with the prefix of the store it is in."""

    def __init__(self, uri: str, places: Iterable[tuple[str, Store]]) -> None:
        self.uri = uri
        # The longest prefix first: a store may lie inside another one.
        self._places = sorted(places, key=lambda place: -len(place[0]))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Give the objects whose name starts with `prefix`, which names a store already."""
        place, store = self._place(prefix)
        for entry in store.list(prefix[len(place) :]):
            yield replace(entry, name=place + entry.name)

    def read(self, name: str, entry: Entry | None = None) -> bytes:
        """Give an object's bytes, as the store that it is in does."""
        place, store = self._place(name)
        local = name[len(place) :]
        return store.read(local, entry and replace(entry, name=local))

    def _place(self, name: str) -> tuple[str, Store]:
        return next(place for place in self._places if name.startswith(place[0]))


def find_images(
    uris: tuple[str, ...], open_at: Open, select: Selection | None = None, *, several: bool = False
) -> Found:
    """List every source; `several` says that an image may have several labels, or none of them.

    Of an import file's rows without a label those whose list of labels is there and empty are known
    to have none; the others have none yet, and are left out. Unless an image may have `several`,
    both are. Names are relative to the source where there is one only, and whole URIs otherwise.
    Raises DataError for an import file that is none, for an image under two uses, and for one under
    several labels unless it may have them.
    """
    sources = [source for uri in uris for source in expanded(uri, open_at)]
    alone = len(sources) == 1
    if alone and not sources[0].is_file:
        store = open_at(sources[0].uri)
        found = folder_rows(store)
        return _selected(store, found.rows, found, select)
    parts = [
        _import_rows(uri, open_at, alone, several) if is_file else _folder(uri, open_at)
        for uri, is_file in sources
    ]
    places = {prefix: store for part in parts for prefix, store in part.places.items()}
    rows = _merged([row for part in parts for row in part.found.rows], several)
    union = Union(", ".join(uris), places.items())
    whole = replace(
        parts[0].found,
        empty=tuple(name for part in parts for name in part.found.empty),
        unlabelled=sum(part.found.unlabelled for part in parts),
    )
    return _selected(union, rows, whole, select)


@dataclass(frozen=True, slots=True)
class _Part:
    """One source of several: what it holds, and the stores by the prefix of their names."""

    found: Found
    places: dict[str, Store]


def _selected(
    store: Readable, rows: Iterable[Row], found: Found, select: Selection | None
) -> Found:
    before = tuple(rows)
    if select is None:
        return replace(found, store=store, rows=before)
    kept = tuple(filter(select.takes, before))
    names = {name for row in before for name in (row.key, row.entry.name)} if select.names else ()
    unmatched, excluded = len(select.names.difference(names)), len(before) - len(kept)
    return replace(found, store=store, rows=kept, excluded=excluded, unmatched=unmatched)


def folder_rows(store: Store) -> Found:
    """Give what a store of one folder a label holds.

    Objects next to the folders, dot files and what file managers leave behind are passed over;
    anything else in a folder counts, whatever its name ends in. Folders inside a folder belong
    to it.
    """
    rows: list[Row] = []
    filled: set[str] = set()
    seen: dict[str, None] = {}
    for entry in store.list():
        folder, slash, rest = entry.name.partition("/")
        if slash and not is_ignored(folder):
            seen[folder] = None
            if not rest.endswith("/") and rest and not is_ignored(rest):
                rows.append(Row(entry, (folder,), entry.name))
                filled.add(folder)
    return Found(store, tuple(rows), tuple(name for name in seen if name not in filled))


def is_ignored(name: str) -> bool:
    """Tell whether an object is a leftover of a file manager or version control."""
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) or parts[-1].lower() in IGNORED_NAMES


def _folder(uri: str, open_at: Open) -> _Part:
    store = open_at(uri)
    found, prefix = folder_rows(store), f"{store.uri}/"
    rows = (replace(r, entry=replace(r.entry, name=prefix + r.entry.name)) for r in found.rows)
    return _Part(replace(found, rows=tuple(rows)), {prefix: store})


def _import_rows(uri: str, open_at: Open, alone: bool, several: bool) -> _Part:
    """Read an import file and look its images up; those that are not there are told when read."""
    base, file = parent(uri)
    folder = open_at(base)
    try:
        listed = parse_import(uri, folder.read(file))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{uri} does not exist", hint="give a folder, or a .csv or .jsonl import file"
        ) from error
    labelled = [item for item in listed if item.labels or (several and item.labels is not None)]
    uris = [_whole(uri, folder.uri, item) for item in labelled]
    inside = f"{folder.uri}/"
    places: dict[str, Store] = {}
    entries: dict[str, Entry] = {}
    for root in _roots(uris):
        store = open_at(root)
        prefix = _named(f"{store.uri}/", inside, alone)
        places[prefix] = store
        if root.startswith("gs://") or Path(root).is_dir():
            entries |= {f"{store.uri}/{entry.name}": entry for entry in store.list()}
    rows = []
    for item, full in zip(labelled, uris, strict=True):
        name = _named(full, inside, alone)
        entry = replace(entries.get(full, Entry("", 0, 1)), name=name)
        rows.append(Row(entry, item.labels or (), full.removeprefix(inside), item.use))
    missing = len(listed) - len(labelled)
    return _Part(Found(folder, tuple(rows), unlabelled=missing), places)


def _named(uri: str, inside: str, alone: bool) -> str:
    return uri.removeprefix(inside) if alone else uri


def _whole(source: str, base: str, item: Listed) -> str:
    """Give the URI of an image that an import file names."""
    path, scheme = item.path, urlsplit(item.path).scheme if "://" in item.path else ""
    local = not base.startswith("gs://")
    if scheme == "gs" or (scheme == "file" and local):
        return path.removeprefix("file://")
    if scheme or (path.startswith("/") and not local) or ".." in path.split("/"):
        raise DataError(
            f"{source} names the image {path!r}",
            hint=f"expected gs://bucket/name, or a path below {base}",
        )
    return path if path.startswith("/") else f"{base}/{path}"


def _roots(uris: Iterable[str]) -> list[str]:
    """Give the places to list: of a bucket the folder that has all its images; local folders."""
    folders: defaultdict[str, set[str]] = defaultdict(set)
    for uri in uris:
        folder = uri.rpartition("/")[0]
        bucket = "/".join(folder.split("/")[:3]) if folder.startswith("gs://") else folder
        folders[bucket].add(folder)
    return [
        bucket + os.path.commonpath([f[len(bucket) :] or "/" for f in found]).rstrip("/")
        if bucket.startswith("gs://")
        else bucket or "/"
        for bucket, found in sorted(folders.items())
    ]


def _merged(rows: list[Row], several: bool) -> Iterator[Row]:
    """Give one row an image, in the order of the names, each label of it once."""
    rows.sort(key=lambda row: row.entry.name)
    for name, group in groupby(rows, key=lambda row: row.entry.name):
        first, *others = group
        for row in others:
            if row.use is not first.use:
                raise DataError(
                    f"{name} is listed twice, as {first.use} and {row.use}",
                    hint="remove one of the rows",
                )
        labels = tuple(dict.fromkeys(label for row in (first, *others) for label in row.labels))
        if len(labels) > 1 and not several:
            what = "is listed twice, as" if others else "has the labels"
            raise DataError(
                f"{name} {what} {quoted(labels)}, expected one label",
                hint="keep one of them, or train with --task multilabel; `inspect` looks at images "
                "with one label each",
            )
        yield replace(first, labels=labels)
