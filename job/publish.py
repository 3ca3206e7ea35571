"""A bundle becomes a version: staged, checked, claimed, and visible whole or not at all.

Below `<models>/<name>/`, the store of one model:

    .staging/<run>/      a bundle on its way; TensorFlow Serving does not look at names like this
    .claims/<version>    who publishes that version; made with a precondition, so one job has it
    <version>/           what TensorFlow Serving sees; `saved_model.pb` arrives last
    .withdrawn/<version>/  taken back, so that the largest integer is a good one; what a person
                         rolled back has `.withdrawn/<version>.rolled-back` beside it
    .rejected/<run>/     the report of a model that the gate refused
    .checkpoints/<inputs>/  the state of a fit that is not done; job/checkpoints.py writes it
    .intermediate/<run>/ frozen graphs of a run that was not done; job/intermediate.py writes them
    channels.json        which version is `stable`, and which was before it

TensorFlow Serving polls every second and takes any integer-named child for a version. It tries
again when `saved_model.pb` is missing, so that file is what makes a version; an object store cannot
rename a folder, so the order of the copies is what makes it whole.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from job.documents import parse_object
from job.errors import ConfigError, PublishError, RegraftError
from job.storage import PROBE, Entry, Store, crc32c

# TensorFlow Serving takes a version for loadable when this is there.
LAST_FILE = "saved_model.pb"

CHANNELS = "channels.json"
STABLE, PREVIOUS = "stable", "previous"

# Seconds after which an unfinished publication is taken for a dead job's.
STALE_AFTER = 3600.0


@dataclass(frozen=True, slots=True)
class Listing:
    """What one listing of a model's store shows.

    `versions` are the whole ones, rising; `partial` have a folder but no `saved_model.pb` (yet);
    `rolled_back` are the withdrawn ones that a person took back.
    """

    versions: tuple[int, ...]
    partial: tuple[int, ...]
    withdrawn: tuple[int, ...]
    claims: tuple[int, ...]
    rolled_back: tuple[int, ...]

    @property
    def newest(self) -> int:
        """Give the largest integer that is or was taken, 0 where there is none."""
        return max((*self.versions, *self.partial, *self.withdrawn, *self.claims), default=0)


def read_listing(models: Store) -> Listing:
    """List a model's store once."""
    return _sort_out(models.list())


def _sort_out(entries: Iterable[Entry]) -> Listing:
    names = set()
    seen: set[int] = set()
    whole: set[int] = set()
    withdrawn: set[int] = set()
    claims: set[int] = set()
    for entry in entries:
        names.add(entry.name)
        head, _, rest = entry.name.partition("/")
        if _is_version(head) and rest:
            seen.add(int(head))
            if rest == LAST_FILE:
                whole.add(int(head))
        number = rest.partition("/")[0]
        if head in (".withdrawn", ".claims") and _is_version(number):
            (withdrawn if head == ".withdrawn" else claims).add(int(number))
    marked = {version for version in withdrawn if rollback_mark(version) in names}
    kinds = (whole, seen - whole, withdrawn, claims, marked)
    return Listing(*(tuple(sorted(kind)) for kind in kinds))


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit()


def next_version(newest: int, now: float) -> int:
    """Give the version for a bundle published at `now` (UTC epoch seconds), above `newest`.

    Raises PublishError when `newest` lies in the future: TensorFlow Serving serves the largest
    integer, so it would go on serving that one.
    """
    # Versions of one second are counted up; a lead of more than a minute is no such run.
    if newest > now + 60:
        raise PublishError(
            f"version {newest} is there, above the epoch seconds of now ({int(now)})",
            hint="TensorFlow Serving would go on serving it: publish under a new --name, or copy "
            f"that version to an epoch second below {int(now)}, wait until it is served, and "
            f"remove {newest}",
        )
    return max(int(now), newest + 1)


def publish(
    bundle: Path, models: Store, *, now: float | None = None, stale_after: float = STALE_AFTER
) -> int:
    """Publish a bundle as the newest version of the model whose store is `models`.

    The bundle is staged and its checksums are compared; a version is claimed; the files are moved
    there, `saved_model.pb` last; the listing is read back; then `stable` points to it. A crash
    leaves the version whole or without `saved_model.pb`, and the next run removes what is left of
    one that is older than `stale_after` seconds.

    Raises PublishError when what arrived is not what was sent, or when the version guard refuses.
    """
    clean(models, stale_after)
    run = uuid.uuid4().hex
    staging = f".staging/{run}"
    expected = {
        path.relative_to(bundle).as_posix(): crc32c(path.read_bytes())
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    }
    version: int | None = None
    try:
        models.put_tree(bundle, staging)
        _compare(models, staging, expected)
        version = _claim(models, run, time.time() if now is None else now)
        models.move_tree(staging, str(version), order=publishing_order)
        _compare(models, str(version), expected)
    except Exception as error:
        # What is left is ours alone: the staging folder, and the number we claimed. A version that
        # is loadable may be in service by now, so it goes only when it is bad. After a signal all
        # is left to the next run: a request of ours may be under way still.
        with contextlib.suppress(RegraftError, OSError):
            models.delete_tree(staging)
            if version is not None and not (_is_loadable(models, version) and _may_be_good(error)):
                models.delete_tree(str(version), first=LAST_FILE)
        raise
    move_channel(models, version, forward=True)
    return version


