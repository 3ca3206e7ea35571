"""Files come out of a store in order, whatever happens to them or to the store meanwhile."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from job import stream
from job.dataset import Example, Split
from job.errors import UnavailableError
from job.images import UnreadableImage
from job.storage import Entry, LocalStore, Store, open_store
from job.stream import Loaded, load_batches


def decode(contents: bytes) -> np.ndarray:
    """Take any bytes but "bad" for one pixel."""
    if contents == b"bad":
        raise UnreadableImage("it is bad")
    return np.full((1, 1, 3), len(contents), np.float32)


def examples_of(store: Store) -> list[Example]:
    """Give a store's objects as examples."""
    return [Example(entry, (0,), Split.TRAIN) for entry in store.list()]


def load(store: Store, examples: Sequence[Example]) -> list[Loaded]:
    """Load everything, in the order of the examples."""
    batches = load_batches(store, examples, decode, batch_size=2, threads=3)
    loaded = [item for batch in batches for item in (*batch.readable, *batch.other)]
    return sorted(loaded, key=lambda item: item.place)


@pytest.fixture(params=["local", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store of each kind with five objects."""
    uri = str(tmp_path)
    if request.param == "gcs":
        uri = f"gs://{request.getfixturevalue('bucket')}/data"
    filled = open_store(uri)
    for number in range(5):
        filled.write(f"label/{number}", bytes(number + 1))
    return filled


def test_a_removed_object_is_skipped(store: Store) -> None:
    """What is gone since the listing is left out with a reason, its namesakes notwithstanding."""
    store.write("label/10", b"another")
    examples = examples_of(store)
    store.delete("label/1")
    loaded = load(store, examples)
    assert [item.example.name for item in loaded if item.pixels is None] == ["label/1"]
    assert {item.reason for item in loaded} == {"", "it is not there, or not any more"}


def test_a_replaced_object_is_read_as_it_is_now(store: Store) -> None:
    """What was replaced since the listing is read anew, and its entry is the new one."""
    examples = examples_of(store)
    store.write("label/3", b"new content")
    (fresh,) = (entry for entry in store.list() if entry.name == "label/3")
    item = load(store, examples)[3]
    assert item.pixels is not None
    assert item.pixels[0, 0, 0] == len(b"new content")
    assert item.digest == hashlib.sha256(b"new content").hexdigest()
    assert item.example == replace(examples[3], entry=fresh)
    assert fresh != examples[3].entry


class Restless(LocalStore):
    """A folder in which a file is replaced right before each time it is read."""

    def read(self, name: str, entry: Entry | None = None) -> bytes:
        """Replace it, then read."""
        if name == "label/2":
            self.write(name, b"again")
        return super().read(name, entry)


def test_an_object_that_keeps_changing_is_skipped(tmp_path: Path) -> None:
    """What was replaced twice is left out with a reason; the others are read."""
    store = Restless(tmp_path)
    for number in range(4):
        store.write(f"label/{number}", b"x")
    loaded = load(store, examples_of(store))
    assert [item.reason for item in loaded] == ["", "", "replaced while it was read", ""]


def test_an_absurdly_large_file_is_not_fetched(tmp_path: Path) -> None:
    """A file beyond a gigabyte is skipped by its listing, without a byte of it in memory."""
    (tmp_path / "label").mkdir()
    with (tmp_path / "label" / "huge").open("wb") as file:
        file.truncate(stream.LARGEST_FILE + 1)
    store = Hungry(tmp_path)
    (item,) = load(store, examples_of(store))
    assert "bytes, expected at most 1073741824" in item.reason
    assert store.most == 0


class Hungry(LocalStore):
    """A folder that keeps account of the bytes that are read and not given back."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.lock = threading.Lock()
        self.now = self.most = 0

    def read(self, name: str, entry: Entry | None = None) -> bytes:
        """Read and count."""
        data = super().read(name, entry)
        self.count(len(data))
        time.sleep(0.02)
        return data

    def count(self, size: int) -> None:
        """Count bytes that are held, or, with a minus, are not any more."""
        with self.lock:
            self.now += size
            self.most = max(self.most, self.now)


def test_what_waits_for_its_decoding_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many threads hold no more bytes than there is room for, or one file that is larger."""
    monkeypatch.setattr(stream, "IN_MEMORY", 1000)
    store = Hungry(tmp_path)
    for number, size in enumerate([400] * 12 + [3000] + [400] * 12):
        store.write(f"label/{number:02}", bytes(size))

    def decode_and_free(contents: bytes) -> np.ndarray:
        store.count(-len(contents))
        return decode(contents)

    batches = load_batches(store, examples_of(store), decode_and_free, batch_size=4, threads=8)
    sizes = [int(p[0, 0, 0]) for batch in batches for p in batch.pixels()]
    assert sizes == [400] * 12 + [3000] + [400] * 12
    assert store.most == 3000
    assert store.now == 0


class Stuck(LocalStore):
    """A folder whose first file cannot be read, the second can, and the others take for ever."""

    def __init__(self, root: Path, free: threading.Event) -> None:
        super().__init__(root)
        self.free = free

    def read(self, name: str, entry: Entry | None = None) -> bytes:
        """Fail, read, or wait."""
        if name == "label/0":
            raise UnavailableError("the store is out")
        if name != "label/1":
            self.free.wait(60)
        return super().read(name, entry)


@pytest.mark.parametrize("end", ["error", "signal"])
def test_an_early_end_waits_for_no_request(end: str, tmp_path: Path) -> None:
    """An error, or the consumer's own end, is not held up by what other threads wait for."""
    free = threading.Event()
    store = Stuck(tmp_path, free)
    for number in range(8):
        store.write(f"label/{number}", b"x")
    examples = examples_of(store)
    done: list[str] = []

    def fail() -> None:
        with pytest.raises(UnavailableError):
            next(load_batches(store, examples, decode, batch_size=1, threads=4))
        done.append("ended")

    def close() -> None:
        batches = load_batches(store, examples[1:], decode, batch_size=1, threads=4)
        assert len(next(batches).readable) == 1
        batches.close()
        done.append("ended")

    actions: dict[str, Callable[[], None]] = {"error": fail, "signal": close}
    thread = threading.Thread(target=actions[end], daemon=True)
    thread.start()
    thread.join(20)
    ended = list(done)
    free.set()
    assert ended == ["ended"]
