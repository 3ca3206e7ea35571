"""Names of labels: the lines of `labels.txt`, told apart, renamed and merged. No TensorFlow."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from job.config import did_you_mean
from job.errors import ConfigError, DataError


def label_line(name: str) -> str:
    """Give a label's line in `labels.txt`: its name in Unicode NFC, white space as one space."""
    return " ".join(re.sub(r"[\x00-\x1f]", " ", unicodedata.normalize("NFC", name)).split())


def find_labels(uri: str, found: Iterable[str], renamed: Mapping[str, str]) -> dict[str, str]:
    """Give the line of `labels.txt` for each name that was found, empty where it is left out.

    `renamed` maps names to new ones. Raises ConfigError when it has one that is not there, and
    DataError when a line would say nothing, or two would say the same.
    """
    names = sorted(set(found))
    for old in renamed:
        if old not in names:
            raise ConfigError(
                f"--label-map renames {old!r}, which no image has{did_you_mean(old, set(names))}",
                hint=f"the labels are {quoted(names, 20)}",
            )
    kept = {name: renamed.get(name, name) for name in names}
    lines: dict[str, str] = {}
    for name in sorted({new for old, new in kept.items() if new or old not in renamed}):
        _check_name(uri, name)
        other = lines.setdefault(_likeness(name), name)
        if other != name:
            raise DataError(
                f"{uri}: the labels {quoted([other, name])} cannot be told apart in labels.txt",
                hint="merge them with --label-map OLD=NEW, or give them names that differ in more "
                "than case and spaces",
            )
    if len(lines) < 2:
        raise DataError(
            f"{uri}: {'one label only, ' + quoted(lines.values()) if lines else 'no label'}, "
            "expected at least two",
            hint="a classifier needs something to tell apart; is --data one folder too deep?",
        )
    return {name: label_line(new) if new else "" for name, new in kept.items()}


def _check_name(uri: str, name: str) -> None:
    if not label_line(name):
        raise DataError(
            f"{uri}: the label {name!r} has no name that can be seen",
            hint="rename it; in a bucket, look for objects with two slashes in a row",
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{uri}: the name of the label {name!r} is not UTF-8, expected text for labels.txt",
            hint="rename it",
        ) from error


def _likeness(name: str) -> str:
    """Give what two names share when people would take them for one label."""
    return " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFKC", name).casefold())).strip()


def quoted(names: Iterable[str], most: int = 5) -> str:
    """Give names in quotes with commas between, and how many more there are than `most`."""
    shown = list(names)
    rest = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(repr(name) for name in shown[:most]) + rest