def _is_loadable(models: Store, version: int) -> bool:
    return version in read_listing(models).versions


def _may_be_good(error: Exception) -> bool:
    return not isinstance(error, PublishError)


def publishing_order(name: str) -> tuple[int, str]:
    """Sort files into the order in which they may appear: warm-up first, `saved_model.pb` last."""
    folders = ("assets.extra/", "assets/", "variables/")
    ranks = [rank for rank, folder in enumerate(folders) if name.startswith(folder)]
    return (len(folders) + 1 if name == LAST_FILE else (ranks or [len(folders)])[0], name)


def _claim(models: Store, run: str, now: float) -> int:
    """Take the next free version for this job alone."""
    version = next_version(read_listing(models).newest, now)
    for candidate in range(version, version + 1000):
        try:
            claim = json.dumps({"run": run, "time": now}).encode()
            models.write(f".claims/{candidate}", claim, if_absent=True)
        except FileExistsError:
            continue
        return candidate
    raise PublishError(
        f"{models.uri}: a thousand versions from {version} on are claimed",
        hint="something publishes in a loop: find it, or publish under a new --name",
    )


def _compare(models: Store, folder: str, expected: dict[str, str]) -> None:
    """Raise PublishError unless a folder of the store holds the expected files and no others."""
    found = {entry.name: entry for entry in models.child(folder).list()}
    wrong = [name for name in expected if name not in found]
    wrong += [name for name in found if name not in expected]
    wrong += [
        n for n, e in found.items() if n in expected and _sum(models, folder, e) != expected[n]
    ]
    if wrong:
        raise PublishError(
            f"{models.uri}/{folder}: {', '.join(sorted(wrong)[:5])} did not arrive as sent",
            hint="run again; if it stays, something else writes there",
        )


def _sum(models: Store, folder: str, entry: Entry) -> str:
    return entry.crc32c or crc32c(models.read(f"{folder}/{entry.name}"))


def clean(models: Store, stale_after: float = STALE_AFTER) -> list[str]:
    """Remove what dead jobs left: old staging folders, probes, versions without `saved_model.pb`.

    Gives what was removed, for the log. A partial version's claim stays: its number is not used
    again.
    """
    limit = time.time() - stale_after
    entries = list(models.list())
    partial = _sort_out(entries).partial
    newest_of: dict[str, float] = {}
    for entry in entries:
        parts = entry.name.split("/")
        if parts[0] == ".staging" and len(parts) > 2:
            unit = f".staging/{parts[1]}"
        elif _is_version(parts[0]) and int(parts[0]) in partial:
            unit = parts[0]
        elif entry.name.startswith(PROBE):
            unit = entry.name
        else:
            continue
        newest_of[unit] = max(newest_of.get(unit, 0.0), entry.modified)
    stale = [unit for unit, modified in sorted(newest_of.items()) if modified <= limit]
    for unit in stale:
        if unit.startswith(PROBE):
            models.delete(unit)
        else:
            models.delete_tree(unit)
    return stale


def rollback_mark(version: int) -> str:
    """Give the name of the object that says that a person took a version back."""
    return f".withdrawn/{version}.rolled-back"


def read_channels(models: Store) -> dict[str, int]:
    """Give the version of every channel; none where nothing was published by this tool."""
    return _read_channels(models)[0]


def _read_channels(models: Store) -> tuple[dict[str, int], Entry | None]:
    entry = next((e for e in models.list(CHANNELS) if e.name == CHANNELS), None)
    if entry is None:
        return {}, None
    try:
        channels = parse_object(models.read(CHANNELS, entry))
        if wrong := {k: v for k, v in channels.items() if type(v) is not int}:
            raise ValueError(f"{wrong} names no version")
    except ValueError as error:
        raise ConfigError(
            f"{models.uri}/{CHANNELS} is damaged: {error}",
            hint='expected {"stable": VERSION, "previous": VERSION}; mend or remove it',
        ) from error
    return channels, entry


def in_service(listing: Listing, channels: Mapping[str, int]) -> int | None:
    """Give the version that answers: `stable`, or else the largest whole one; None without any."""
    stable = channels.get(STABLE)
    return stable if stable in listing.versions else max(listing.versions, default=None)


def move_channel(
    models: Store, version: int, channel: str = STABLE, *, forward: bool = False
) -> None:
    """Point a channel to a version; `previous` remembers where `stable` was.

    With `forward` a channel that is ahead already stays: of two jobs that end at once the later
    version is in service. Two that move it at once take turns: the write has what was read as its
    precondition.
    """
    for _ in range(100):
        try:
            channels, entry = _read_channels(models)
            before = channels.get(channel)
            if before == version or (forward and before is not None and before > version):
                return
            if channel == STABLE and before is not None:
                channels[PREVIOUS] = before
            channels[channel] = version
            text = json.dumps(channels, sort_keys=True) + "\n"
            models.replace(CHANNELS, text.encode(), entry)
        except (FileExistsError, FileNotFoundError):
            time.sleep(0.05)
            continue
        return
    raise PublishError(f"{models.uri}/{CHANNELS} changes faster than it can be written")
