"""A shard is what was written, bit for bit, or it is not believed."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import SPACE, WIDTH, fetched, files, fill, opened, rows_of, shard_names
from numpy.typing import NDArray

from job.cache import identity
from job.shards import Record, seal
from job.storage import LocalStore, Store, open_store

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(params=["local", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty place for a cache of each kind."""
    if request.param == "gcs":
        return open_store(f"gs://{request.getfixturevalue('bucket')}/c")
    return LocalStore(tmp_path / "c")


def damages(data: bytes, some: int | None) -> list[bytes]:
    """Give copies with one bit flipped in each byte, cut at each length, and with a byte more.

    With `some` only about that many of each, spread evenly.
    """
    step = 1 if some is None else max(1, len(data) // some)
    places = range(0, len(data), step)
    flipped = [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in places]
    return flipped + [data[:at] for at in places] + [data + b"\0"]


def test_no_damage_to_an_index_is_believed(store: Store) -> None:
    """Every byte flipped, every length, on a folder; a sample of them on a bucket."""
    some = files(2)
    fill(store, some)
    (name,) = shard_names(store)
    data = store.read(f"{name}.index")
    assert opened(store).known(some[0].entry) == some[0].known
    for damaged in damages(data, None if isinstance(store, LocalStore) else 12):
        store.write(f"{name}.index", damaged)
        cache = opened(store)
        assert cache.known(some[0].entry) is None
        assert not cache.holds(some[0].known.digest)
    store.write(f"{name}.index", data)
    assert np.array_equal(fetched(opened(store), some), rows_of(some))


def test_no_damage_to_rows_is_believed(store: Store) -> None:
    """Found by the size in the listing, or by the checksum when they are fetched."""
    some = files(4)
    fill(store, some)
    (name,) = shard_names(store)
    data = store.read(f"{name}.rows")
    for damaged in damages(data, None if isinstance(store, LocalStore) else 12):
        store.write(f"{name}.rows", damaged)
        cache = opened(store)
        assert cache.holds(some[0].known.digest) == (len(damaged) == len(data))
        assert np.isnan(fetched(cache, some)).all()
        assert not cache.holds(some[0].known.digest)
    store.write(f"{name}.rows", data)
    assert np.array_equal(fetched(opened(store), some), rows_of(some))


def test_rows_that_shrink_after_the_listing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was whole when it was listed is checked again when it is read; the log says how."""
    store, some = LocalStore(tmp_path), files(4)
    fill(store, some)
    (name,) = shard_names(store)
    cache = opened(store)
    size = 4 * 4 * WIDTH
    store.write(f"{name}.rows", store.read(f"{name}.rows")[:-1])
    assert np.isnan(fetched(cache, some)).all()
    assert f"{size - 1} bytes, expected {size}" in caplog.text


def test_a_damaged_index_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the object; the next refresh does not read it again."""
    store = LocalStore(tmp_path)
    fill(store, files(2))
    (name,) = shard_names(store)
    store.write(f"{name}.index", b"x")
    cache = opened(store)
    assert cache.refresh() == 0
    assert [record.getMessage().count(f"{name}.index") for record in caplog.records] == [1]


def test_objects_in_each_others_place_are_not_believed(tmp_path: Path) -> None:
    """Rows of one shard under the name of another of the same size, and an index renamed."""
    store = LocalStore(tmp_path)
    one, other = files(3), files(3, 6)
    fill(store, one)
    fill(store, other)
    first, second = shard_names(store)
    swapped = store.read(f"{first}.rows")
    store.write(f"{first}.rows", store.read(f"{second}.rows"))
    store.write(f"{second}.rows", swapped)
    assert np.isnan(fetched(opened(store), one + other)).all()
    store.write(f"{first}.index", store.read(f"{second}.index"))
    cache = opened(store)
    assert sum(cache.known(file.entry) is not None for file in one + other) == 3


def sound() -> Arrays:
    """Give the arrays of a sound index of three files."""
    records = [
        Record(identity(f.entry), bytes.fromhex(f.known.digest), 7, "", f.row) for f in files(3)
    ]
    with np.load(io.BytesIO(seal(SPACE, "float32", records).index)) as arrays:
        return {name: arrays[name] for name in arrays.files}


def with_about(**changes: object) -> Callable[[Arrays], None]:
    """Make a change of the index's JSON."""

    def change(arrays: Arrays) -> None:
        about = json.loads(arrays["about"].tobytes()) | changes
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)

    return change


def with_array(name: str, edit: Callable[[NDArray[Any]], Any]) -> Callable[[Arrays], None]:
    """Make a change of one of the index's arrays."""

    def change(arrays: Arrays) -> None:
        arrays[name] = edit(arrays[name])

    return change


