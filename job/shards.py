"""Shards: the files of the embedding cache, written once, never changed, checked on every read.

A cache is a store with a folder for each space, and in it two objects for each shard:

    <space>/<id>.rows   embeddings, little-endian float32 or float16 [n,d], row after row
    <space>/<id>.index  an .npz that says what they are of; written last, so it makes them a shard

`id` is the SHA-256 of the index's bytes, cut to 32 digits, so that an index proves itself; it holds
the size and the CRC32C of the rows, so that it proves them too. The arrays of the index, a line for
each file that was embedded or found unreadable:

    identities  uint8 [m,16]  what a listing told of the file; or zeros
    digests     uint8 [m,32]  SHA-256 of the file's content
    checksums   uint32 [m]    CRC32C of the file's content
    places      int32 [m]     its row in the rows; -1: in another shard, or there is none
    about       uint8 [k]     JSON: format, space, nonce, dim, dtype, rows, crc32c, reasons
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from job.storage import Entry, Store, crc32c

FORMAT = 1

NAME = re.compile(r"(?P<space>[0-9a-f]{32})/(?P<id>[0-9a-f]{32})\.(?P<kind>rows|index)")

# The identity of a line that is known by its content only.
NOBODY = bytes(16)

DTYPES = ("float32", "float16")


class DamagedShardError(Exception):
    """An object of the cache that is not what was written, or that something else wrote."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a shard on its way there; `row` is `[d]` of the shard's dtype, if it has one."""

    identity: bytes
    digest: bytes
    checksum: int
    reason: str
    row: npt.NDArray[Any] | None


@dataclass(frozen=True, slots=True)
class Columns:
    """The lines of one shard or of many: arrays of m, as the module's docstring lists them."""

    identities: npt.NDArray[np.uint8]
    digests: npt.NDArray[np.uint8]
    checksums: npt.NDArray[np.uint32]
    places: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.places)

    @staticmethod
    def none() -> Columns:
        """Give columns without a line."""
        return _columns(())

    @staticmethod
    def joined(parts: Sequence[Columns]) -> Columns:
        """Give the lines of all parts, one after the other."""
        return Columns(
            *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Columns))
        )


@dataclass(frozen=True, slots=True)
class Shard:
    """What an index says: its lines, and size and checksum of the rows.

    `dim` is 0 where there are no rows. `reasons` says of a line why the file cannot be read; it has
    no row then.
    """

    space: str
    id: str
    dim: int
    dtype: str
    rows: int
    crc32c: str
    reasons: dict[int, str]
    columns: Columns

    @property
    def name(self) -> str:
        """Give `<space>/<id>`, what the names of both objects begin with."""
        return f"{self.space}/{self.id}"

    @property
    def size(self) -> int:
        """Give the bytes of the rows."""
        return self.rows * self.dim * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Sealed:
    """A shard with the bytes of its two objects, ready to be written."""

    shard: Shard
    rows: bytes
    index: bytes

    def write(self, store: Store) -> None:
        """Write the rows, then the index. Raises what the store raises."""
        for kind, data in (("rows", self.rows), ("index", self.index)):
            # There already: a retry of ours whose first try arrived after all.
            with contextlib.suppress(FileExistsError):
                store.write(f"{self.shard.name}.{kind}", data, if_absent=True)


def seal(space: str, dtype: str, records: Sequence[Record]) -> Sealed:
    """Make a shard of records, under a name that no other shard ever had or will have.

    The same records, embedded anew because their shard was damaged, must not meet it again.
    """
    stored = [record.row for record in records if record.row is not None]
    dim = len(stored[0]) if stored else 0
    if any(row.shape != (dim,) for row in stored):
        raise ValueError(f"embeddings of several shapes in one space, the first is [{dim}]")
    rows = b"".join(row.data for row in stored)
    columns = _columns(records)
    reasons = {line: record.reason for line, record in enumerate(records) if record.reason}
    about = {
        "format": FORMAT,
        "space": space,
        "nonce": uuid.uuid4().hex,
        "dim": dim,
        "dtype": dtype,
        "rows": len(stored),
        "crc32c": crc32c(rows),
        "reasons": {str(line): reason for line, reason in reasons.items()},
    }
    text = json.dumps(about, sort_keys=True).encode()
    buffer = io.BytesIO()
    np.savez(
        buffer,
        identities=columns.identities,
        digests=columns.digests,
        checksums=columns.checksums.astype("<u4"),
        places=columns.places.astype("<i4"),
        about=np.frombuffer(text, np.uint8),
    )
    index = buffer.getvalue()
    shard = Shard(
        space, _id(index), dim, dtype, len(stored), str(about["crc32c"]), reasons, columns
    )
    return Sealed(shard, rows, index)


