"""A bundle becomes a version: one unit, visible whole or not at all."""

from __future__ import annotations

import time
from pathlib import Path

from job.errors import PublishError
from job.storage import Store

# TensorFlow Serving takes a version for servable when this is there, so it goes last.
LAST_FILE = "saved_model.pb"


def list_versions(models: Store) -> list[int]:
    """Give the versions of a model in rising order: every integer-named folder of its store."""
    heads = {entry.name.partition("/")[0] for entry in models.list() if "/" in entry.name}
    return sorted(int(head) for head in heads if head.isascii() and head.isdigit())


def next_version(versions: list[int], now: float) -> int:
    """Give the version for a bundle published at `now` (UTC epoch seconds), above all others.

    Raises PublishError when a version there lies in the future: TensorFlow Serving serves the
    largest integer, so it would go on serving that one.
    """
    newest = max(versions, default=0)
    # Versions of one second are counted up; a lead of more than a minute is no such run.
    if newest > now + 60:
        raise PublishError(
            f"version {newest} is there, above the epoch seconds of now ({int(now)})",
            hint="TensorFlow Serving would go on serving it; publish under a new --name, or move "
            "that version's folder away",
        )
    return max(int(now), newest + 1)


def publish(bundle: Path, models: Store, *, now: float | None = None) -> int:
    """Publish a bundle as the newest version of the model whose store is `models`.

    Raises PublishError when another job publishes the same version at the same moment.
    """
    version = next_version(list_versions(models), time.time() if now is None else now)
    try:
        models.put_tree(bundle, str(version), last=LAST_FILE)
    except FileExistsError as error:
        raise PublishError(
            f"{models.uri}/{version}: another job published there at the same moment",
            hint="run again: the next version will be above it",
        ) from error
    return version
