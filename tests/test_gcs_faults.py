"""The bucket's store behind a network that fails: a real client, proxy and server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fault_proxy import FAULTS, Faults, fault_proxy
from gcs_server import new_bucket

from job.errors import ConfigError, UnavailableError
from job.storage import Store, crc32c, open_store

pytestmark = pytest.mark.timeout(120)

# Seconds; a try that stalls ends after a tenth of it.
DEADLINE = 5.0


@pytest.fixture(scope="module")
def faults(gcs_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """A proxy before the server, for all tests of this file."""
    with fault_proxy(gcs_server, tmp_path_factory.mktemp("proxy") / "log") as proxy:
        yield proxy


@pytest.fixture
def store(faults: Faults) -> Iterator[Store]:
    """A store in a new bucket; the proxy does no harm before and after."""
    faults.set(rate=0)
    uri = f"gs://{new_bucket()}/some"
    list(open_store(uri).list())  # an outage of the test before is over
    yield open_store(uri, deadline=DEADLINE)
    faults.set(rate=0)


def asked(faults: Faults) -> int:
    """Count requests, less those for the bucket's own data, which the SDK makes in a thread."""
    return sum(count for verb, count in faults.requests().items() if verb != "other")


def contents(store: Store) -> dict[str, bytes]:
    """Give everything in a store."""
    return {entry.name: store.read(entry.name, entry) for entry in store.list()}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_verb_survives_each_fault(
    fault: str, store: Store, faults: Faults, tmp_path: Path
) -> None:
    """With two of five requests hit, everything is read and stored as without, once."""
    tree = tmp_path / "tree"
    (tree / "variables").mkdir(parents=True)
    wanted = {"saved_model.pb": b"graph" * 999, "variables/data": b"weights" * 999, "empty": b""}
    for name, data in wanted.items():
        (tree / name).write_bytes(data)
    before = faults.injected()[fault]
    faults.set(rate=0.4, faults=fault, seed=7, row=2)
    store.put_tree(tree, "staged/1")
    store.write("claim", b"ours", if_absent=True)
    with pytest.raises(FileExistsError):
        store.write("claim", b"theirs", if_absent=True)
    store.move_tree("staged/1", "7", order=str)
    store.replace("channels.json", b"{}", None)
    (channels,) = store.list("channels.json")
    store.replace("channels.json", b'{"stable": 7}', channels)
    with pytest.raises(FileExistsError):
        store.replace("channels.json", b"{'stable': 8}", channels)
    store.write("gone", b"1")
    store.delete("gone")
    found = contents(store)
    assert faults.injected()[fault] > before
    faults.set(rate=0)
    moved = {f"7/{name}": data for name, data in wanted.items()}
    assert found == {"claim": b"ours", "channels.json": b'{"stable": 7}', **moved}
    assert contents(store) == found


def test_a_large_upload_survives(store: Store, faults: Faults, tmp_path: Path) -> None:
    """A file that goes in several requests arrives whole, whichever of them fails."""
    data = bytes(range(256)) * 40_000
    (tmp_path / "big").write_bytes(data)
    store = open_store(store.uri, deadline=60)
    for seed, fault in enumerate(("503", "reset-after", "429", "corrupt-upload")):
        before = faults.injected()[fault]
        faults.set(rate=1, faults=fault, verbs="write", skip=seed % 2, limit=1)
        store.write(f"big{seed}", tmp_path / "big", if_absent=True)
        assert faults.injected()[fault] == before + 1
        assert crc32c(store.read(f"big{seed}")) == crc32c(data)


def verbs(store: Store) -> dict[str, Callable[[], object]]:
    """Give one call of each verb."""
    return {
        "list": lambda: list(store.list()),
        "read": lambda: store.read("x"),
        "write": lambda: store.write("y", b"1", if_absent=True),
        "delete": lambda: store.delete("x"),
    }


def test_lost_answers_are_no_conflict(store: Store, faults: Faults) -> None:
    """An upload or copy that was carried out, its answer lost, is found to be ours."""
    store.write("staged/x", b"1")
    calls: list[Callable[[], object]] = [
        lambda: store.write("claim", b"run 1", if_absent=True),
        lambda: store.replace("channels", b"2", None),
        lambda: store.move_tree("staged", "7", order=str),
    ]
    for call in calls:
        before = faults.injected()["reset-after"]
        faults.set(rate=1, faults="reset-after", verbs="write,copy", limit=1)
        call()
        assert faults.injected()["reset-after"] == before + 1
    assert contents(store) == {"claim": b"run 1", "channels": b"2", "7/x": b"1"}


