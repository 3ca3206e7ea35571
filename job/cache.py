"""The embedding cache: what was embedded once is not embedded again, by any job.

A file is known by its identity, which a listing tells without reading it, and by the SHA-256 of its
content. So an object that did not change is neither downloaded nor decoded, and one that was
renamed, moved or copied is downloaded once and not embedded. The files are those of `job.shards`.

A cache never fails a run: what cannot be read is computed again, what cannot be written is not
remembered, and the log has a warning.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from hashlib import blake2b, sha256
from itertools import chain
from logging import WARNING
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from job import shards
from job.catalogue import Buffer, Catalogue, Known, Location
from job.errors import RegraftError
from job.progress import log
from job.shards import DamagedShardError, Listed, Sealed, Shard
from job.storage import Entry, Store, check_writable

__all__ = ["EmbeddingCache", "Known", "identity", "is_settled", "space_name"]

# Records in a shard: 42 MB of 1,280 float32, enough for the bandwidth of an object store, little
# enough to hold a few in memory.
SHARD_ROWS = 8192

# Seconds within which a file system's clock may not tell two writes apart (FAT's ticks are of 2 s).
RACY = 2.0

# Shards in memory at once while embeddings are fetched.
READERS = 4

# Rows that are converted at once, so that a shard is not in memory twice.
CHUNK = 1024

# What a store may raise; FileNotFoundError also where nothing can be made (/proc).
FAILURES = (RegraftError, FileNotFoundError)


def space_name(**parts: Any) -> str:
    """Give the name of a space: 32 hexadecimal digits of a SHA-256 over what its rows depend on.

    `parts` are whatever JSON can express; one that differs makes another space.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode()).hexdigest()[:32]


def identity(entry: Entry) -> bytes:
    """Give 16 bytes for what a listing tells of an object: name, generation, size and CRC32C."""
    # The name may hold anything, so it comes last; the others have no space in them.
    text = f"{entry.generation} {entry.size} {entry.crc32c} {entry.name}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def is_settled(entry: Entry, now: float) -> bool:
    """Tell whether the identity of a file that is read from `now` on may be remembered.

    `now` is in epoch seconds, taken before the read. A file that was changed less than `RACY`
    seconds before may change again within the same tick of its clock and would look the same;
    where the listing gives a checksum it would not.
    """
    return bool(entry.crc32c) or now - entry.modified >= RACY


