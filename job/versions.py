"""The versions of a model, and which of them is in service: promote, roll back, prune."""

from __future__ import annotations

from dataclasses import dataclass

from job.documents import parse_object
from job.errors import ConfigError, PublishError
from job.publish import (
    LAST_FILE,
    PREVIOUS,
    STABLE,
    Listing,
    in_service,
    move_channel,
    publishing_order,
    read_channels,
    read_listing,
    rollback_mark,
)
from job.storage import Store


@dataclass(frozen=True, slots=True)
class Version:
    """One version: `state` is whole, partial or withdrawn; `channels` are those that point to it.

    `accuracy` is the test accuracy in its manifest (the subset accuracy, where an image has any
    number of labels), None where there is none.
    """

    version: int
    state: str
    channels: tuple[str, ...]
    in_service: bool
    accuracy: float | None


def list_versions(models: Store) -> list[Version]:
    """Give every version of a model, rising."""
    listing, channels = read_listing(models), read_channels(models)
    serving = in_service(listing, channels)
    states = {
        **dict.fromkeys(listing.withdrawn, "withdrawn"),
        **dict.fromkeys(listing.partial, "partial"),
        **dict.fromkeys(listing.versions, "whole"),
    }
    return [
        Version(
            version,
            state,
            tuple(sorted(name for name, target in channels.items() if target == version)),
            version == serving,
            _accuracy(models, version, state),
        )
        for version, state in sorted(states.items())
    ]


def _accuracy(models: Store, version: int, state: str) -> float | None:
    if state == "partial":
        return None
    folder = f".withdrawn/{version}" if state == "withdrawn" else str(version)
    try:
        manifest = parse_object(models.read(f"{folder}/manifest.json"))
        metrics = manifest["metrics"]
        return float(metrics.get("test_accuracy", metrics.get("test_subset_accuracy")))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def promote(models: Store, version: int, channel: str = STABLE) -> None:
    """Point a channel to a version; one that was withdrawn is brought back.

    Raises ConfigError when there is no such version.
    """
    if not channel or channel.isdigit() or channel == PREVIOUS:
        raise ConfigError(
            f"--channel is {channel!r}", hint=f"give a name such as {STABLE!r} or 'canary'"
        )
    listing = read_listing(models)
    if version in listing.withdrawn:
        models.move_tree(f".withdrawn/{version}", str(version), order=publishing_order)
        models.delete(rollback_mark(version))
    elif version not in listing.versions:
        raise _no_such_version(models, version, listing)
    move_channel(models, version, channel)


def rollback(models: Store, to: int | None = None) -> int:
    """Take back what is in service: `stable` goes to an older version, the newer are withdrawn.

    Withdrawn versions are kept aside under a name that is no integer, so that a server with the
    policy `latest` serves the older version too. `to` is the version to go to; the default is
    `previous`, or else the largest below the one in service. Gives the version that is in service
    then.

    Raises ConfigError when there is no such version, PublishError when there is none to go to.
    """
    listing, channels = read_listing(models), read_channels(models)
    serving = in_service(listing, channels)
    older = [v for v in listing.versions if serving is not None and v < serving]
    previous = channels.get(PREVIOUS)
    target = to if to is not None else previous if previous in older else max(older, default=None)
    if target is None:
        raise PublishError(
            f"{models.uri}: there is no version to roll back to",
            hint="`versions` lists what is there; a first version can only be replaced",
        )
    if target not in listing.versions:
        raise _no_such_version(models, target, listing)
    move_channel(models, target)
    for version in reversed(listing.versions):
        if version > target:
            models.write(rollback_mark(version), b"")
            withdraw(models, version)
    return target


def withdraw(models: Store, version: int) -> None:
    """Move a version aside; `promote` brings it back."""
    models.delete_tree(f".withdrawn/{version}", first=LAST_FILE)  # half of an earlier attempt
    models.move_tree(str(version), f".withdrawn/{version}", order=publishing_order)


def prune(models: Store, keep: int) -> list[int]:
    """Delete all but the newest `keep` versions, never one in service or in a channel.

    Withdrawn versions below the oldest kept one go too. Gives what was deleted, rising.
    """
    listing, channels = read_listing(models), read_channels(models)
    needed = {*channels.values(), in_service(listing, channels)}
    doomed = listing.versions[: max(0, len(listing.versions) - keep)]
    doomed = tuple(version for version in doomed if version not in needed)
    kept = [version for version in listing.versions if version not in doomed]
    shelved = [v for v in listing.withdrawn if v < min(kept, default=0)]
    for version in doomed:
        models.delete_tree(str(version), first=LAST_FILE)
    for version in shelved:
        models.delete_tree(f".withdrawn/{version}")
        models.delete(rollback_mark(version))
    return sorted([*doomed, *shelved])


def _no_such_version(models: Store, version: int, listing: Listing) -> ConfigError:
    there = ", ".join(map(str, listing.versions[-5:])) or "none"
    return ConfigError(f"{models.uri}: there is no version {version}; the newest are {there}")
