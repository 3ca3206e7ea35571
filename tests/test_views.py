"""Views stand beside the images they are made of, and are embedded once."""

from __future__ import annotations

import os
import resource
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, jpeg, write_colours
from modules import write_pooling

from job.backbone import Backbone, load_backbone
from job.cache import EmbeddingCache, space_name
from job.dataset import Example, Index, Split
from job.distort import Distortion, view_loader, view_name
from job.embed import Embeddings, embed
from job.errors import ConfigError, UnavailableError
from job.images import loader
from job.index import build_index
from job.lbfgs import fit
from job.sources import folder_rows
from job.storage import Entry, LocalStore
from job.views import embed_views

SOME = Distortion(flip_left_right=True, random_crop=20, random_scale=20, random_brightness=20)


@pytest.fixture(scope="module")
def pooling(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The tiny pooling module, loaded."""
    folder = tmp_path_factory.mktemp("pooling")
    return load_backbone(str(write_pooling(folder / "module")), cache_dir=folder / "cache")


class Job:
    """A data set of squares that have not been touched for an hour, embedded as by a new job."""

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        self.data = write_colours(folder / "data", count=20)
        for path in self.data.rglob("*.jpg"):
            os.utime(path, (path.stat().st_mtime - 3600,) * 2)
        self.store = LocalStore(folder / "cache")
        self.backbone = backbone
        self.cached = True
        self.views: list[Embeddings] = []

    def cache(self, view: str) -> EmbeddingCache | None:
        """Open the part of the cache of a view."""
        if not self.cached:
            return None
        cache = EmbeddingCache(self.store, space_name(view=view), threads=4)
        cache.refresh()
        return cache

    def embed_images(self) -> Embeddings:
        """Embed the data set as it is."""
        store = LocalStore(self.data)
        index = build_index(folder_rows(store), 20, 20)
        return embed(store, index, self.backbone, threads=4, cache=self.cache("whole image"))

    def embed_view(self, index: Index, view: int, distortion: Distortion = SOME) -> Embeddings:
        """Embed a view, and keep what came of it in `views`."""
        opener = partial(view_loader, self.backbone.image_size, distortion, view)
        cache = self.cache(view_name(distortion, view))
        store = LocalStore(self.data)
        made = embed(store, index, self.backbone, threads=4, cache=cache, open_decoder=opener)
        self.views.append(made)
        return made

    def run(self, views: int) -> tuple[np.ndarray, np.ndarray]:
        """Embed all there is to embed; `views` are those of this run."""
        self.views.clear()
        return embed_views(self.embed_images(), views, self.embed_view)

    def hits_and_misses(self) -> list[tuple[int, int]]:
        """Give them for each view of the last run."""
        return [(view.hits, view.misses) for view in self.views]


@pytest.fixture
def job(tmp_path: Path, pooling: Backbone) -> Job:
    """A data set with an empty cache."""
    return Job(tmp_path, pooling)


def test_rows_are_the_images_and_then_their_views(job: Job) -> None:
    """Each row is what the module says of that view of that file, and has the file's class."""
    embeddings = job.embed_images()
    features, classes = embed_views(embeddings, 2, job.embed_view)
    plain, plain_classes = embeddings.side(Split.TRAIN)
    count = len(plain)
    assert features.shape == (3 * count, job.backbone.feature_dim)
    assert features.dtype == np.float32
    assert classes.tolist() == plain_classes.tolist() * 3
    assert classes.dtype == np.int64
    for view in (0, 1, 2):
        size = job.backbone.image_size
        load = view_loader(size, SOME, view) if view else loader(size)
        for row in (0, count // 2, count - 1):
            contents = (job.data / embeddings.index.examples[row].name).read_bytes()
            alone = job.backbone.embed(load(contents)[None]).numpy()[0]
            assert features[view * count + row] == pytest.approx(alone, abs=1e-5)


def test_only_training_images_have_views(job: Job) -> None:
    """What is scored stays as it is, and no view of it is learned from."""
    embeddings = job.embed_images()
    asked: list[Index] = []
    embed_views(embeddings, 1, lambda index, view: asked.append(index) or job.embed_view(index, 1))
    assert asked[0].labels == embeddings.index.labels
    training = [e for e in embeddings.index.examples if e.split is Split.TRAIN]
    assert asked[0].examples == tuple(training)
    assert len(training) < len(embeddings.index.examples)


def test_without_views_the_training_side_is_as_it_was(job: Job) -> None:
    """Nothing is embedded, and nothing copied."""
    embeddings = job.embed_images()
    features, classes = embed_views(embeddings, 0, job.embed_view)
    assert job.views == []
    assert np.shares_memory(features, embeddings.features)
    assert classes.tolist() == embeddings.side(Split.TRAIN)[1].tolist()


def test_a_view_that_changes_nothing_has_the_embeddings_of_the_images(job: Job) -> None:
    """To the bit."""
    features, _ = embed_views(
        job.embed_images(), 1, partial(job.embed_view, distortion=Distortion())
    )
    count = len(features) // 2
    assert features[:count].tobytes() == features[count:].tobytes()


def test_a_second_run_embeds_no_view_again(job: Job) -> None:
    """All come from the cache, with the same bytes; a third view is the only one that is new."""
    cold, _ = job.run(views=2)
    count = len(cold) // 3
    assert job.hits_and_misses() == [(0, count)] * 2
    warm, _ = job.run(views=2)
    assert job.hits_and_misses() == [(count, 0)] * 2
    assert warm.tobytes() == cold.tobytes()
    more, _ = job.run(views=3)
    assert job.hits_and_misses() == [(count, 0), (count, 0), (0, count)]
    assert more[: 3 * count].tobytes() == cold.tobytes()


def test_a_warm_run_builds_no_decoder(job: Job) -> None:
    """Its graph takes longer to trace than all the rest of it."""
    job.run(views=1)
    embeddings = job.embed_images()
    training = replace(embeddings.index, examples=embeddings.index.examples[:5])

    def open_decoder() -> None:
        raise AssertionError("nothing is to be decoded")

    made = embed(
        LocalStore(job.data), training, job.backbone, threads=4,
        cache=job.cache(view_name(SOME, 1)), open_decoder=open_decoder,
    )  # fmt: skip
    assert made.hits == 5


def test_a_renamed_file_is_embedded_no_more(job: Job) -> None:
    """Its views are told by its content, so they are the same under the new name."""
    before, _ = job.run(views=2)
    for path in sorted((job.data / "cyan").iterdir()):
        path.rename(path.with_name(f"{path.name}_nohash_renamed"))  # which keeps its side
    after, _ = job.run(views=2)
    assert [misses for _, misses in job.hits_and_misses()] == [0, 0]
    assert after.tobytes() == before.tobytes()


def test_another_distortion_has_embeddings_of_its_own(job: Job) -> None:
    """A view's place in the cache is that of all that decides its pixels."""
    embeddings = job.embed_images()
    first, _ = embed_views(embeddings, 1, job.embed_view)
    other = replace(SOME, random_brightness=21)
    second, _ = embed_views(embeddings, 1, partial(job.embed_view, distortion=other))
    assert [view.hits for view in job.views] == [0, 0]
    assert not np.array_equal(first, second)


def test_unreadable_images_have_no_views(job: Job) -> None:
    """They were left out before, and all rows still have their class."""
    (job.data / "cyan" / "001.jpg").write_bytes(b"no image at all")
    (job.data / "yellow" / "002.jpg").write_bytes(jpeg(COLOURS["yellow"], 1)[:200])
    embeddings = job.embed_images()
    assert {item.name for item in embeddings.skipped} == {"cyan/001.jpg", "yellow/002.jpg"}
    features, classes = embed_views(embeddings, 2, job.embed_view)
    plain, plain_classes = embeddings.side(Split.TRAIN)
    assert len(features) == 3 * len(plain)
    assert classes.tolist() == plain_classes.tolist() * 3
    assert all(view.skipped == () for view in job.views)


def test_files_that_change_meanwhile_lose_their_views_only(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    """Files replaced, gone and broken keep their own rows; the others' views stay in order."""
    embeddings = job.embed_images()
    job.cached = False
    complete, _ = embed_views(embeddings, 1, job.embed_view)
    names = [example.name for example in embeddings.index.examples]
    (job.data / names[1]).write_bytes(jpeg((0, 0, 0), seed=1))
    (job.data / names[5]).unlink()
    (job.data / names[9]).write_bytes(b"no image at all")
    with caplog.at_level("WARNING", logger="regraft"):
        features, classes = embed_views(embeddings, 1, job.embed_view)
    plain, plain_classes = embeddings.side(Split.TRAIN)
    count = len(plain)
    kept = [row for row in range(count) if row not in (1, 5, 9)]
    assert features[:count].tobytes() == plain.tobytes()
    assert features[count:].tobytes() == complete[count:][kept].tobytes()
    assert classes.tolist() == plain_classes.tolist() + plain_classes[kept].tolist()
    assert [record.fields["view"] for record in caplog.records] == [1]
    assert "3 images changed" in caplog.text


def test_views_in_the_cache_outlast_their_files(job: Job) -> None:
    """What is known of the file that was listed stays true of it, as it does of whole images."""
    embeddings = job.embed_images()
    before, _ = embed_views(embeddings, 1, job.embed_view)
    (job.data / embeddings.index.examples[0].name).unlink()
    after, _ = embed_views(embeddings, 1, job.embed_view)
    assert after.tobytes() == before.tobytes()


def test_an_outage_is_raised(job: Job) -> None:
    """It does not turn into fewer views."""
    embeddings = job.embed_images()

    def out(index: Index, view: int) -> Embeddings:
        raise UnavailableError("the store is out")

    with pytest.raises(UnavailableError):
        embed_views(embeddings, 1, out)


def drawn_embeddings(count: int, width: int) -> Embeddings:
    """Draw embeddings of examples that are all on the training side."""
    features = np.random.default_rng(0).random((count, width), np.float32)
    examples = tuple(
        Example(Entry(f"{row}.jpg", 1, 1, "", 1.0), (row % 2,), Split.TRAIN) for row in range(count)
    )
    digests = tuple(str(row) for row in range(count))
    return Embeddings(Index(("a", "b"), examples), features, features[:, :0], digests, (), {}, 0)


def test_memory_has_no_second_copy_of_the_features(tmp_path: Path) -> None:
    """They go from file to file in blocks; the lists of what they belong to are small."""
    embeddings = drawn_embeddings(30_000, 256)
    tracemalloc.start()
    try:
        features, _ = embed_views(embeddings, 1, lambda index, view: embeddings, scratch=tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert features[30_000:].tobytes() == embeddings.features.tobytes()
    assert peak < embeddings.features.nbytes


def test_no_room_is_told_before_a_view_is_embedded() -> None:
    """The room of all views is taken at once."""
    embeddings = drawn_embeddings(10, 4)
    asked: list[int] = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ConfigError, match="MiB of embeddings"):
            # 160 bytes of features, and as many for each view.
            embed_views(embeddings, 6, lambda index, view: asked.append(view) or embeddings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert asked == []


def test_the_solver_takes_what_comes_out(job: Job) -> None:
    """A head that has learned from views knows the colours of the test images."""
    embeddings = job.embed_images()
    training = embed_views(embeddings, 2, job.embed_view)
    head = fit(training, embeddings.side(Split.VALIDATION), 3, l2=1e-3).head
    features, classes = embeddings.side(Split.TEST)
    assert (head.probabilities(features).argmax(axis=1) == classes).all()
