"""What the cache has in memory: about 85 bytes for each record in a shard, and those not in one."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from job.shards import NOBODY, Columns, Record, Shard


@dataclass(frozen=True, slots=True)
class Known:
    """What the cache knows of a file.

    `digest` is the SHA-256 of its content, hexadecimal; `checksum` its CRC32C, base64 as `Entry`
    has it. `reason` says why it cannot be read as an image; without one there was an embedding.
    """

    digest: str
    checksum: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Location:
    """Where the embeddings of some contents are: int32 `[n]` each.

    `shards[i]` is the number of a shard in the catalogue, -1 where there is no such embedding;
    `places[i]` is the row in it.
    """

    shards: npt.NDArray[np.int32]
    places: npt.NDArray[np.int32]

    def by_shard(self) -> list[npt.NDArray[np.int64]]:
        """Give the items that are in a shard, as indices of the arrays, a group for each shard."""
        order = np.argsort(self.shards, kind="stable")
        order = order[np.searchsorted(self.shards[order], 0) :]
        groups = np.split(order, np.flatnonzero(np.diff(self.shards[order])) + 1)
        return [items for items in groups if len(items)]


class Catalogue:
    """The records of many shards, by identity and by content."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []  # without their lines, which are here, all in one
        self._columns = Columns.none()
        self._shard_of = np.empty(0, np.int32)
        self._reasons: dict[int, str] = {}
        self._identities = Finder()
        self._contents = Finder()

    def add(self, shards: Sequence[Shard]) -> None:
        """Take in the lines of shards."""
        first, number = len(self._columns), len(self.shards)
        lengths = [len(shard.columns) for shard in shards]
        self.shards += [replace(shard, columns=Columns.none(), reasons={}) for shard in shards]
        self._columns = Columns.joined([self._columns, *(shard.columns for shard in shards)])
        numbers = np.arange(number, len(self.shards), dtype=np.int32)
        self._shard_of = np.concatenate([self._shard_of, np.repeat(numbers, lengths)])
        for shard, length in zip(shards, lengths, strict=True):
            self._reasons |= {first + line: reason for line, reason in shard.reasons.items()}
            first += length
        new = np.arange(first - sum(lengths), first, dtype=np.int32)
        self._identities.add(self._columns.identities[new], new)
        held = new[self._columns.places[new] >= 0]
        self._contents.add(self._columns.digests[held], held)

    def known(self, identity: bytes) -> Known | None:
        """Give what is known of the file with an identity, None where that is nothing."""
        line = self._identities.find(identity, self._columns.identities)
        if line < 0:
            return None
        digest = self._columns.digests[line].tobytes().hex()
        checksum = base64.b64encode(int(self._columns.checksums[line]).to_bytes(4, "big")).decode()
        return Known(digest, checksum, self._reasons.get(line, ""))

    def holds(self, digest: bytes) -> bool:
        """Tell whether a shard has an embedding of this content."""
        return self._contents.find(digest, self._columns.digests) >= 0

    def locate(self, digests: npt.NDArray[np.uint8]) -> Location:
        """Give where the embeddings of contents, uint8 `[n,32]`, are."""
        lines = self._contents.find_all(digests, self._columns.digests)
        if not len(self._columns):
            return Location(lines, lines)
        return Location(np.where(lines < 0, -1, self._shard_of[lines]), self._columns.places[lines])

    def forget(self, names: Set[str]) -> None:
        """Take the rows of the shards of these names for lost; what is known of files stays."""
        shards = [number for number, shard in enumerate(self.shards) if shard.name in names]
        self._columns.places[np.isin(self._shard_of, shards)] = -1
        held = np.flatnonzero(self._columns.places >= 0).astype(np.int32)
        self._contents = Finder()
        self._contents.add(self._columns.digests[held], held)


class Buffer:
    """Records that no shard has yet, and where to find them; `since` is when the first one came."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.known: dict[bytes, Known] = {}
        self.rows: dict[bytes, npt.NDArray[Any]] = {}
        self.since = time.monotonic()

    def add(self, identity: bytes | None, known: Known, row: npt.NDArray[Any] | None) -> None:
        """Take in a file, with its embedding if it is to be stored."""
        if not self.records:
            self.since = time.monotonic()
        digest = bytes.fromhex(known.digest)
        checksum = int.from_bytes(base64.b64decode(known.checksum), "big")
        self.records.append(Record(identity or NOBODY, digest, checksum, known.reason, row))
        if identity is not None:
            self.known[identity] = known
        if row is not None:
            self.rows[digest] = row


class Finder:
    """From keys to the lines of a column that hold them, in 12 bytes a key.

    It has the first eight bytes of each key, sorted; the whole key is compared in the column. Of
    two different keys that begin alike only one is found: a pair in 2^64, where they are hashes.
    """

    def __init__(self) -> None:
        self._heads = np.empty(0, np.uint64)
        self._lines = np.empty(0, np.int32)

    def add(self, keys: npt.NDArray[np.uint8], lines: npt.NDArray[np.int32]) -> None:
        """Add keys, uint8 `[n,w]`, that are on these lines, int32 `[n]`."""
        heads = _heads(keys)
        order = np.argsort(heads, kind="stable")
        at = np.searchsorted(self._heads, heads[order])
        self._heads = np.insert(self._heads, at, heads[order])
        self._lines = np.insert(self._lines, at, lines[order])

    def find(self, key: bytes, column: npt.NDArray[np.uint8]) -> int:
        """Give the line of a key in its column, uint8 `[m,w]`; -1 where it is not."""
        head = np.frombuffer(key, np.uint64, 1)[0]
        at = self._heads.searchsorted(head)
        if at == len(self._heads) or self._heads[at] != head:
            return -1
        line = int(self._lines[at])
        return line if column[line].tobytes() == key else -1

    def find_all(
        self, keys: npt.NDArray[np.uint8], column: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.int32]:
        """Give the lines, int32 `[n]`, of keys, uint8 `[n,w]`; -1 for those that are not there."""
        if not len(self._heads):
            return np.full(len(keys), -1, np.int32)
        at = np.minimum(np.searchsorted(self._heads, _heads(keys)), len(self._heads) - 1)
        lines = self._lines[at]
        return np.where((column[lines] == keys).all(axis=1), lines, np.int32(-1))


def _heads(keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(keys[:, :8]).view(np.uint64).ravel()
