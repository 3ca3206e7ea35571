"""Versions only go up, a version appears whole, and dead jobs' leftovers go."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from job.errors import ConfigError, PublishError
from job.publish import (
    clean,
    in_service,
    move_channel,
    next_version,
    publish,
    publishing_order,
    read_channels,
    read_listing,
)
from job.storage import PROBE, Entry, LocalStore, Store, open_store

FILES = (
    "saved_model.pb", "variables/variables.index", "labels.txt", "assets/labels.txt",
    "assets.extra/tf_serving_warmup_requests",
)  # fmt: skip


def make_bundle(folder: Path) -> Path:
    """Make a folder with the files that matter to publishing."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"{folder.name} {name}".encode())
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle."""
    return make_bundle(tmp_path / "bundle")


@pytest.fixture(params=["local", "gcs"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The store of one model, empty, of each kind."""
    if request.param == "gcs":
        return open_store(f"gs://{request.getfixturevalue('bucket')}/models/m")
    (tmp_path / "models" / "m").mkdir(parents=True)
    return LocalStore(tmp_path / "models" / "m")


def names(models: Store) -> list[str]:
    """List what is there, claims and empty folders aside."""
    listed = [entry.name for entry in models.list()]
    return [name for name in listed if not name.startswith(".claims/") and name[-1] != "/"]


def test_versions_are_epoch_seconds_that_rise(models: Store, bundle: Path) -> None:
    """A version is the second of its publishing; a second one in that second is one more."""
    assert publish(bundle, models, now=1_700_000_000.9) == 1_700_000_000
    assert publish(bundle, models, now=1_700_000_000.9) == 1_700_000_001
    assert read_listing(models).versions == (1_700_000_000, 1_700_000_001)
    for name in FILES:
        assert models.read(f"1700000001/{name}") == (bundle / name).read_bytes()


def test_nothing_but_the_version_and_its_channel_is_left(models: Store, bundle: Path) -> None:
    """The staging folder is gone, `stable` points to the version."""
    version = publish(bundle, models)
    assert names(models) == sorted([*(f"{version}/{name}" for name in FILES), "channels.json"])
    assert read_channels(models) == {"stable": version}
    second = publish(bundle, models)
    assert read_channels(models) == {"stable": second, "previous": version}
    assert in_service(read_listing(models), read_channels(models)) == second


def test_warm_up_goes_first_and_saved_model_last() -> None:
    """A server that sees saved_model.pb finds everything else already there."""
    order = sorted(FILES, key=publishing_order)
    assert order[0].startswith("assets.extra/")
    assert order[-1] == "saved_model.pb"


def test_copies_in_a_bucket_are_made_in_that_order(bucket: str, bundle: Path) -> None:
    """By the generations of a real server: warm-up is the oldest, saved_model.pb the newest."""
    models = open_store(f"gs://{bucket}/m")
    version = publish(bundle, models)
    made = sorted(models.list(f"{version}/"), key=lambda entry: (entry.modified, entry.generation))
    assert made[0].name.endswith("tf_serving_warmup_requests")
    assert made[-1].name.endswith("saved_model.pb")


def test_what_is_no_version_is_not_counted(models: Store) -> None:
    """Only integer-named folders are versions; those without saved_model.pb are partial."""
    for name in ("channels.json", "12", ".staging/3/x", "v4/x", "5/saved_model.pb", "\u0666/x"):
        models.write(name, b"{}")
    models.write("6/labels.txt", b"")
    models.write(".withdrawn/7/saved_model.pb", b"")
    models.write(".claims/8", b"")
    listing = read_listing(models)
    assert (listing.versions, listing.partial) == ((5,), (6,))
    assert (listing.withdrawn, listing.claims) == ((7,), (8,))
    assert listing.newest == 8


def test_a_version_from_the_future_is_refused(models: Store, bundle: Path) -> None:
    """A 14-digit date would be served for ever: nothing is published, the hint says how to move."""
    models.write("20260101120000/saved_model.pb", b"")
    with pytest.raises(PublishError, match="20260101120000") as caught:
        publish(bundle, models, now=1_700_000_000)
    assert "copy" in caught.value.hint
    assert names(models) == ["20260101120000/saved_model.pb"]


def test_next_version_is_above_every_other() -> None:
    """Also above one of the same second, and of a clock a little ahead."""
    assert next_version(0, 100.5) == 100
    assert next_version(99, 100.5) == 100
    assert next_version(100, 100.5) == 101
    assert next_version(130, 100.5) == 131


