"""Images to embeddings: what the cache has is recalled, the rest goes through the backbone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from job.backbone import Backbone
from job.cache import EmbeddingCache, Known, is_settled
from job.dataset import Index, Split
from job.errors import ConfigError
from job.formats import MAX_PIXELS
from job.forward import Forward
from job.images import loader
from job.storage import Readable
from job.stream import Decode, Loaded, Skipped, load_batches
from job.targets import Targets, class_indices
from job.traits import TRAITS, traits

# Rows that are moved at once when unreadable images leave gaps: 40 MiB of 1,280 features.
BLOCK = 8192

# Seconds that what is new has to get into the cache when a run ends in the middle: if that is
# because storage is out, waiting for it once more helps nobody.
LAST_CHANCE = 15.0


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The embeddings of the readable examples of an index.

    `features` is float32 `[n,d]`, `digests` the SHA-256 of each file, hexadecimal, and `traits`
    float32 `[n,TRAITS]` what `job.traits` keeps of the pixels; row i of each belongs to
    `index.examples[i]`. `checksums` has the CRC32C of every file that was read, by name, those that
    did not decode included. `hits` of the embeddings came from the cache.
    """

    index: Index
    features: np.ndarray
    traits: np.ndarray
    digests: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    checksums: dict[str, str]
    hits: int

    @property
    def misses(self) -> int:
        """Give how many of the embeddings had to be computed."""
        return len(self.index.examples) - self.hits

    def side(self, split: Split, targets: Targets = class_indices) -> tuple[np.ndarray, np.ndarray]:
        """Give one side of the split: features float32 `[n,d]`, a view, and what `targets` gives.

        By default those are int64 `[n]` classes.
        """
        rows = self.index.rows(split)
        return self.features[rows], targets(self.index.examples[rows], len(self.index.labels))


