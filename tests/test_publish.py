"""Versions only go up, and a version appears whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from job.errors import PublishError
from job.publish import list_versions, next_version, publish
from job.storage import LocalStore, Store, open_store


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder with the files that matter to publishing."""
    folder = tmp_path / "bundle"
    (folder / "variables").mkdir(parents=True)
    for name in ("saved_model.pb", "variables/variables.index", "labels.txt"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture(params=["local", "gcs"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The store of one model, empty, of each kind."""
    if request.param == "gcs":
        return open_store(f"gs://{request.getfixturevalue('bucket')}/models/m")
    (tmp_path / "models" / "m").mkdir(parents=True)
    return LocalStore(tmp_path / "models" / "m")


def test_versions_are_epoch_seconds_that_rise(models: Store, bundle: Path) -> None:
    """A version is the second of its publishing; a second one in that second is one more."""
    assert publish(bundle, models, now=1_700_000_000.9) == 1_700_000_000
    assert publish(bundle, models, now=1_700_000_000.9) == 1_700_000_001
    assert list_versions(models) == [1_700_000_000, 1_700_000_001]
    assert models.read("1700000001/variables/variables.index") == b"variables/variables.index"


def test_what_is_no_version_is_not_counted(models: Store) -> None:
    """Only integer-named folders are versions: TensorFlow Serving reads no others."""
    for name in ("channels.json", "12", ".staging/3/x", "v4/x", "5/saved_model.pb", "\u0666/x"):
        models.write(name, b"")
    assert list_versions(models) == [5]


def test_a_version_from_the_future_is_refused(models: Store, bundle: Path) -> None:
    """A 14-digit date would be served for ever: nothing is published below it."""
    models.write("20260101120000/saved_model.pb", b"")
    with pytest.raises(PublishError, match="20260101120000") as caught:
        publish(bundle, models, now=1_700_000_000)
    assert "--name" in caught.value.hint
    assert list_versions(models) == [20260101120000]


def test_next_version_is_above_every_other() -> None:
    """Also above one of the same second, and of a clock a little ahead."""
    assert next_version([], 100.5) == 100
    assert next_version([5, 99], 100.5) == 100
    assert next_version([100], 100.5) == 101
    assert next_version([130], 100.5) == 131
