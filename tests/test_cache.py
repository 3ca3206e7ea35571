"""What was embedded once is known to every later job, and what is not sure is not believed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from caches import (
    SPACE,
    WIDTH,
    File,
    fetched,
    files,
    fill,
    make_file,
    opened,
    rows_of,
    shard_names,
)
from conftest import ROOT
from hypothesis import example, given
from hypothesis import strategies as st

from job import cache as cache_module
from job.cache import EmbeddingCache, Known, identity, is_settled, space_name
from job.shards import Record, list_shards, read_index, seal
from job.storage import Entry, LocalStore, Store, open_store

Logged = pytest.LogCaptureFixture


@pytest.fixture(params=["local", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A place for a cache of each kind; the folder is not there yet."""
    if request.param == "gcs":
        return open_store(f"gs://{request.getfixturevalue('bucket')}/models/.embeddings")
    return LocalStore(tmp_path / "models" / ".embeddings")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_one_job_adds_the_next_one_has(store: Store, dtype: str) -> None:
    """Identity, digest, checksum and every bit of every row come back, in any order."""
    some = files(50)
    some[0].row[:] = [-0.0, 1e-7, 65504.0, -1e-8, 0.1, 1.0]
    fill(store, some, dtype)
    later = EmbeddingCache(store, SPACE, dtype)
    assert later.known(some[0].entry) is None
    assert later.refresh() == 50
    assert later.refresh() == 0
    assert [later.known(file.entry) for file in some] == [file.known for file in some]
    assert all(later.holds(file.known.digest) for file in some)
    backwards = some[::-1]
    expected = rows_of(backwards).astype(dtype).astype(np.float32)
    assert fetched(later, backwards).tobytes() == expected.tobytes()


def test_what_is_not_written_yet_is_known_to_its_own_job(store: Store) -> None:
    """Buffered records answer like stored ones, and nobody else sees them."""
    cache = opened(store)
    some = files(5)
    for file in some:
        cache.add(file.entry, file.known, file.row)
    assert shard_names(store) == []
    assert cache.known(some[3].entry) == some[3].known
    assert cache.holds(some[3].known.digest)
    assert np.array_equal(fetched(cache, some), rows_of(some))
    assert opened(store).known(some[3].entry) is None


def test_the_row_is_copied(tmp_path: Path) -> None:
    """The caller may use its array for the next batch."""
    cache = opened(LocalStore(tmp_path))
    file = make_file(1)
    row = file.row.copy()
    cache.add(file.entry, file.known, row)
    row[:] = 0
    assert np.array_equal(fetched(cache, [file]), rows_of([file]))


def test_one_embedding_goes_to_every_row_that_wants_it(tmp_path: Path) -> None:
    """Copies of a file are rows of their own; rows that nobody named stay as they are."""
    some = files(3)
    cache = fill(LocalStore(tmp_path), some)
    out = np.zeros((6, WIDTH), np.float32)
    wanted = {some[2].known.digest: [5, 0], some[0].known.digest: [3], "ab" * 32: [1]}
    assert cache.fetch(wanted, out) == {"ab" * 32}
    zero = np.zeros(WIDTH, np.float32)
    expected = [some[2].row, zero, zero, some[0].row, zero, some[2].row]
    assert np.array_equal(out, np.stack(expected))


