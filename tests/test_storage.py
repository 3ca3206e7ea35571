"""Both stores behave as the one seam; a bucket is a real server's."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from job.errors import ConfigError, UnavailableError
from job.storage import (
    Entry,
    LocalStore,
    Store,
    check_writable,
    crc32c,
    download,
    open_store,
)


@pytest.fixture(params=["local", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind, rooted below the top."""
    if request.param == "gcs":
        return open_store(f"gs://{request.getfixturevalue('bucket')}/some/prefix")
    (tmp_path / "some").mkdir()
    return open_store(str(tmp_path / "some"))


def names(store: Store, prefix: str = "") -> list[str]:
    """List the names under a prefix."""
    return [entry.name for entry in store.list(prefix)]


def test_what_was_written_is_read_and_listed(store: Store) -> None:
    """Names come back sorted and relative, sizes true, bytes as they were."""
    store.write("b/2.bin", b"two")
    store.write("a.bin", b"")
    store.write("b/1 ü.bin", b"one")
    assert names(store) == ["a.bin", "b/1 ü.bin", "b/2.bin"]
    assert names(store, "b/") == ["b/1 ü.bin", "b/2.bin"]
    assert [entry.size for entry in store.list()] == [0, 3, 3]
    assert [store.read(e.name, e) for e in store.list()] == [b"", b"one", b"two"]


def test_a_child_is_rooted_below(store: Store) -> None:
    """A child sees its own names only, and its URI says where it is."""
    store.write("model/1/x", b"1")
    store.write("model2/1/x", b"2")
    child = store.child("model")
    assert names(child) == ["1/x"]
    assert child.uri == f"{store.uri}/model"


def test_if_absent_keeps_what_is_there(store: Store) -> None:
    """A second write with if_absent is refused and changes nothing; a plain one replaces."""
    store.write("x", b"first", if_absent=True)
    with pytest.raises(FileExistsError):
        store.write("x", b"second", if_absent=True)
    assert store.read("x") == b"first"
    store.write("x", b"third")
    assert store.read("x") == b"third"


def test_one_of_many_writers_wins(store: Store) -> None:
    """Of eight threads that write one name if it is absent, exactly one does."""
    outcomes: list[str] = []

    def write(number: int) -> None:
        try:
            store.write("claim", f"{number}".encode(), if_absent=True)
            outcomes.append(f"{number}")
        except FileExistsError:
            pass

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.read("claim").decode()] == outcomes


def test_reading_what_is_not_there(store: Store) -> None:
    """A missing object is FileNotFoundError, and deleting it is fine."""
    with pytest.raises(FileNotFoundError):
        store.read("nope")
    store.delete("nope")


def test_trees_are_put_moved_and_deleted(store: Store, tmp_path: Path) -> None:
    """A folder's files go to a place, all to another, and away, touching nothing else."""
    tree = tmp_path / "tree"
    (tree / "variables").mkdir(parents=True)
    (tree / "variables" / "v").write_bytes(b"v")
    (tree / "saved_model.pb").write_bytes(b"one")
    store.write("keep", b"")
    store.write("77/other", b"")
    store.put_tree(tree, "staged/x")
    assert names(store) == ["77/other", "keep", "staged/x/saved_model.pb", "staged/x/variables/v"]
    store.move_tree("staged/x", "7", order=str)
    shown = [name for name in names(store) if not name.endswith("/")]
    assert shown == ["7/saved_model.pb", "7/variables/v", "77/other", "keep"]
    assert store.read("7/saved_model.pb") == b"one"
    store.delete_tree("7", first="saved_model.pb")
    store.delete_tree("7")
    left = [name for name in names(store) if not name.endswith("/")]  # .staging/ stays, empty
    assert left == ["77/other", "keep"]


def test_the_writable_check_leaves_nothing(store: Store) -> None:
    """The probe object is gone afterwards."""
    check_writable(store)
    assert names(store) == []


def test_gcs_listing_pins_generation_and_checksum(bucket: str) -> None:
    """A listing gives GCS's own CRC32C; bytes that do not match it are not believed."""
    store = open_store(f"gs://{bucket}", deadline=1)
    store.write("x", b"content")
    (entry,) = store.list()
    assert entry.crc32c == crc32c(b"content")
    assert entry.generation > 0
    with pytest.raises(UnavailableError, match="not those of the listing"):
        store.read("x", Entry("x", 7, entry.generation, crc32c(b"other")))


