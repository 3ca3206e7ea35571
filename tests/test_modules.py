"""Modules come from everywhere, whole or not at all; servers and processes here are real."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import shutil
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from job import modules
from job.backbone import load_backbone
from job.errors import ConfigError, UnavailableError
from job.modules import cached, fetch_module, load_module, module_digest
from tests.modules import POOLING_GAIN, pack, write_pooling, write_pooling_tf1

FORMATS = {"tf2": write_pooling, "tf1": write_pooling_tf1}
DATA = "variables/variables.data-00000-of-00001"


@pytest.fixture(scope="module")
def pooling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pooling module in TF2 format; read only."""
    return write_pooling(tmp_path_factory.mktemp("pooling") / "module")


@pytest.fixture(scope="module")
def archive(pooling: Path) -> Path:
    """The pooling module, packed; read only."""
    return pack(pooling, pooling.parent / "module.tar.gz")


@dataclass
class Site:
    """What a web server answers with, and what it was asked for."""

    url: str = ""
    body: bytes = b""
    status: int = 200
    cut_first: int = 0  # so many answers stop halfway, as when a connection breaks
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def site(archive: Path) -> Iterator[Site]:
    """A live web server with the packed module at every path."""
    site = Site(body=archive.read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            if site.status != 200:
                self.send_error(site.status)
                return
            cut = len(site.asked) <= site.cut_first
            self.send_response(200)
            self.send_header("Content-Length", str(len(site.body)))
            self.end_headers()
            self.wfile.write(site.body[: len(site.body) // 2] if cut else site.body)

        def log_message(self, *_: Any) -> None:
            """Keep the test's output to itself."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}"
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_hub_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TFHUB_CACHE_DIR", raising=False)


def assert_whole(folder: Path, original: Path) -> None:
    """Check that a folder holds the module, byte for byte, and loads."""
    assert module_digest(folder) == module_digest(original)
    np.testing.assert_array_equal(load_module(folder).gain, POOLING_GAIN)


def assert_no_leftovers(cache: Path) -> None:
    """Check that nothing half-made stayed behind."""
    assert list(cache.rglob(".partial*")) == []


# --- where modules come from ----------------------------------------------------------------------


def test_local_folder_is_used_in_place(pooling: Path, tmp_path: Path) -> None:
    """A path and its file:// URI give the folder itself, and fill no cache."""
    assert fetch_module(str(pooling), tmp_path / "cache") == pooling
    assert fetch_module(pooling.as_uri(), tmp_path / "cache") == pooling
    assert not (tmp_path / "cache").exists()


def test_local_archive_is_unpacked_once(pooling: Path, archive: Path, tmp_path: Path) -> None:
    """An archive gives the module's files, from the cache the second time, by URI too."""
    first = fetch_module(str(archive), tmp_path)
    assert_whole(first, pooling)
    assert fetch_module(archive.as_uri(), tmp_path) == first
    assert_no_leftovers(tmp_path)


def test_replaced_archive_is_unpacked_again(pooling: Path, tmp_path: Path) -> None:
    """Another archive under the same name is not answered from the cache."""
    target = tmp_path / "module.tar.gz"
    first = fetch_module(str(pack(pooling, target)), tmp_path)
    other = fetch_module(str(pack(write_pooling_tf1(tmp_path / "other"), target)), tmp_path)
    assert module_digest(first) != module_digest(other)


def test_bucket_folder_and_archive(
    pooling: Path, archive: Path, tmp_path: Path, upload: Callable[[Path, str], str]
) -> None:
    """gs:// gives a folder's files and an archive's, both from the cache the second time."""
    (tmp_path / "up").mkdir()
    shutil.copytree(pooling, tmp_path / "up" / "module")
    shutil.copy(archive, tmp_path / "up" / "module.tar.gz")
    uri = upload(tmp_path / "up", "some/prefix")
    for handle in (f"{uri}/module", f"{uri}/module.tar.gz"):
        first = fetch_module(handle, tmp_path / "cache")
        assert_whole(first, pooling)
        assert fetch_module(handle, tmp_path / "cache") == first


def test_replaced_bucket_folder_is_fetched_again(
    pooling: Path, tmp_path: Path, upload: Callable[[Path, str], str]
) -> None:
    """A gs:// folder with a new generation of a file is not answered from the cache."""
    handle = upload(pooling, "module")
    first = fetch_module(handle, tmp_path)
    shutil.copytree(pooling, tmp_path / "changed")
    (tmp_path / "changed" / "fingerprint.pb").write_bytes(b"changed")
    upload(tmp_path / "changed", "module")
    second = fetch_module(handle, tmp_path)
    assert second != first
    assert (second / "fingerprint.pb").read_bytes() == b"changed"


def test_web_archive_is_fetched_once(site: Site, pooling: Path, tmp_path: Path) -> None:
    """A URL gives the module through TF Hub's resolver, from the cache the second time."""
    handle = f"{site.url}/feature_vector/1"
    first = fetch_module(handle, tmp_path)
    assert_whole(first, pooling)
    assert fetch_module(handle, tmp_path) == first
    assert site.asked == ["/feature_vector/1?tf-hub-format=compressed"]
    assert "TFHUB_CACHE_DIR" not in os.environ
    assert_no_leftovers(tmp_path)


def test_all_ways_to_one_module_give_one_digest(
    site: Site, pooling: Path, archive: Path, tmp_path: Path, upload: Callable[[Path, str], str]
) -> None:
    """The digest is the content's, whichever way it came."""
    handles = [str(pooling), str(archive), site.url, upload(pooling, "module")]
    assert len({load_backbone(h, cache_dir=tmp_path).digest for h in handles}) == 1


def test_hub_cache_is_honoured(
    site: Site, pooling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that TFHUB_CACHE_DIR holds is used without the network, and new ones go there."""
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    handle = f"{site.url}/1"
    brought = tmp_path / "hub" / hashlib.sha1(handle.encode(), usedforsecurity=False).hexdigest()
    shutil.copytree(pooling, brought)
    assert fetch_module(handle, tmp_path / "cache") == brought
    assert site.asked == []
    assert (tmp_path / "hub") in fetch_module(f"{site.url}/2", tmp_path / "cache").parents


@pytest.mark.parametrize("damage", ["saved_model.pb", DATA])
def test_damaged_hub_cache_is_passed_over(
    damage: str, site: Site, pooling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that TFHUB_CACHE_DIR holds and that does not load is fetched instead."""
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    brought = tmp_path / hashlib.sha1(site.url.encode(), usedforsecurity=False).hexdigest()
    shutil.copytree(pooling, brought)
    os.truncate(brought / damage, 5)
    assert_whole(fetch_module(site.url, tmp_path), pooling)
    assert len(site.asked) == 1


# --- what cannot be fetched -----------------------------------------------------------------------


def test_missing_and_foreign_paths_are_refused(tmp_path: Path) -> None:
    """A missing folder, one without a SavedModel, a lone file and an odd scheme name the handle."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.h5").write_bytes(b"")
    for handle in (
        str(tmp_path / "missing"),
        str(tmp_path / "missing.tar.gz"),
        str(tmp_path / "empty"),
        str(tmp_path / "model.h5"),
        "s3://bucket/module",
    ):
        with pytest.raises(ConfigError, match=handle) as caught:
            load_backbone(handle, cache_dir=tmp_path)
        assert caught.value.hint


def test_missing_bucket_objects_are_refused(
    bucket: str, archive: Path, tmp_path: Path, upload: Callable[[Path, str], str]
) -> None:
    """A folder or archive that is not in the bucket names the handle; like names do not count."""
    (tmp_path / "up").mkdir()
    shutil.copy(archive, tmp_path / "up" / "module.tar.gz.old")
    upload(tmp_path / "up", "")
    for handle in (f"gs://{bucket}/module", f"gs://{bucket}/module.tar.gz"):
        with pytest.raises(ConfigError, match=handle):
            load_backbone(handle, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, ConfigError), (403, ConfigError), (429, UnavailableError), (503, UnavailableError)],
)
def test_web_server_answers_are_told_apart(
    status: int, error: type[Exception], site: Site, tmp_path: Path
) -> None:
    """What is not there is permanent, what the server cannot give now may work later."""
    site.status = status
    with pytest.raises(error, match=rf"{site.url}.*{status}"):
        load_backbone(site.url, cache_dir=tmp_path)
    assert_no_leftovers(tmp_path)


def test_network_outage_may_work_later(tmp_path: Path) -> None:
    """A port where nobody listens is an outage, exit code 138."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        handle = f"http://127.0.0.1:{probe.getsockname()[1]}/module"
        with pytest.raises(UnavailableError, match=handle) as caught:
            load_backbone(handle, cache_dir=tmp_path)
    assert caught.value.exit_code == 138


def test_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and never answers does not hang the job."""
    monkeypatch.setattr(modules, "NETWORK_TIMEOUT", 0.2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(UnavailableError, match="timed out"):
            fetch_module(f"http://127.0.0.1:{deaf.getsockname()[1]}/module", tmp_path)
    assert socket.getdefaulttimeout() is None


def test_broken_connection_is_tried_once_more(site: Site, pooling: Path, tmp_path: Path) -> None:
    """A download that stops halfway is repeated; one that always does is an error."""
    site.cut_first = 1
    assert_whole(fetch_module(f"{site.url}/once", tmp_path), pooling)
    site.cut_first = 99
    with pytest.raises(ConfigError, match="archive"):
        fetch_module(f"{site.url}/always", tmp_path)
    assert_no_leftovers(tmp_path)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("part", ["saved_model.pb", "variables/variables.index", DATA])
def test_damaged_module_is_refused(name: str, part: str, tmp_path: Path) -> None:
    """A file that is cut anywhere, or gone, is a ConfigError that names the handle."""
    module = FORMATS[name](tmp_path / "module")
    data = (module / part).read_bytes()
    for length in [0, 1, *range(2, len(data), len(data) // 6), len(data) - 1]:
        (module / part).write_bytes(data[:length])
        with pytest.raises(ConfigError, match=str(module)):
            load_backbone(str(module), cache_dir=tmp_path)
    (module / part).unlink()
    with pytest.raises(ConfigError, match=str(module)):
        load_backbone(str(module), cache_dir=tmp_path)


def test_failed_operations_are_told_in_brief(tmp_path: Path) -> None:
    """The message says what TensorFlow found, without the trace around it."""
    module = write_pooling_tf1(tmp_path / "module")
    os.truncate(module / DATA, 3)
    with pytest.raises(ConfigError, match="Read less bytes") as caught:
        load_module(module)
    assert 'File "' not in caught.value.message


# --- archives -------------------------------------------------------------------------------------


def test_damaged_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    """An archive that is cut anywhere, or altered, or none at all, leaves nothing in the cache."""
    data = archive.read_bytes()
    cuts = [data[:length] for length in range(0, len(data) - 8, len(data) // 8)]
    altered = data[:200] + bytes([data[200] ^ 0xFF]) + data[201:]
    for broken in [*cuts, altered, b"no archive at all"]:
        (tmp_path / "module.tar.gz").write_bytes(broken)
        with pytest.raises(ConfigError, match=r"module\.tar\.gz"):
            load_backbone(str(tmp_path / "module.tar.gz"), cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "modules").iterdir()) == []


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """Give an empty archive member."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "info",
    [
        member("../escaped"),
        member("variables/../../escaped"),
        member("link", tarfile.SYMTYPE, "/etc"),
        member("link", tarfile.SYMTYPE, "saved_model.pb"),
        member("link", tarfile.LNKTYPE, "../../escaped"),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.linkname}",
)
def test_archive_cannot_escape(info: tarfile.TarInfo, pooling: Path, tmp_path: Path) -> None:
    """Members outside the folder, links of any kind and devices make the archive refused."""
    with tarfile.open(tmp_path / "module.tar.gz", "w:gz") as tar:
        tar.add(pooling, ".")
        tar.addfile(info, io.BytesIO())
    with pytest.raises(ConfigError, match="safe"):
        fetch_module(str(tmp_path / "module.tar.gz"), tmp_path / "cache")
    assert list(tmp_path.rglob("escaped")) == []
    assert list((tmp_path / "cache" / "modules").iterdir()) == []


def test_absolute_archive_member_stays_inside(pooling: Path, tmp_path: Path) -> None:
    """A member with an absolute name is unpacked below the module's folder."""
    with tarfile.open(tmp_path / "module.tar.gz", "w:gz") as tar:
        tar.add(pooling, ".")
        tar.addfile(member(f"{tmp_path}/escaped"))
    folder = fetch_module(str(tmp_path / "module.tar.gz"), tmp_path / "cache")
    assert not (tmp_path / "escaped").exists()
    assert list(folder.rglob("escaped"))


# --- the cache ------------------------------------------------------------------------------------


def damage_delete(entry: Path) -> None:
    """Delete a file, as a cleaner of temporary folders does."""
    (entry / DATA).unlink()


def damage_truncate(entry: Path) -> None:
    """Cut a file short."""
    os.truncate(entry / DATA, 3)


def damage_record(entry: Path) -> None:
    """Delete the record that the entry is complete."""
    (entry.parent / "files.json").unlink()


@pytest.mark.parametrize("damage", [damage_delete, damage_truncate, damage_record])
def test_damaged_cache_entry_is_fetched_again(
    damage: Callable[[Path], None], site: Site, pooling: Path, archive: Path, tmp_path: Path
) -> None:
    """An entry that does not match its record is replaced, from the web or an archive."""
    for handle in (site.url, str(archive)):
        first = fetch_module(handle, tmp_path)
        damage(first)
        second = fetch_module(handle, tmp_path)
        assert_whole(second, pooling)
        assert not first.exists()
    assert len(site.asked) == 2


def test_damaged_builtin_is_built_again(tmp_path: Path) -> None:
    """A built network that lost a file in the cache is built anew, with the same digest."""
    handle = "builtin:efficientnet-lite0"
    digest = load_backbone(handle, cache_dir=tmp_path).digest
    (entry,) = (tmp_path / "modules").iterdir()
    started = entry.stat().st_mtime_ns
    assert load_backbone(handle, cache_dir=tmp_path).digest == digest
    assert entry.stat().st_mtime_ns == started
    (entry / "module" / DATA).unlink()
    assert load_backbone(handle, cache_dir=tmp_path).digest == digest
    assert entry.exists()  # what was compiled from it is whole, so nobody looked
    shutil.rmtree(tmp_path / "compiled")
    assert load_backbone(handle, cache_dir=tmp_path).digest == digest
    assert not entry.exists()


def _fill_and_die(root: Path) -> None:
    def fill(target: Path) -> None:
        target.mkdir()
        (target / "half").write_text("half")
        os._exit(9)

    cached(root, "key", fill)


def _fill_slowly(root: Path, text: str, barrier: Any) -> None:
    def fill(target: Path) -> None:
        target.mkdir()
        (target / "a").write_text(text)
        barrier.wait(20)
        (target / "b").write_text(text)

    folder = cached(root, "key", fill)
    found = {(folder / name).read_text() for name in "ab"}
    os._exit(0 if len(found) == 1 else 1)


def _write_whole(target: Path) -> None:
    target.mkdir()
    (target / "whole").write_text("whole")


def test_killed_process_leaves_no_entry(tmp_path: Path) -> None:
    """What a process was making when it was killed is never used, and swept away a day later."""
    process = multiprocessing.get_context("fork").Process(target=_fill_and_die, args=(tmp_path,))
    process.start()
    process.join(30)
    assert process.exitcode == 9
    (partial,) = tmp_path.iterdir()
    assert [path.name for path in cached(tmp_path, "key", _write_whole).iterdir()] == ["whole"]
    assert partial.exists()  # it might have belonged to a process that is still at work
    yesterday = time.time() - 25 * 3600
    os.utime(partial, (yesterday, yesterday))
    cached(tmp_path, "other", _write_whole)
    assert not partial.exists()


def test_processes_share_a_cache(tmp_path: Path) -> None:
    """Two processes that fill one entry at the same moment both get a whole one."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    workers = [
        context.Process(target=_fill_slowly, args=(tmp_path, text, barrier)) for text in "xy"
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert_no_leftovers(tmp_path)


def test_unwritable_cache_is_a_configuration_error(archive: Path, tmp_path: Path) -> None:
    """A cache that cannot be written says so, and where."""
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match="module cache") as caught:
        load_backbone(str(archive), cache_dir=tmp_path / "cache")
    assert str(archive) in caught.value.message


# --- digests --------------------------------------------------------------------------------------


def test_digest_is_of_names_and_contents(pooling: Path, tmp_path: Path) -> None:
    """A copy has the same digest whatever its fingerprint.pb; a byte or a name more has not."""
    copy = shutil.copytree(pooling, tmp_path / "copy")
    (copy / "fingerprint.pb").write_bytes(b"another")
    assert module_digest(copy) == module_digest(pooling)
    (copy / "note").write_bytes(b"1")
    one = module_digest(copy)
    (copy / "note").rename(copy / "other")
    assert len({module_digest(pooling), one, module_digest(copy)}) == 3


def test_digest_sees_through_links(pooling: Path, tmp_path: Path) -> None:
    """A folder of links, as a mounted volume may be, has the digest of what they lead to."""
    (tmp_path / "mounted").mkdir()
    for child in pooling.iterdir():
        (tmp_path / "mounted" / child.name).symlink_to(child)
    assert module_digest(tmp_path / "mounted") == module_digest(pooling)