def test_rows_are_copied_in_any_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a shard holds more than are converted at once, and in another order."""
    monkeypatch.setattr(cache_module, "CHUNK", 4)
    some = files(11)
    cache = opened(LocalStore(tmp_path))
    fill(LocalStore(tmp_path), some[::-1])
    cache.refresh()
    assert np.array_equal(fetched(cache, some), rows_of(some))


def test_a_renamed_file_is_not_embedded_again(store: Store) -> None:
    """Its new identity is not known, its content is held; once added it has no second row."""
    (file,) = files(1)
    fill(store, [file])
    renamed = Entry("other/name.jpg", file.entry.size, 77, file.entry.crc32c)
    later = opened(store)
    assert later.known(renamed) is None
    assert later.holds(file.known.digest)
    later.add(renamed, file.known, file.row)  # it is dropped, as the content is held
    later.flush()
    last = opened(store)
    assert last.known(renamed) == last.known(file.entry) == file.known
    whole = [read_index(store, shard) for shard in list_shards(store)]
    assert sorted(shard.rows for shard in whole) == [0, 1]
    assert np.array_equal(fetched(last, [file]), rows_of([file]))


def test_what_is_known_already_is_not_written_again(store: Store) -> None:
    """A run over unchanged files leaves no shard."""
    some = files(4)
    fill(store, some)
    before = [entry.name for entry in store.list()]
    fill(store, some)
    assert [entry.name for entry in store.list()] == before


def test_a_file_that_is_not_settled_is_known_by_its_content_only(store: Store) -> None:
    """Without an entry nothing is remembered of the name."""
    (file,) = files(1)
    cache = opened(store)
    cache.add(None, file.known, file.row)
    cache.flush()
    later = opened(store)
    assert later.known(file.entry) is None
    assert np.array_equal(fetched(later, [file]), rows_of([file]))


def test_unreadable_files_are_known_with_their_reason(store: Store) -> None:
    """Whatever the reason says, it comes back; there is no embedding."""
    reasons = ['"}\n\0', "\udcff.jpg: not an image", "ü 🐈", "../../x", "0"]
    cache = opened(store)
    for number, reason in enumerate(reasons):
        file = make_file(number)
        cache.add(file.entry, Known(file.known.digest, file.known.checksum, reason), None)
        if number == 2:
            cache.flush()
    good = make_file(9)
    cache.add(good.entry, good.known, good.row)
    cache.flush()
    later = opened(store)
    found = [later.known(make_file(number).entry) for number in range(len(reasons))]
    assert [known and known.reason for known in found] == reasons
    assert not later.holds(make_file(0).known.digest)
    assert later.known(good.entry) == good.known


def test_a_row_beyond_float16_is_not_stored(tmp_path: Path) -> None:
    """Infinity in the place of 70,000 would be another embedding; the file itself is known."""
    file = make_file(1)
    file.row[0] = 70_000
    cache = fill(LocalStore(tmp_path), [file], "float16")
    assert not cache.holds(file.known.digest)
    assert cache.known(file.entry) == file.known


def test_shards_are_written_when_they_are_full(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 25 records 20 are in the store before anybody flushes, once their writes are through."""
    monkeypatch.setattr(cache_module, "SHARD_ROWS", 10)
    cache = opened(store)
    some = files(25)
    for file in some:
        cache.add(file.entry, file.known, file.row)
    assert np.array_equal(fetched(cache, some), rows_of(some))  # it waits for the write under way
    assert len(shard_names(store)) == 2
    cache.flush()
    assert len(shard_names(store)) == 3
    assert opened(store).known(some[24].entry) == some[24].known


