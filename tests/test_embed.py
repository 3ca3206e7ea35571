"""Embeddings belong to their images, whatever else is in the batch."""

from __future__ import annotations

import hashlib
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLOURS, jpeg, write_colours
from modules import write_pooling

from job.backbone import Backbone, load_backbone
from job.cache import EmbeddingCache, space_name
from job.dataset import Index
from job.embed import Embeddings, embed
from job.errors import ConfigError, UnavailableError
from job.images import loader
from job.index import build_index
from job.sources import folder_rows
from job.storage import Entry, LocalStore


@pytest.fixture(scope="module")
def pooling(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The tiny pooling module, loaded."""
    folder = tmp_path_factory.mktemp("pooling")
    return load_backbone(str(write_pooling(folder / "module")), cache_dir=folder / "cache")


def index_of(folder: Path) -> Index:
    """Index a folder with shares that suit a few images."""
    return build_index(folder_rows(LocalStore(folder)), 20, 20)


def test_rows_belong_to_their_examples(colours: Path, pooling: Backbone) -> None:
    """Each row is what the module says of that very file, in a last batch that is not full too."""
    index = index_of(colours)
    made = embed(LocalStore(colours), index, pooling, batch_size=32, threads=8)
    assert len(index.examples) % 32 != 0
    assert made.index == index
    decode = loader(pooling.image_size)
    for row in (0, 31, 32, len(index.examples) - 1):
        contents = (colours / index.examples[row].name).read_bytes()
        alone = pooling.embed(decode(contents)[None]).numpy()[0]
        assert made.features[row] == pytest.approx(alone, abs=1e-5)
        assert made.digests[row] == hashlib.sha256(contents).hexdigest()


def test_an_embedding_does_not_depend_on_its_neighbours(tmp_path: Path, pooling: Backbone) -> None:
    """Taking an image away leaves the bytes of every other embedding as they were."""
    folder = write_colours(tmp_path / "data")
    whole = embed(LocalStore(folder), index_of(folder), pooling, batch_size=32, threads=4)
    (folder / "cyan" / "000.jpg").unlink()
    fewer = embed(LocalStore(folder), index_of(folder), pooling, batch_size=32, threads=4)
    assert whole.index.examples[0].name == "cyan/000.jpg"
    assert whole.features[1:].tobytes() == fewer.features.tobytes()


def test_unreadable_images_are_left_out_and_named(tmp_path: Path, pooling: Backbone) -> None:
    """A broken, an empty and a vanished file are skipped with a reason; the others keep theirs."""
    folder = write_colours(tmp_path / "data")
    (folder / "cyan" / "001.jpg").write_bytes(b"no image at all")
    (folder / "cyan" / "002.jpg").write_bytes(b"")
    index = index_of(folder)
    (folder / "cyan" / "003.jpg").unlink()
    seen: list[int] = []
    made = embed(LocalStore(folder), index, pooling, batch_size=16, threads=4, advance=seen.append)
    assert [item.name for item in made.skipped] == [f"cyan/00{n}.jpg" for n in (1, 2, 3)]
    assert all(item.reason for item in made.skipped)
    assert len(made.features) == len(made.digests) == len(made.index.examples) == 117
    assert sum(seen) == 120
    clean = embed(LocalStore(folder), made.index, pooling, batch_size=16, threads=4)
    assert np.array_equal(clean.features, made.features)


class Watched(LocalStore):
    """A folder that counts what is read, and is out after `lasts` reads."""

    def __init__(self, root: Path, lasts: int = 10**9) -> None:
        super().__init__(root)
        self.reads: list[str] = []
        self.lasts = lasts

    def read(self, name: str, entry: Entry | None = None) -> bytes:
        """Read, count, and fail in time."""
        if len(self.reads) >= self.lasts:
            raise UnavailableError("the store is out")
        self.reads.append(name)
        return super().read(name, entry)


class Cached:
    """A data set of squares that have not been touched for an hour, and a cache for them."""

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        self.data = write_colours(folder / "data")
        for path in self.data.rglob("*.jpg"):
            os.utime(path, (path.stat().st_mtime - 3600,) * 2)
        self.store = LocalStore(folder / "cache")
        self.backbone = backbone

    def embed(self, lasts: int = 10**9, **options: Any) -> tuple[Embeddings, list[str]]:
        """Embed the data as a new process would; gives what was read as well."""
        store = Watched(self.data, lasts)
        cache = EmbeddingCache(
            self.store, space_name(of="tests"), dtype=options.get("dtype", "float32")
        )
        cache.refresh()
        index = index_of(self.data)
        made = embed(store, index, self.backbone, threads=4, cache=cache, **options)
        return made, store.reads


@pytest.fixture
def cached(tmp_path: Path, pooling: Backbone) -> Cached:
    """A data set with an empty cache."""
    return Cached(tmp_path, pooling)


def test_a_second_run_reads_no_image(cached: Cached) -> None:
    """What did not change is neither read nor embedded, unreadable files are remembered too."""
    (cached.data / "cyan" / "001.jpg").write_bytes(b"no image at all")
    os.utime(cached.data / "cyan" / "001.jpg", (1e9, 1e9))
    cold, reads = cached.embed()
    assert (len(reads), cold.hits) == (120, 0)
    warm, reads = cached.embed()
    assert (reads, warm.hits) == ([], 119)
    assert warm.features.tobytes() == cold.features.tobytes()
    assert (warm.index, warm.digests) == (cold.index, cold.digests)
    assert (warm.skipped, warm.checksums) == (cold.skipped, cold.checksums)
    assert len(warm.checksums) == 120


def test_only_what_changed_is_embedded_again(cached: Cached) -> None:
    """A new image is embedded, a renamed one read and not embedded, a deleted one forgotten."""
    cached.embed()
    (cached.data / "cyan" / "005.jpg").write_bytes((cached.data / "cyan" / "006.jpg").read_bytes())
    (cached.data / "magenta" / "007.jpg").rename(cached.data / "magenta" / "renamed.jpg")
    (cached.data / "yellow" / "008.jpg").unlink()
    (cached.data / "yellow" / "new.jpg").write_bytes(jpeg(COLOURS["yellow"], seed=77))
    made, reads = cached.embed()
    assert sorted(reads) == ["cyan/005.jpg", "magenta/renamed.jpg", "yellow/new.jpg"]
    assert made.hits == 119
    fresh = embed(LocalStore(cached.data), made.index, cached.backbone, threads=4)
    assert made.features.tobytes() == fresh.features.tobytes()
    assert (made.digests, made.checksums) == (fresh.digests, fresh.checksums)


def test_a_damaged_shard_is_computed_again_and_replaced(cached: Cached) -> None:
    """No bit of a shard is believed that is not as it was written, and the next run is warm."""
    cold, _ = cached.embed()
    (rows,) = cached.store.root.rglob("*.rows")
    data = bytearray(rows.read_bytes())
    data[1000] ^= 1
    rows.write_bytes(data)
    made, reads = cached.embed()
    assert (len(reads), made.hits) == (120, 0)
    assert made.features.tobytes() == cold.features.tobytes()
    again, reads = cached.embed()
    assert (reads, again.hits) == ([], 120)
    assert again.features.tobytes() == cold.features.tobytes()


def test_what_was_embedded_before_an_outage_is_kept(cached: Cached) -> None:
    """A run that fails in the middle leaves its embeddings; the next one does the others."""
    with pytest.raises(UnavailableError, match="out"):
        cached.embed(lasts=100, batch_size=8)
    made, reads = cached.embed(batch_size=8)
    assert 60 <= made.hits == 120 - len(reads)
    assert made.features.tobytes() == cached.embed()[0].features.tobytes()


def test_a_file_that_was_just_written_is_read_again(cached: Cached) -> None:
    """It may change within one tick of the file system's clock: its content tells, not its time."""
    fresh = cached.data / "cyan" / "000.jpg"
    fresh.touch()
    cached.embed()
    made, reads = cached.embed()
    assert (reads, made.hits) == (["cyan/000.jpg"], 120)


def test_float16_is_the_same_cold_and_warm(cached: Cached) -> None:
    """Rows are rounded before they are used, not only where they are stored."""
    cold, _ = cached.embed(dtype="float16")
    warm, reads = cached.embed(dtype="float16")
    assert reads == []
    assert cold.features.dtype == np.float32
    assert np.array_equal(cold.features, cold.features.astype(np.float16))
    assert warm.features.tobytes() == cold.features.tobytes()


def test_features_beyond_float16_are_refused(tmp_path: Path, colours: Path) -> None:
    """Infinity would be trained on otherwise."""
    folder = write_pooling(tmp_path / "large", shape_output=lambda features: features * 1e6)
    large = load_backbone(str(folder), cache_dir=tmp_path / "cache")
    with pytest.raises(ConfigError, match="float16"):
        embed(LocalStore(colours), index_of(colours), large, threads=4, dtype="float16")


def test_a_full_disk_is_told_before_the_work(colours: Path, pooling: Backbone) -> None:
    """Room for the embeddings is taken first; without it the error says how much it needs."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(ConfigError, match="MiB of embeddings"):
            embed(LocalStore(colours), index_of(colours), pooling, threads=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