def embed(
    store: Readable, index: Index, backbone: Backbone, *,
    threads: int,
    batch_size: int | None = None,
    exact: bool = False,
    max_pixels: int = MAX_PIXELS,
    dtype: str = "float32",
    cache: EmbeddingCache | None = None,
    scratch: Path | None = None,
    open_decoder: Callable[[], Decode] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Embeddings:  # fmt: skip
    """Embed every example of `index`; `advance` is told how many more are done.

    An image that does not decode is left out and reported in `skipped`. An embedding does not
    depend on what is read with it: each forward pass has the same static shape. It is rounded to
    `dtype` (`float32`, or `float16` for a cache of half the size) whether it comes from the cache
    or not. Embeddings lie in an unnamed file in the folder `scratch`, so that the kernel may drop
    them from memory. What is new is in `cache` when this returns, or raises. `open_decoder`, called
    if anything is to be decoded, gives another decoder than `images.loader` with these options; its
    pixels need a `cache` of their own.

    Raises what the store raises (FileNotFoundError becomes a skipped image), and ConfigError when
    there is no room for the embeddings or they do not fit into float16.
    """
    table = _Table(index, backbone.feature_dim, cache, np.dtype(dtype), scratch)
    todo = table.recall(range(len(index.examples)))
    advance(len(index.examples) - len(todo))
    patience: float | None = LAST_CHANCE
    try:
        if todo:
            opener = partial(loader, backbone.image_size, exact=exact, max_pixels=max_pixels)
            decode = (open_decoder or opener)()
            table.read(store, todo, decode, Forward(backbone, batch_size), threads, advance)
        patience = None
    finally:
        if cache:
            cache.flush(patience)
    return table.embeddings()


class _Table:
    """The rows of `Embeddings` while they are filled in, in any order."""

    def __init__(
        self,
        index: Index,
        width: int,
        cache: EmbeddingCache | None,
        dtype: np.dtype,
        scratch: Path | None,
    ) -> None:
        self._index = index
        self._cache = cache
        self._dtype = dtype
        self._width = width
        self._rows = allocate_rows(len(index.examples), width + TRAITS, scratch)
        self._known: list[Known | None] = [None] * len(index.examples)
        self._reasons: dict[int, str] = {}
        self._held: dict[str, list[int]] = {}
        self._hits = 0

    def recall(self, rows: Sequence[int]) -> list[int]:
        """Fill in what the cache knows of unchanged files; gives the rows that are left."""
        if self._cache is None:
            return list(rows)
        left = []
        for row in rows:
            known = self._cache.known(self._index.examples[row].entry)
            if known is None or not (known.reason or self._cache.holds(known.digest)):
                left.append(row)
            else:
                self._note(row, known)
        return sorted(left + self.recall_held())

    def recall_held(self) -> list[int]:
        """Fetch the rows whose content the cache holds; gives those that it did not have."""
        wanted, self._held = self._held, {}
        if self._cache is None or not wanted:
            return []
        lost = self._cache.fetch(wanted, self._rows)
        self._hits += sum(len(rows) for digest, rows in wanted.items() if digest not in lost)
        return sorted(row for digest in lost for row in wanted[digest])

    def read(
        self,
        store: Readable,
        todo: list[int],
        decode: Decode,
        forward: Forward,
        threads: int,
        advance: Callable[[int], None],
    ) -> None:
        """Read, decode and embed the rows `todo`; content that the cache holds is only read."""
        while todo:
            batches = load_batches(
                store,
                [self._index.examples[row] for row in todo],
                decode,
                batch_size=forward.batch_size,
                threads=threads,
                advance=advance,
                held=self._cache.holds if self._cache else lambda digest: False,
                describe=traits,
            )
            for batch, features in forward.stream(batches):
                self.put(todo, batch.readable, features)
                self.put(todo, batch.other, None)
            todo = self.recall_held()  # what a damaged shard did not have after all
            advance(-len(todo))

    def put(self, rows: Sequence[int], loaded: list[Loaded], features: np.ndarray | None) -> None:
        """Take files that were read, with their embeddings `[n,d]` if they went through."""
        made = None if features is None else self._complete(loaded, features)
        for place, item in enumerate(loaded):
            row = rows[item.place]
            known = Known(item.digest, item.checksum, item.reason)
            self._note(row, known, held=made is None)
            if made is not None:
                self._rows[row] = made[place]
            if self._cache and item.digest:
                entry = item.example.entry if is_settled(item.example.entry, item.read_at) else None
                self._cache.add(entry, known, None if made is None else made[place])

    def _complete(self, loaded: list[Loaded], features: np.ndarray) -> np.ndarray:
        """Give the rows of a batch, `[n,d+TRAITS]`, in the precision that they are kept in."""
        kept = np.stack([item.traits for item in loaded if item.traits is not None])
        rows = np.concatenate([features, kept], axis=1)
        if self._dtype == np.float32:
            return rows
        with np.errstate(over="ignore"):
            rows = rows.astype(self._dtype)
        if not np.isfinite(rows).all():
            raise ConfigError(
                "an embedding does not fit into float16", hint="use --cache-dtype float32"
            )
        return rows

    def _note(self, row: int, known: Known, *, held: bool = True) -> None:
        self._known[row] = known
        if known.reason:
            self._reasons[row] = known.reason
        elif held:
            self._held.setdefault(known.digest, []).append(row)

    def embeddings(self) -> Embeddings:
        """Close the gaps that unreadable examples leave."""
        examples = self._index.examples
        kept = [row for row in range(len(examples)) if row not in self._reasons]
        for start in range(0, len(kept) if self._reasons else 0, BLOCK):
            rows = kept[start : start + BLOCK]
            self._rows[start : start + len(rows)] = self._rows[rows]
        skipped = [Skipped(examples[row].name, reason) for row, reason in self._reasons.items()]
        known = [(e.name, k) for e, k in zip(examples, self._known, strict=True) if k is not None]
        return Embeddings(
            index=self._index.without(item.name for item in skipped),
            features=self._rows[: len(kept), : self._width],
            traits=self._rows[: len(kept), self._width :],
            digests=tuple(k.digest for _, k in known if not k.reason),
            skipped=tuple(sorted(skipped, key=lambda item: item.name)),
            checksums={name: k.checksum for name, k in known if k.checksum},
            hits=self._hits,
        )


def allocate_rows(count: int, width: int, scratch: Path | None) -> np.ndarray:
    """Give float32 `[count,width]` in an unnamed file, with its room on the disk taken.

    Without that a full disk would end the process with SIGBUS at some later write.
    """
    with tempfile.TemporaryFile(dir=scratch) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, 4 * count * width)
        except OSError as error:
            raise ConfigError(
                f"no room for {4 * count * width / 2**20:,.0f} MiB of embeddings in "
                f"{scratch or tempfile.gettempdir()}: {error.strerror}",
                hint="give a --work-dir on a disk with more room",
            ) from error
        return np.memmap(file, np.float32, "r+", shape=(count, width))