def test_gcs_object_replaced_since_the_listing(bucket: str) -> None:
    """The listed generation is what is read: a replaced object is not there any more."""
    store = open_store(f"gs://{bucket}")
    store.write("x", b"old")
    (entry,) = store.list()
    store.write("x", b"new")
    with pytest.raises(FileNotFoundError):
        store.read("x", entry)


def test_gcs_missing_bucket_says_so(gcs_server: str) -> None:
    """Listing, reading and writing in a bucket that is not there name it."""
    store = open_store("gs://no-such-bucket/prefix")
    actions: list[Callable[[], object]] = [
        lambda: list(store.list()),
        lambda: store.write("x", b""),
    ]
    for action in actions:
        with pytest.raises(ConfigError, match=r"no-such-bucket.*does not exist"):
            action()


def test_gcs_out_of_reach_is_retryable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer is an UnavailableError once the deadline has passed."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"storage is out.*\d tries in \d s") as caught:
        open_store("gs://bucket", deadline=0.5).delete("x")
    assert "later" in caught.value.hint


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A real HTTP server that answers every request with one status."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = b'{"error": {"message": "says the server"}}'
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - http.server's own names

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_gcs_without_credentials_says_how_to_give_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 401 to a client without credentials is a matter of configuration."""
    with answering(401) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        with pytest.raises(ConfigError, match="credentials") as caught:
            list(open_store("gs://bucket").list())
    assert "workload identity" in caught.value.hint


def test_gcs_without_any_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside a cloud, without a login: a matter of configuration, with three ways out."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # asking a network that is not there takes its time
    with pytest.raises(ConfigError, match="no valid Google credentials") as caught:
        open_store("gs://bucket")
    assert "GOOGLE_APPLICATION_CREDENTIALS" in caught.value.hint


def write_key(folder: Path, token_uri: str) -> Path:
    """Write the key file of a service account whose tokens come from `token_uri`."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {"type": "service_account", "client_email": "job@project.iam", "project_id": "p"}
    path = folder / "key.json"
    path.write_text(json.dumps({**account, "private_key": key.decode(), "token_uri": token_uri}))
    return path


def test_gcs_tokens_that_are_refused_or_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A key that is not accepted is a matter of configuration, a token server that is out not."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    for status, kind in ((400, ConfigError), (503, UnavailableError)):
        with answering(status) as url:
            key = write_key(tmp_path, f"{url}/token")
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
            with pytest.raises(kind, match=r"credentials were refused|storage is out"):
                list(open_store("gs://bucket", deadline=1).list())


def test_gcs_no_permission_names_the_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is permanent, and its hint says which role would mend it."""
    with answering(403) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        store = open_store("gs://bucket")
        with pytest.raises(ConfigError, match="no permission to list") as caught:
            list(store.list())
        assert "roles/storage.objectViewer" in caught.value.hint
        with pytest.raises(ConfigError, match="no permission to write") as caught:
            check_writable(store)
        assert "roles/storage.objectUser" in caught.value.hint


def test_gcs_other_refusals_are_permanent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 400 will be a 400 tomorrow; the message is the server's."""
    with answering(400) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        with pytest.raises(ConfigError, match="says the server"):
            list(open_store("gs://bucket").list())


@pytest.mark.parametrize("uri", ["s3://bucket/x", "gs:///x", ""])
def test_uris_that_are_no_store(uri: str) -> None:
    """Another scheme, a missing bucket and an empty string are refused with a hint."""
    with pytest.raises(ConfigError) as caught:
        open_store(uri)
    assert caught.value.hint


def test_file_uri_is_a_folder(tmp_path: Path) -> None:
    """file:///path and /path are the same store."""
    (tmp_path / "x").write_bytes(b"1")
    assert names(open_store(f"file://{tmp_path}")) == names(open_store(str(tmp_path))) == ["x"]


def test_local_empty_folders_are_seen(tmp_path: Path) -> None:
    """An empty folder is listed with a slash, so that an empty label can be told."""
    (tmp_path / "label" / "inner").mkdir(parents=True)
    assert names(LocalStore(tmp_path)) == ["label/inner/"]


