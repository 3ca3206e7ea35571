"""Embeddings belong to their images, whatever else is in the batch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import write_colours
from modules import write_pooling

from job.backbone import Backbone, load_backbone
from job.dataset import Index, build_index
from job.embed import embed
from job.images import loader
from job.storage import LocalStore


@pytest.fixture(scope="module")
def pooling(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The tiny pooling module, loaded."""
    folder = tmp_path_factory.mktemp("pooling")
    return load_backbone(str(write_pooling(folder / "module")), cache_dir=folder / "cache")


def index_of(folder: Path) -> Index:
    """Index a folder with shares that suit a few images."""
    return build_index(LocalStore(folder), 20, 20)


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