class EmbeddingCache:
    """The embeddings of one space. To be used from one thread, but for `holds`, from any."""

    def __init__(
        self,
        store: Store,
        space: str,
        dtype: DTypeLike = np.float32,
        *,
        threads: int = 32,
        interval: float = 60.0,
        saved: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Open the space `space` (see `space_name`) of a store; `refresh` reads what is there.

        `dtype` is how embeddings are stored, float32 or float16; `threads` is how many indexes are
        read at once. A shard is written when it is full or `interval` seconds old: a killed job
        loses no more. `saved` is told how many embeddings each shard has brought to the store.
        """
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._store = store
        self._space = space
        self._threads = threads
        self._interval = interval
        self._saved = saved
        self._writable = True
        self._seen: set[str] = set()
        self._catalogue = Catalogue()
        self._buffer = Buffer()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cache")
        self._writing: Future[None] | None = None
        self._newest = ""  # the shard that is being written
        self._lock = threading.Lock()  # what `holds` looks at

    def refresh(self) -> int:
        """Read the indexes that were not seen yet; gives the number of new records.

        One that is damaged, or not of this space, is logged and left alone. A folder that is not
        there yet is made; where that fails the cache goes on without the store.
        """
        try:
            listed = self._list()
        except FAILURES as error:
            self._stop_writing(error)
            return 0
        new = [item for item in listed if item.is_whole and item.name not in self._seen]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="cache") as pool:
            read = [shard for shard in pool.map(self._read_index, new) if shard is not None]
        self._catalogue.add(read)
        self._seen |= {shard.name for shard in read}
        return sum(len(shard.columns) for shard in read)

    def _list(self) -> list[Listed]:
        try:
            return list(shards.list_shards(self._store, self._space))
        except FAILURES:
            # The first job finds no folder: the probe makes it, or says what is wrong.
            check_writable(self._store)
            return list(shards.list_shards(self._store, self._space))

    def _read_index(self, item: Listed) -> Shard | None:
        try:
            shard = shards.read_index(self._store, item)
            if shard.dtype != self.dtype.name:
                raise DamagedShardError(f"it is of {shard.dtype}, expected {self.dtype.name}")
        except DamagedShardError as error:
            self._seen.add(item.name)
            self._warn(f"{item.name}.index is damaged and left out", error)
        except FAILURES as error:
            self._warn(f"{item.name}.index cannot be read now and is left out", error)
        else:
            return shard
        return None

    def known(self, entry: Entry) -> Known | None:
        """Give what is known of an object that is listed like this, None where that is nothing."""
        key = identity(entry)
        return self._buffer.known.get(key) or self._catalogue.known(key)

    def holds(self, digest: str) -> bool:
        """Tell whether there is an embedding of the content with this SHA-256, hexadecimal."""
        key = bytes.fromhex(digest)
        with self._lock:
            return key in self._buffer.rows or self._catalogue.holds(key)

    def fetch(self, wanted: Mapping[str, Sequence[int]], out: NDArray[np.float32]) -> set[str]:
        """Copy embeddings to rows of `out`, float32 `[n,d]`; `wanted` has the rows of each digest.

        Gives the digests that could not be had; their rows of `out` are as they were. A shard that
        is damaged, gone or not of `d` columns is logged, and what it held is not held any more.
        """
        self._settle()
        digests = list(wanted)
        keys = shards.as_bytes(bytes.fromhex("".join(digests)), 32)
        rows = np.fromiter(chain.from_iterable(wanted.values()), np.int64)
        key_of = np.repeat(np.arange(len(keys)), [len(some) for some in wanted.values()])
        missing: set[str] = set()
        left = np.arange(len(rows))
        while len(left):
            where = self._catalogue.locate(keys[key_of[left]])
            for item in left[where.shards < 0]:
                row = self._buffer.rows.get(keys[key_of[item]].tobytes())
                if row is None:
                    missing.add(digests[key_of[item]])
                else:
                    out[rows[item]] = row
            # What was in a shard that is damaged may be in another one too.
            left = left[self._fetch_stored(where, rows[left], out)]
        return missing

    def _fetch_stored(
        self, where: Location, rows: NDArray[np.int64], out: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Copy what is in shards; gives the items (indices of `rows`) whose shard is lost."""

        def copy(items: NDArray[np.int64]) -> bool:
            shard = self._catalogue.shards[where.shards[items[0]]]
            stored = self._read_rows(shard, out.shape[1])
            if stored is not None:
                for start in range(0, len(items), CHUNK):
                    chunk = items[start : start + CHUNK]
                    out[rows[chunk]] = stored[where.places[chunk]]
            return stored is not None

        groups = where.by_shard()
        with ThreadPoolExecutor(READERS, thread_name_prefix="cache") as pool:
            copied = list(pool.map(copy, groups))
        lost = [items for items, fine in zip(groups, copied, strict=True) if not fine]
        if not lost:
            return np.empty(0, np.int64)
        self._catalogue.forget({self._catalogue.shards[where.shards[i[0]]].name for i in lost})
        return np.concatenate(lost)

    def _read_rows(self, shard: Shard, dim: int) -> NDArray[Any] | None:
        try:
            return shards.read_rows(self._store, shard, dim)
        except (DamagedShardError, *FAILURES) as error:
            self._warn(f"{shard.name}.rows cannot be used, its images are embedded again", error)
        return None

    def add(self, entry: Entry | None, known: Known, row: NDArray[Any] | None) -> None:
        """Remember a file: its entry (None: not settled), its content, its embedding `[d]`.

        `row` is None where the file is unreadable, or where the content is held already. A row
        that is held already, or that is not finite in the cache's dtype, is not stored. The shard
        is written when it is full or old enough, while the caller goes on.
        """
        if not self._writable:
            return
        stored = None if row is None or self.holds(known.digest) else self._stored(row)
        if stored is None and (entry is None or self.known(entry) is not None):
            return
        self._buffer.add(None if entry is None else identity(entry), known, stored)
        age = time.monotonic() - self._buffer.since
        if len(self._buffer.records) >= SHARD_ROWS or age >= self._interval:
            self._submit()

    def _stored(self, row: NDArray[Any]) -> NDArray[Any] | None:
        with np.errstate(over="ignore"):  # beyond float16's range is told by the next line
            stored = np.array(row, self.dtype)  # a copy: the caller may use its array again
        return stored if np.isfinite(stored).all() else None

    def flush(self, timeout: float | None = None) -> None:
        """Write what is buffered, and wait until it is in the store, `timeout` seconds at most."""
        try:
            if self._buffer.records:
                self._submit(timeout)
            self._settle(timeout)
        except FutureTimeout:
            self._stop_writing(TimeoutError(f"the store did not take it within {timeout:g} s"))

    def _submit(self, timeout: float | None = None) -> None:
        """Have the buffer written as a shard in the background, after the one before.

        A signal may interrupt this anywhere; `flush` then does it again, at worst in two shards.
        """
        self._settle(timeout)
        if not self._writable:
            return
        sealed = shards.seal(self._space, self.dtype.name, self._buffer.records)
        with self._lock:
            self._catalogue.add([sealed.shard])
        self._seen.add(sealed.shard.name)
        self._newest = sealed.shard.name
        self._writing = self._writer.submit(self._write, sealed)
        self._buffer = Buffer()

    def _write(self, sealed: Sealed) -> None:
        sealed.write(self._store)
        self._saved(sealed.shard.rows)

    def _settle(self, timeout: float | None = None) -> None:
        """Wait for the shard that is being written."""
        if self._writing is None:
            return
        error = self._writing.exception(timeout)
        self._writing = None
        if isinstance(error, FAILURES):
            with self._lock:
                self._catalogue.forget({self._newest})
            self._stop_writing(error)
        elif error is not None:
            raise error

    def _stop_writing(self, error: Exception) -> None:
        if self._writable:
            self._writable = False
            self._buffer = Buffer()
            self._warn("cannot be written, so what is new is not remembered", error)

    def _warn(self, what: str, error: Exception) -> None:
        hint = getattr(error, "hint", "")
        where = f"the embedding cache {self._store.uri}"
        log(f"{where}: {what}: {error}", level=WARNING, **({"hint": hint} if hint else {}))
