"""What a command is given to learn from: its sources opened, its images listed. No TensorFlow."""

from __future__ import annotations

import logging
from functools import partial

from job.config import ReadOptions
from job.dataset import Index
from job.doctor.listing import read_exclusions
from job.errors import ConfigError, RegraftError
from job.index import build_index
from job.places import parent
from job.progress import log
from job.sources import Found, Selection, find_images
from job.storage import Readable, Store, open_store


def open_place(config: ReadOptions, uri: str) -> Store:
    """Open a store with the connections and the patience that the configuration gives it."""
    return open_store(uri, connections=config.fetch_threads, deadline=config.storage_deadline)


def open_data(config: ReadOptions, *, several: bool = False) -> Found:
    """List the images that are asked for; `several` is that of `find_images`."""
    files = [name[1:] for name in config.exclude if name.startswith("@")]
    patterns = tuple(name for name in config.exclude if not name.startswith("@"))
    names: frozenset[str] = frozenset().union(*(_read_names(config, file) for file in files))
    select = Selection(config.include, patterns, names)
    found = find_images(config.data, partial(open_place, config), select, several=several)
    for count, what in (
        (found.excluded, "images are left out"),
        (found.unlabelled, "images are without a label"),
        (found.unmatched, "names to leave out are those of no image"),
    ):
        if count:
            log(f"{count} {what}", level=logging.WARNING, count=count)
    return found


def index_of(config: ReadOptions, found: Found, *, check: bool = True) -> Index:
    """Give the index of what was found, split by name; `check` is that of `build_index`."""
    return build_index(
        found,
        config.validation_percent,
        config.test_percent,
        renamed=config.label_names,
        group_regex=config.group_regex,
        check=check,
    )


def _read_names(config: ReadOptions, uri: str) -> frozenset[str]:
    """Read the names that a file of `--exclude @FILE` has."""
    folder, name = parent(uri)
    store = open_place(config, folder)
    try:
        names: frozenset[str] = read_exclusions(store.read(name).decode())
        return names
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(
            f"--exclude @{uri}: {'it does not exist' if isinstance(error, OSError) else error}",
            hint="give the CSV of `inspect`, or a file with a name a line",
        ) from error


def read_quietly(store: Readable, name: str) -> bytes | None:
    """Give an image's bytes for its thumbnail; None when it cannot be had any more."""
    try:
        return store.read(name)
    except (RegraftError, OSError):
        return None