FOREIGN = {
    "another format": with_about(format=2),
    "another space": with_about(space="0" * 32),
    "a dtype of the same size": with_about(dtype="int32"),
    "a dtype that is none": with_about(dtype="rubbish"),
    "a reason for a readable file": with_about(reasons={"0": "x"}),
    "a reason for no file": with_about(reasons={"3": "x"}),
    "reasons that are a list": with_about(reasons=["x"]),
    "fewer rows than places": with_about(rows=2),
    "rows that are no number": with_about(rows=None),
    "a place beyond the rows": with_array("places", lambda places: places + 1),
    "a place below -1": with_array("places", lambda places: places - 2),
    "places of another kind": with_array("places", lambda places: places.astype(np.float32)),
    "identities too short": with_array("identities", lambda ids: ids[:, :15]),
    "digests of fewer files": with_array("digests", lambda digests: digests[:2]),
    "checksums in two columns": with_array("checksums", lambda sums: np.stack([sums, sums], 1)),
    "about that is no JSON": with_array("about", lambda about: about[1:]),
    "an array missing": lambda arrays: arrays.pop("digests"),
}


def put_index(store: Store, index: bytes, rows: bytes) -> None:
    """Store a shard under the name that its index stands for."""
    name = f"{SPACE}/{hashlib.sha256(index).hexdigest()[:32]}"
    store.write(f"{name}.rows", rows)
    store.write(f"{name}.index", index)


@pytest.mark.parametrize("case", ["sound", *FOREIGN])
def test_an_index_that_does_not_fit_together_is_left_out(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its name is right, so something else wrote it: not one of its records is taken."""
    arrays = sound()
    FOREIGN.get(case, lambda arrays: None)(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    put_index(LocalStore(tmp_path), buffer.getvalue(), rows_of(files(3)).tobytes())
    cache = opened(LocalStore(tmp_path))
    known = [cache.known(file.entry) is not None for file in files(3)]
    assert known == [case == "sound"] * 3
    assert ("is damaged and left out" in caplog.text) == (case != "sound")


def test_a_pickle_in_an_index_is_not_run(tmp_path: Path) -> None:
    """An array of Python objects would run code where it is loaded as numpy does by request."""

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    arrays = sound()
    arrays["digests"] = np.array([Trap()], object)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    put_index(LocalStore(tmp_path / "c"), buffer.getvalue(), b"")
    assert opened(LocalStore(tmp_path / "c")).known(files(1)[0].entry) is None
    assert not (tmp_path / "sprung").exists()
    with np.load(io.BytesIO(buffer.getvalue()), allow_pickle=True) as loaded:
        _ = loaded["digests"]
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("data", [b"", b"PK\5\6" + bytes(18), b"\x93NUMPY", b"rubbish"])
def test_bytes_that_are_no_index_are_left_out(tmp_path: Path, data: bytes) -> None:
    """Under a name that fits them, with rows beside them."""
    put_index(LocalStore(tmp_path), data, b"")
    assert opened(LocalStore(tmp_path)).refresh() == 0


def test_strangers_are_passed_over(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Other names in the folder are nobody's business: they are neither read nor told of."""
    some = files(2)
    fill(store, some)
    for name in ("README", f"{SPACE}/notes.txt", f"{SPACE}/{'A' * 32}.index", f"{SPACE}.index"):
        store.write(name, b"x")
    store.write(f"{SPACE}/{'a' * 32}.index.bak", b"x")
    assert np.array_equal(fetched(opened(store), some), rows_of(some))
    assert caplog.text == ""


def test_anything_can_read_a_shard(tmp_path: Path) -> None:
    """The format is the documented one: an .npz without objects, and raw little-endian rows."""
    store, some = LocalStore(tmp_path), files(3)
    fill(store, some, "float16")
    (name,) = shard_names(store)
    assert name.split("/")[1] == hashlib.sha256(store.read(f"{name}.index")).hexdigest()[:32]
    with zipfile.ZipFile(tmp_path / f"{name}.index") as archive:
        assert archive.testzip() is None
    with np.load(tmp_path / f"{name}.index", allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        assert arrays["places"].tolist() == [0, 1, 2]
        assert [digest.tobytes().hex() for digest in arrays["digests"]] == [
            file.known.digest for file in some
        ]
    rows = np.fromfile(tmp_path / f"{name}.rows", "<f2").reshape(about["rows"], about["dim"])
    assert np.array_equal(rows, rows_of(some).astype(np.float16))
