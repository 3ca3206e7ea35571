"""Promote, roll back and prune: what is in service is never lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_publish import FILES, make_bundle

from job.errors import ConfigError, PublishError
from job.publish import in_service, publish, read_channels, read_listing
from job.storage import LocalStore, Store, open_store
from job.versions import list_versions, promote, prune, rollback

NOW = 1_700_000_000


@pytest.fixture(params=["local", "gcs"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store with four versions, NOW to NOW + 3."""
    if request.param == "gcs":
        store: Store = open_store(f"gs://{request.getfixturevalue('bucket')}/m")
    else:
        store = LocalStore(tmp_path / "m")
        store.root.mkdir()
    for step in range(4):
        publish(make_bundle(tmp_path / f"bundle{step}"), store, now=NOW + step)
    return store


def test_rollback_puts_the_one_before_in_service(models: Store) -> None:
    """`stable` goes back, and the newer version is no integer any more, but not lost."""
    assert rollback(models) == NOW + 2
    assert in_service(read_listing(models), read_channels(models)) == NOW + 2
    assert read_listing(models).versions == (NOW, NOW + 1, NOW + 2)
    assert read_listing(models).withdrawn == (NOW + 3,)
    assert rollback(models) == NOW + 1
    assert in_service(read_listing(models), read_channels(models)) == NOW + 1


def test_rollback_to_a_chosen_version_withdraws_all_above(models: Store) -> None:
    """A server with the policy `latest` serves the chosen one."""
    assert rollback(models, NOW) == NOW
    assert read_listing(models).versions == (NOW,)
    with pytest.raises(PublishError, match="no version to roll back to"):
        rollback(models)
    with pytest.raises(ConfigError, match="no version 5"):
        rollback(models, 5)


def test_promote_brings_a_withdrawn_version_back_whole(models: Store) -> None:
    """All its files return, and `previous` remembers the way."""
    rollback(models)
    promote(models, NOW + 3)
    assert in_service(read_listing(models), read_channels(models)) == NOW + 3
    for name in FILES:
        assert models.read(f"{NOW + 3}/{name}") == f"bundle3 {name}".encode()
    assert read_channels(models) == {"stable": NOW + 3, "previous": NOW + 2}


def test_after_a_rollback_the_next_version_is_above_the_withdrawn(
    models: Store, tmp_path: Path
) -> None:
    """A withdrawn number is not given to another model."""
    rollback(models)
    assert publish(make_bundle(tmp_path / "next"), models, now=NOW) == NOW + 4


def test_other_channels(models: Store) -> None:
    """A channel of its own points where it is told; a number is no name, nor is `previous`."""
    promote(models, NOW + 1, "canary")
    assert read_channels(models)["canary"] == NOW + 1
    assert in_service(read_listing(models), read_channels(models)) == NOW + 3
    for name in ("7", "previous", ""):
        with pytest.raises(ConfigError, match="--channel"):
            promote(models, NOW, name)
    with pytest.raises(ConfigError, match="no version 9"):
        promote(models, 9)


def test_prune_keeps_the_newest_and_what_is_in_use(models: Store) -> None:
    """The version in service and those of channels stay however old they are."""
    promote(models, NOW + 1)
    promote(models, NOW, "canary")
    assert prune(models, keep=1) == [NOW + 2]
    assert read_listing(models).versions == (NOW, NOW + 1, NOW + 3)
    assert prune(models, keep=1) == []


def test_versions_are_listed_with_their_channels(models: Store) -> None:
    """Each version has its state, its channels and whether it is in service."""
    rollback(models)
    models.write("42/labels.txt", b"")
    listed = [(v.version, v.state, v.channels, v.in_service) for v in list_versions(models)]
    assert listed == [
        (42, "partial", (), False),
        (NOW, "whole", (), False),
        (NOW + 1, "whole", (), False),
        (NOW + 2, "whole", ("stable",), True),
        (NOW + 3, "withdrawn", ("previous",), False),
    ]