def test_local_place_that_is_no_folder(tmp_path: Path) -> None:
    """A missing folder, and a file where a folder should be, are told apart."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="is a file"):
        list(LocalStore(tmp_path / "file").list())
    with pytest.raises(ConfigError, match="does not exist"):
        list(LocalStore(tmp_path / "nope").list())
    with pytest.raises(ConfigError):
        check_writable(LocalStore(tmp_path / "file" / "below"))


def test_local_writes_leave_no_parts(tmp_path: Path) -> None:
    """A refused write leaves no temporary file behind."""
    store = LocalStore(tmp_path)
    store.write("x", b"1")
    with pytest.raises(FileExistsError):
        store.write("x", b"2", if_absent=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_local_folder_without_permission(tmp_path: Path) -> None:
    """A folder that this user may not write to is found out by the check, with a hint."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root may write everywhere; nobody may not
    try:
        with pytest.raises(ConfigError, match="Permission denied") as caught:
            check_writable(LocalStore(folder))
    finally:
        if root:
            os.seteuid(0)
    assert "check that user" in caught.value.hint


def test_local_place_where_nothing_can_be_made() -> None:
    """A virtual file system is no store."""
    with pytest.raises(ConfigError, match="/proc/regraft"):
        check_writable(LocalStore(Path("/proc/regraft")))


def test_local_file_replaced_since_the_listing(tmp_path: Path) -> None:
    """The listed file is what is read: another one of its name, or a changed one, is not it."""
    store = LocalStore(tmp_path)
    store.write("x", b"old")
    (entry,) = store.list()
    assert store.read("x", entry) == b"old"
    store.write("x", b"new")
    with pytest.raises(FileNotFoundError):
        store.read("x", entry)
    (entry,) = store.list()
    with (tmp_path / "x").open("ab") as file:
        file.write(b", half written")
    with pytest.raises(FileNotFoundError):
        store.read("x", entry)
    assert store.read("x") == b"new, half written"


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"two\nlines.jpg", b"\x1b[31m.jpg", b" .jpg"])
def test_local_names_of_any_bytes(name: bytes, tmp_path: Path) -> None:
    """A name that is no UTF-8, or has control characters, is listed, read and deleted."""
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / os.fsdecode(name)).write_bytes(b"1")
    store = LocalStore(tmp_path)
    (entry,) = store.list()
    assert entry.name == f"label/{os.fsdecode(name)}"
    assert store.read(entry.name, entry) == b"1"
    store.delete(entry.name)
    assert names(store) == ["label/"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "..", "a\0b"])
def test_local_names_stay_inside(name: str, tmp_path: Path) -> None:
    """A name that leads outside its store is refused by every verb."""
    store = LocalStore(tmp_path / "store")
    actions: list[Callable[[], object]] = [
        lambda: store.read(name),
        lambda: store.write(name, b""),
        lambda: store.delete(name),
        lambda: store.delete_tree(name),
        lambda: store.move_tree("a", name, order=str),
        lambda: store.child(name),
    ]
    for action in actions:
        with pytest.raises(ConfigError, match="leads outside"):
            action()
    assert not (tmp_path / "x").exists()


class Bucketlike(LocalStore):
    """A folder whose objects have names that only an object store allows."""

    def read(self, name: str, entry: Entry | None = None) -> bytes:
        """Give the same for every name."""
        return b"1"


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/regraft-out"])  # noqa: S108
def test_download_refuses_names_that_lead_outside(name: str, tmp_path: Path) -> None:
    """An object's name is not trusted as a path: nothing appears beside the folder."""
    entry = Entry(name, 1, 1)
    with pytest.raises(ConfigError, match="leads outside"):
        download(Bucketlike(tmp_path / "bucket"), [entry], tmp_path / "in")
    assert not (tmp_path / "in" / name).exists()
    assert not list(tmp_path.iterdir())


def test_local_full_disk_names_the_file() -> None:
    """A disk without room is an outage that a retry may find mended; the message says where."""
    store = LocalStore(Path("/dev"))
    with (
        pytest.raises(UnavailableError, match=r"/dev/full: No space left") as caught,
        store._translated("full"),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"1")
    assert "make room" in caught.value.hint


def test_local_name_too_long_is_for_good(tmp_path: Path) -> None:
    """What no file can be called will not be called so by trying again."""
    with pytest.raises(ConfigError, match="File name too long"):
        LocalStore(tmp_path).write("x" * 300, b"1")


def test_local_loop_of_links_is_for_good(tmp_path: Path) -> None:
    """A link to itself is named, with what to do."""
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="loop") as caught:
        list(LocalStore(tmp_path).list())
    assert "remove the link" in caught.value.hint


def test_a_prefix_may_hold_what_urls_give_a_meaning(bucket: str) -> None:
    """A question mark or a hash in a bucket's prefix is a part of it."""
    store = open_store(f"gs://{bucket}/a?b#c")
    store.write("x", b"1")
    assert names(open_store(f"gs://{bucket}")) == ["a?b#c/x"]