class Slow(LocalStore):
    """A store that takes its time to write."""

    def write(self, name: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        """Wait, then write."""
        time.sleep(0.2)
        super().write(name, data, if_absent=if_absent)


def test_the_caller_goes_on_while_a_shard_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full shard is on its way when add returns, and a fetch from it waits until it is there."""
    monkeypatch.setattr(cache_module, "SHARD_ROWS", 5)
    store, some = Slow(tmp_path), files(5)
    cache = opened(store)
    for file in some:
        cache.add(file.entry, file.known, file.row)
    assert shard_names(store) == []
    assert np.array_equal(fetched(cache, some), rows_of(some))
    assert len(shard_names(store)) == 1


def test_shards_are_written_when_they_are_old(store: Store) -> None:
    """The first record that comes after the time takes all before it along, and is counted."""
    saved: list[int] = []
    cache = EmbeddingCache(store, SPACE, interval=0.2, saved=saved.append)
    first, second = files(2)
    cache.add(first.entry, first.known, first.row)
    time.sleep(0.3)
    cache.add(second.entry, second.known, second.row)
    cache.fetch({first.known.digest: [0]}, np.zeros((1, WIDTH), np.float32))  # waits for the write
    assert opened(store).known(first.entry) == first.known
    assert saved == [2]


def filled_by_two(store: Store, some: list[File]) -> tuple[EmbeddingCache, EmbeddingCache]:
    """Have two jobs that know nothing of each other store the same files."""
    one, two = opened(store), opened(store)
    for cache in (one, two):
        for file in some:
            cache.add(file.entry, file.known, file.row)
    one.flush()
    two.flush()
    return one, two


def test_jobs_that_do_the_same_work_do_not_disturb_each_other(store: Store) -> None:
    """Two shards with the same records are two shards; either job, and a third, has every row."""
    some = files(8)
    one, two = filled_by_two(store, some)
    assert len(shard_names(store)) == 2
    assert one.refresh() == two.refresh() == 8
    for cache in (one, two, opened(store)):
        assert np.array_equal(fetched(cache, some), rows_of(some))


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a real process that runs `code` with the tests' helpers at hand."""
    head = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


WRITER = """
from caches import files, opened
from job import cache
from job.storage import open_store
cache.SHARD_ROWS = 7
writer = opened(open_store(sys.argv[1]))
for file in files(int(sys.argv[2]), int(sys.argv[3])):
    writer.add(file.entry, file.known, file.row)
writer.flush()
"""


def test_processes_that_write_at_once_are_all_seen(store: Store) -> None:
    """Two jobs with files of their own and some in common; one that was open before sees both."""
    before = opened(store)
    writers = [child(WRITER, store.uri, 0, 120), child(WRITER, store.uri, 80, 200)]
    assert [writer.wait() for writer in writers] == [0, 0]
    some = files(200)
    assert before.refresh() >= 200
    assert [before.known(file.entry) for file in some] == [file.known for file in some]
    assert np.array_equal(fetched(before, some), rows_of(some))


KILLED = """
import os, signal
from caches import files, opened
from job.storage import open_store
store = open_store(sys.argv[1])
write = store.write
def kill_before_index(name, data, **options):
    if name.endswith(".index"):
        os.kill(os.getpid(), signal.SIGKILL)
    write(name, data, **options)
store.write = kill_before_index
writer = opened(store)
for file in files(5):
    writer.add(file.entry, file.known, file.row)
writer.flush()
"""


def test_a_writer_killed_before_the_index_leaves_nothing_visible(store: Store) -> None:
    """Rows alone are no shard; the job that comes after writes the same one whole."""
    assert child(KILLED, store.uri).wait() == -signal.SIGKILL
    assert [entry.name[-5:] for entry in store.list()] == [".rows"]
    some = files(5)
    after = opened(store)
    assert after.refresh() == 0
    assert after.known(some[0].entry) is None
    assert not after.holds(some[0].known.digest)
    fill(store, some)
    assert np.array_equal(fetched(opened(store), some), rows_of(some))


ENDLESS = """
from itertools import count
from caches import make_file, opened
from job.storage import open_store
writer = opened(open_store(sys.argv[1]))
for number in count(int(sys.argv[2])):
    file = make_file(number)
    writer.add(file.entry, file.known, file.row)
    if number % 10 == 9:
        writer.flush()
        print(number, flush=True)
"""


def test_what_was_flushed_survives_a_kill_at_any_moment(store: Store) -> None:
    """Eight writers are killed in the middle of their work: what they said is saved is there."""
    saved: list[int] = []
    for turn in range(8):
        start = 10_000 * turn
        writer = child(ENDLESS, store.uri, start)
        assert writer.stdout is not None
        said = [int(writer.stdout.readline())]
        time.sleep(0.011 * turn)
        writer.kill()
        said += [int(line) for line in writer.stdout if line.endswith("\n")]
        writer.wait()
        saved += range(start, max(said) + 1)
    some = [make_file(number) for number in saved]
    later = opened(store)
    assert [later.known(file.entry) for file in some] == [file.known for file in some]
    assert np.array_equal(fetched(later, some), rows_of(some))


def test_a_shard_that_vanishes_is_embedded_again(store: Store, caplog: Logged) -> None:
    """Pruned between listing and fetch: told as missing, logged, and written anew."""
    some, others = files(5), files(5, 8)
    fill(store, some)
    (gone,) = shard_names(store)
    fill(store, others)
    cache = opened(store)
    store.delete(f"{gone}.index")
    store.delete(f"{gone}.rows")
    out = fetched(cache, some + others)
    assert np.isnan(out[:5]).all()
    assert np.array_equal(out[5:], rows_of(others))
    assert f"{gone}.rows cannot be used" in caplog.text
    assert not cache.holds(some[0].known.digest)
    assert cache.known(some[0].entry) == some[0].known
    for file in some:
        cache.add(file.entry, file.known, file.row)
    cache.flush()
    assert np.array_equal(fetched(cache, some), rows_of(some))
    assert np.array_equal(fetched(opened(store), some), rows_of(some))


def test_a_damaged_shard_is_replaced(store: Store) -> None:
    """The same records, embedded again, are stored beside it, and every later job has them."""
    some = files(6)
    fill(store, some)
    (broken,) = shard_names(store)
    data = store.read(f"{broken}.rows")
    store.write(f"{broken}.rows", b"x" + data[1:])
    cache = opened(store)
    assert np.isnan(fetched(cache, some)).all()
    for file in some:
        cache.add(file.entry, file.known, file.row)
    cache.flush()
    for later in (cache, opened(store), opened(store)):
        assert np.array_equal(fetched(later, some), rows_of(some))


def test_either_of_two_copies_may_break(store: Store) -> None:
    """Two jobs embedded the same content; whichever shard is damaged, the other one serves."""
    some = files(6)
    filled_by_two(store, some)
    for broken in shard_names(store):
        data = store.read(f"{broken}.rows")
        store.write(f"{broken}.rows", b"x" + data[1:])
        assert np.array_equal(fetched(opened(store), some), rows_of(some))
        store.write(f"{broken}.rows", data)


def test_embeddings_of_another_width_are_not_taken(tmp_path: Path, caplog: Logged) -> None:
    """A space with rows of another length than the backbone's gives none of them."""
    some = files(3)
    cache = fill(LocalStore(tmp_path), some)
    wanted = {file.known.digest: [0] for file in some}
    assert cache.fetch(wanted, np.zeros((1, WIDTH + 1), np.float32)) == set(wanted)
    assert f"embeddings of {WIDTH} values, expected {WIDTH + 1}" in caplog.text


def test_embeddings_of_another_dtype_are_not_taken(tmp_path: Path, caplog: Logged) -> None:
    """A space that somebody filled in another precision is left alone."""
    fill(LocalStore(tmp_path), files(3), "float16")
    assert EmbeddingCache(LocalStore(tmp_path), SPACE).refresh() == 0
    assert "it is of float16, expected float32" in caplog.text


def warnings(caplog: Logged) -> list[str]:
    """Give the warnings so far."""
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("place", ["/proc/regraft", "below a file", "missing bucket"])
def test_a_place_that_cannot_be_used_only_warns(
    place: str, tmp_path: Path, caplog: Logged, request: pytest.FixtureRequest
) -> None:
    """One warning, and a job without a cache."""
    uri = place
    if place == "below a file":
        (tmp_path / "file").write_bytes(b"")
        uri = str(tmp_path / "file" / "cache")
    elif place == "missing bucket":
        request.getfixturevalue("gcs_server")
        uri = "gs://no-such-bucket/cache"
    (file,) = files(1)
    cache = fill(open_store(uri), [file])
    cache.add(file.entry, file.known, file.row)
    cache.flush()
    assert cache.refresh() == 0
    assert cache.known(file.entry) is None
    assert np.isnan(fetched(cache, [file])).all()
    assert len(warnings(caplog)) == 1
    assert "what is new is not remembered" in warnings(caplog)[0]


def remove_store(store: Store) -> None:
    """Make every later write fail: a file in the folder's place, or no bucket."""
    if isinstance(store, LocalStore):
        shutil.rmtree(store.root)
        store.root.write_bytes(b"")
    else:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        client = storage.Client(project="test", credentials=AnonymousCredentials())
        client.get_bucket(store.uri.split("/")[2]).delete(force=True)


def test_a_write_that_fails_ends_the_writing_and_nothing_else(
    store: Store, caplog: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning; what is not in the store is not held; what was known stays known."""
    monkeypatch.setattr(cache_module, "SHARD_ROWS", 5)
    some = files(20)
    cache = opened(store)
    for file in some[:5]:
        cache.add(file.entry, file.known, file.row)
    cache.flush()
    remove_store(store)
    for file in some[5:]:
        cache.add(file.entry, file.known, file.row)
    cache.flush()
    assert len(warnings(caplog)) == 1
    assert [cache.holds(file.known.digest) for file in some] == [True] * 5 + [False] * 15
    assert cache.known(some[0].entry) == some[0].known


ENTRIES = st.builds(
    Entry,
    name=st.text(st.characters(), max_size=8),
    size=st.integers(0, 30),
    generation=st.integers(0, 30),
    crc32c=st.sampled_from(["", "AAAAAA==", "yZRlqg=="]),
)


@given(ENTRIES, ENTRIES)
@example(Entry("1 2", 3, 4), Entry("2", 1, 4))
@example(Entry("x", 3, 12), Entry("x", 23, 1))
@example(Entry("\udcff", 1, 1), Entry("\ufffd", 1, 1))
@example(Entry("\udcff", 1, 1), Entry("?", 1, 1))
def test_identities_differ_when_anything_does(one: Entry, other: Entry) -> None:
    """Sixteen bytes; the same for the same entry, others for any other name, size or content."""
    assert len(identity(one)) == 16
    assert (identity(one) == identity(other)) == (one == other)


def test_the_time_of_a_change_is_not_part_of_an_identity() -> None:
    """A generation says it already, and a bucket may touch an object's metadata."""
    assert identity(Entry("x", 1, 2, "", 3.0)) == identity(Entry("x", 1, 2, "", 4.0))


def test_a_file_changed_just_now_is_not_settled(tmp_path: Path) -> None:
    """A folder's file must have been left alone for two seconds before it was read."""
    (tmp_path / "x").write_bytes(b"1")
    (fresh,) = LocalStore(tmp_path).list()
    assert not is_settled(fresh, time.time())
    assert is_settled(fresh, fresh.modified + 2.0)
    assert not is_settled(fresh, fresh.modified - 60)  # a clock that is behind proves nothing
    os.utime(tmp_path / "x", (1.7e9, 1.7e9))
    (old,) = LocalStore(tmp_path).list()
    assert is_settled(old, time.time())


def test_a_checksum_in_the_listing_settles_a_file(bucket: str) -> None:
    """A bucket tells the content's CRC32C, however new the object is."""
    store = open_store(f"gs://{bucket}")
    store.write("x", b"1")
    (entry,) = store.list()
    assert is_settled(entry, time.time())


def test_a_space_is_named_by_all_its_parts() -> None:
    """Order does not matter, any other value does; the name is part of the format."""
    name = space_name(backbone="b", size=[224, 224], exact=False)
    assert name == space_name(exact=False, size=(224, 224), backbone="b")
    assert name != space_name(backbone="b", size=[224, 224], exact=True)
    assert name != space_name(backbone="b", size=[224, 224])
    assert space_name(a=1) == "015abd7f5cc57a2dd94b7590f04ad808"
    with pytest.raises(ValueError, match="JSON"):
        space_name(scale=float("nan"))


def test_memory_stays_small_for_many_records(tmp_path: Path) -> None:
    """200,000 records take less than 120 bytes each, and less than 400 while they are read."""
    count, each = 200_000, 8192
    store = LocalStore(tmp_path)
    random = np.random.default_rng(0)
    identities, digests = random.bytes(16 * count), random.bytes(32 * count)
    row = np.ones(2, np.float16)
    for start in range(0, count, each):
        records = [
            Record(identities[16 * i : 16 * i + 16], digests[32 * i : 32 * i + 32], i, "", row)
            for i in range(start, min(start + each, count))
        ]
        seal(SPACE, "float16", records).write(store)
    cache = EmbeddingCache(store, SPACE, "float16")
    tracemalloc.start()
    try:
        assert cache.refresh() == count
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / count < 120
    assert peak / count < 400
    for number in (0, 77_777, count - 1):
        assert cache.holds(digests[32 * number : 32 * number + 32].hex())
    assert not cache.holds("ab" * 32)


def test_few_shards_are_in_memory_at_once(tmp_path: Path) -> None:
    """Sixteen shards of a megabyte are fetched with less than ten megabytes beside the result."""
    store, width = LocalStore(tmp_path), 2**18
    digests = [bytes([number]) * 32 for number in range(16)]
    for digest in digests:
        row = np.full(width, digest[0], np.float32)
        seal(SPACE, "float32", [Record(bytes(16), digest, 0, "", row)]).write(store)
    cache = opened(store)
    out = np.zeros((16, width), np.float32)
    tracemalloc.start()
    try:
        assert cache.fetch({d.hex(): [row] for row, d in enumerate(digests)}, out) == set()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(out[:, -1], np.arange(16))
    assert peak < 10 * 2**20


def test_every_line_of_a_log_is_json(tmp_path: Path) -> None:
    """A warning about a hostile path is one line with its fields."""
    code = (
        "from caches import files, fill\n"
        "from job.progress import set_up_logging\nfrom job.storage import open_store\n"
        "set_up_logging('json'); fill(open_store(sys.argv[1]), files(1))\n"
    )
    (tmp_path / "a\nb").write_bytes(b"")
    head = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    place = str(tmp_path / "a\nb" / "cache")
    done = subprocess.run(
        [sys.executable, "-c", head + code, place], capture_output=True, text=True, check=True
    )
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert line["severity"] == "WARNING"
    assert "a\nb" in line["message"]
    assert line["hint"]