def _columns(records: Sequence[Record]) -> Columns:
    held = np.array([record.row is not None for record in records], bool)
    return Columns(
        as_bytes(b"".join(record.identity for record in records), 16),
        as_bytes(b"".join(record.digest for record in records), 32),
        np.array([record.checksum for record in records], np.uint32),
        np.where(held, np.cumsum(held) - 1, -1).astype(np.int32),
    )


def as_bytes(data: bytes, width: int) -> npt.NDArray[np.uint8]:
    """Give uint8 `[n,width]`, a view of `data`."""
    return np.frombuffer(data, np.uint8).reshape(-1, width)


def _id(index: bytes) -> str:
    return hashlib.sha256(index).hexdigest()[:32]


def read_index(store: Store, listed: Listed) -> Shard:
    """Read the index of a shard.

    Raises DamagedShardError, FileNotFoundError when it is gone, and what the store raises.
    """
    if listed.index is None or listed.rows is None:
        raise DamagedShardError("one of its two objects is not there")
    data = store.read(listed.index.name, listed.index)
    space, _, name = listed.name.partition("/")
    if name != _id(data):
        raise DamagedShardError("its bytes are not those that its name stands for")
    try:
        shard = _parse(data, space, name)
    # The bytes are those that were written, so the writer was not this one: numpy, zipfile, zlib
    # and json each have their own words for that.
    except Exception as error:
        raise DamagedShardError(f"not an index of format {FORMAT}: {error!r}") from error
    if listed.rows.size != shard.size:
        raise DamagedShardError(f"its rows have {listed.rows.size} bytes, expected {shard.size}")
    return shard


def _parse(data: bytes, space: str, name: str) -> Shard:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        columns = Columns(*(arrays[field.name] for field in fields(Columns)))
        about = json.loads(arrays["about"].tobytes())
    lines = len(columns)
    reasons = {int(line): str(reason) for line, reason in about["reasons"].items()}
    shard = Shard(
        space, name, int(about["dim"]), str(about["dtype"]), int(about["rows"]),
        str(about["crc32c"]), reasons, columns,
    )  # fmt: skip
    sound = (
        (about["format"], about["space"]) == (FORMAT, space)
        and shard.dtype in DTYPES
        and columns.identities.shape == (lines, 16)
        and columns.digests.shape == (lines, 32)
        and columns.checksums.shape == (lines,)
        and columns.places.shape == (lines,)
        and [getattr(columns, f.name).dtype for f in fields(Columns)]
        == [np.uint8, np.uint8, np.uint32, np.int32]
        and bool(np.all((columns.places >= -1) & (columns.places < shard.rows)))
        and all(0 <= line < lines and columns.places[line] == -1 for line in reasons)
    )
    if not sound:
        raise ValueError("its parts do not fit together")
    return shard


def read_rows(store: Store, shard: Shard, dim: int) -> npt.NDArray[Any]:
    """Read the rows of a shard, float32 or float16 `[n,d]`, where d is to be `dim`.

    Raises DamagedShardError, FileNotFoundError when they are gone, and what the store raises.
    """
    if shard.dim != dim:
        raise DamagedShardError(f"embeddings of {shard.dim} values, expected {dim}")
    data = store.read(f"{shard.name}.rows")
    if len(data) != shard.size:
        raise DamagedShardError(f"{len(data)} bytes, expected {shard.size}")
    if crc32c(data) != shard.crc32c:
        raise DamagedShardError(f"CRC32C {crc32c(data)}, expected {shard.crc32c}")
    return np.frombuffer(data, np.dtype(shard.dtype).newbyteorder("<")).reshape(-1, dim)


@dataclass(frozen=True, slots=True)
class Listed:
    """What a listing shows of a shard; None is an object that is not there."""

    name: str
    index: Entry | None
    rows: Entry | None

    @property
    def is_whole(self) -> bool:
        """Tell whether both objects are there."""
        return self.index is not None and self.rows is not None

    @property
    def objects(self) -> tuple[Entry, ...]:
        """Give the objects that are there, the index first."""
        return tuple(entry for entry in (self.index, self.rows) if entry is not None)

    @property
    def space(self) -> str:
        """Give the name of the space."""
        return self.name.partition("/")[0]

    @property
    def size(self) -> int:
        """Give the bytes of its objects."""
        return sum(entry.size for entry in self.objects)

    @property
    def modified(self) -> float:
        """Give when the shard was finished, in epoch seconds: its index is written last."""
        return (self.index or self.objects[0]).modified


def list_shards(store: Store, space: str = "") -> Iterator[Listed]:
    """Give what a listing shows of a space's shards, or of all spaces', whole or not.

    Objects whose names are not those of a shard are passed over. Raises what the store raises.
    """
    found: dict[str, dict[str, Entry]] = {}
    for entry in store.list(f"{space}/" if space else ""):
        if match := NAME.fullmatch(entry.name):
            found.setdefault(f"{match['space']}/{match['id']}", {})[match["kind"]] = entry
    for name, objects in found.items():
        yield Listed(name, objects.get("index"), objects.get("rows"))