def test_eight_at_once_are_eight_whole_versions(models: Store, tmp_path: Path) -> None:
    """Threads that publish one name in one second each get a version of their own files."""
    bundles = [make_bundle(tmp_path / f"bundle{n}") for n in range(8)]
    published: dict[int, Path] = {}

    def run(bundle: Path) -> None:
        published[publish(bundle, models, now=1_700_000_000)] = bundle

    threads = [threading.Thread(target=run, args=(bundle,)) for bundle in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_listing(models).versions == tuple(sorted(published))
    assert len(published) == 8
    for version, bundle in published.items():
        for name in FILES:
            assert models.read(f"{version}/{name}") == (bundle / name).read_bytes()
    assert read_channels(models)["stable"] == max(published)


class Corrupting(LocalStore):
    """A store that loses a byte on the way: what a bad network or disk would do."""

    def put_tree(self, folder: Path, name: str) -> None:
        """Copy, then damage a file."""
        super().put_tree(folder, name)
        (self.root / name / "labels.txt").write_bytes(b"x")


def test_what_arrives_damaged_is_not_published(tmp_path: Path, bundle: Path) -> None:
    """The checksums of the staged files are compared before anything becomes visible."""
    (tmp_path / "m").mkdir()
    with pytest.raises(PublishError, match=r"labels\.txt did not arrive"):
        publish(bundle, Corrupting(tmp_path / "m"))
    assert names(LocalStore(tmp_path / "m")) == []


class Failing(LocalStore):
    """A store on which moving goes wrong in some way, after the files are there."""

    failure: BaseException | None = None

    def move_tree(self, source: str, target: str, *, order: Any) -> None:
        """Move, then be interrupted, or find another's file among ours."""
        super().move_tree(source, target, order=order)
        if self.failure is not None:
            raise self.failure
        (self.root / target / "stranger").write_bytes(b"x")


def test_a_version_that_is_not_as_sent_is_removed(tmp_path: Path, bundle: Path) -> None:
    """Read back with a stranger's file in it: nothing of it stays visible."""
    (tmp_path / "m").mkdir()
    models = Failing(tmp_path / "m")
    with pytest.raises(PublishError):
        publish(bundle, models)
    assert names(models) == []
    assert len(read_listing(models).claims) == 1  # its number is not used again


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError("out")])
def test_a_version_that_is_loadable_stays(
    tmp_path: Path, bundle: Path, failure: BaseException
) -> None:
    """Interrupted or cut off once it is whole: a server may have loaded it by now."""
    (tmp_path / "m").mkdir()
    models = Failing(tmp_path / "m")
    models.failure = failure
    with pytest.raises(type(failure)):
        publish(bundle, models)
    (version,) = read_listing(models).versions
    assert sorted(names(models.child(str(version)))) == sorted(FILES)


def test_leftovers_of_dead_jobs_go_when_they_are_old(models: Store, bundle: Path) -> None:
    """Staging folders, partial versions and probes stay while they may be alive; then they go."""
    version = publish(bundle, models)
    models.write(".staging/dead/labels.txt", b"")
    models.write(f"{version - 5}/variables/x", b"")
    probe = f"{PROBE}of-a-killed-job"
    models.write(probe, b"")
    assert clean(models, 3600) == []
    time.sleep(0.05)
    assert clean(models, 0) == [probe, ".staging/dead", f"{version - 5}"]
    assert probe not in names(models)
    assert read_listing(models).partial == ()
    assert read_listing(models).versions == (version,)


def test_channels_that_move_at_once_take_turns(models: Store) -> None:
    """Twenty channels moved by twenty threads are all there afterwards."""
    threads = [
        threading.Thread(target=move_channel, args=(models, n, f"channel{n}")) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_channels(models) == {f"channel{n}": n for n in range(20)}


def test_stable_does_not_fall_behind_a_slower_job(models: Store) -> None:
    """A publisher that ends late with a lower version leaves `stable` where it is."""
    move_channel(models, 7, forward=True)
    move_channel(models, 5, forward=True)
    assert read_channels(models) == {"stable": 7}


def test_replacing_what_has_changed_is_refused(models: Store) -> None:
    """The precondition is what was read: absent, or that very content."""
    models.replace("x", b"1", None)
    (entry,) = models.list("x")
    models.replace("x", b"2", entry)
    for stale in (None, entry, Entry("x", 1, 12345)):
        with pytest.raises(FileExistsError):
            models.replace("x", b"3", stale)
    assert models.read("x") == b"2"


def test_damaged_channels_are_told(models: Store) -> None:
    """A channels.json that is none names itself and says what it should look like."""
    models.write("channels.json", json.dumps(["x"]).encode())
    with pytest.raises(ConfigError, match=r"channels\.json is damaged"):
        read_channels(models)