@pytest.mark.parametrize("fault", ["reset-before", "503", "stall"])
def test_a_conflict_after_a_failed_try_stays_one(fault: str, store: Store, faults: Faults) -> None:
    """What somebody else stored is not taken for ours because the first try got no answer."""
    store.write("claim", b"run 2", if_absent=True)
    store.write("staged/x", b"1")
    store.write("7/x", b"2")
    calls: list[Callable[[], object]] = [
        lambda: store.write("claim", b"run 1", if_absent=True),
        lambda: store.replace("claim", b"run 1", None),
        lambda: store.move_tree("staged", "7", order=str),
    ]
    for call in calls:
        before = faults.injected()[fault]
        faults.set(rate=1, faults=fault, verbs="write,copy", limit=1)
        with pytest.raises(FileExistsError):
            call()
        assert faults.injected()[fault] == before + 1
    assert contents(store) == {"claim": b"run 2", "staged/x": b"1", "7/x": b"2"}


def test_the_first_try_never_takes_equal_content_for_its_own(store: Store) -> None:
    """A name that is taken is a conflict, whatever it holds."""
    store.write("claim", b"same", if_absent=True)
    with pytest.raises(FileExistsError):
        store.write("claim", b"same", if_absent=True)


def test_one_of_many_writers_wins_behind_faults(store: Store, faults: Faults) -> None:
    """Of eight threads that claim a name through lost answers, exactly one gets it."""
    faults.set(rate=0.4, faults="reset-after,reset-before,502,truncate", seed=3)

    def claim(number: int) -> str:
        try:
            store.write("claim", f"{number}".encode(), if_absent=True)
        except FileExistsError:
            return ""
        return f"{number}"

    with ThreadPoolExecutor(8) as pool:
        winners = [winner for winner in pool.map(claim, range(8)) if winner]
    assert winners == [store.read("claim").decode()]


@pytest.mark.parametrize("fault", ["503", "reset-before", "stall", "truncate", "stall-body"])
def test_an_outage_ends_by_the_deadline(fault: str, store: Store, faults: Faults) -> None:
    """Nothing answers for good: each verb says so, for how long and how often it was tried."""
    store.write("x", b"1")
    out = open_store(store.uri, deadline=1.5)
    faults.set(rate=1, faults=f"{fault},503")
    for verb, call in verbs(out).items():
        with pytest.raises(
            UnavailableError, match=r"storage is out: .*tr(y|ies) in \d s"
        ) as caught:
            call()
        assert f"{out.uri}" in caught.value.message, verb
        assert "later" in caught.value.hint


def test_after_an_outage_what_follows_is_told_soon(store: Store, faults: Faults) -> None:
    """Once a request was given up the next are tried a tenth as long, until one works."""
    out = open_store(store.uri, deadline=4)
    faults.set(rate=1, faults="503")
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            out.read("x")
        seconds.append(time.monotonic() - start)
    assert seconds[1] < seconds[0] / 2  # 4 s and 0.4 s, less a pause
    faults.set(rate=0)
    out.write("x", b"1")
    faults.set(rate=1, faults="503", limit=3)
    assert out.read("x") == b"1"


@pytest.mark.parametrize("status", ["401", "403"])
def test_a_refusal_is_asked_about_once(status: str, store: Store, faults: Faults) -> None:
    """No permission stays no permission: one request, and a ConfigError."""
    store.write("x", b"1")
    faults.set(rate=1, faults=status)
    for call in verbs(store).values():
        before = asked(faults)
        with pytest.raises(ConfigError, match=r"permission|credentials"):
            call()
        assert asked(faults) == before + 1


def test_a_missing_object_is_asked_about_once(store: Store, faults: Faults) -> None:
    """What is not there will not come by asking again."""
    before = asked(faults)
    with pytest.raises(FileNotFoundError):
        store.read("nope")
    store.delete("nope")
    assert asked(faults) == before + 2


class Sink(BaseHTTPRequestHandler):
    """Takes an upload at the pace of a slow line, steadily, and answers as GCS does."""

    def do_POST(self) -> None:
        """Begin an upload."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Location", f"http://{self.headers['Host']}/session")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_PUT(self) -> None:
        """Take the content."""
        left = int(self.headers["Content-Length"])
        data = b""
        while len(data) < left:
            data += self.rfile.read(min(2**20, left - len(data)))
            time.sleep(0.1)
        body = f'{{"name": "x", "size": "{left}", "crc32c": "{crc32c(data)}"}}'.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


def test_a_slow_upload_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that takes longer than a try's time-out arrives, as long as it is moving."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    try:
        start = time.monotonic()
        open_store("gs://bucket", deadline=10).write("x", bytes(24 * 2**20))
        assert time.monotonic() - start > 2  # a try's time-out is 1 s
    finally:
        server.shutdown()
        server.server_close()
