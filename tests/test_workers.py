"""Jobs that share the work of embedding do each image once, and need nothing from each other."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from attempts import Attempt, Inputs, saved_embeddings, small_steps, write_module
from conftest import write_colours
from modules import write_pooling

from job.backbone import load_backbone
from job.cache import EmbeddingCache, space_name
from job.config import RunConfig
from job.dataset import Index
from job.embed import embed
from job.errors import ConfigError
from job.index import build_index
from job.sources import folder_rows
from job.storage import LocalStore
from job.workers import COMPLETION_INDEX, share, wait_for_others, worker_index


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Squares that have not been touched for an hour."""
    folder = write_colours(tmp_path / "data")
    for path in folder.rglob("*.jpg"):
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    return folder


def index_of(folder: Path) -> Index:
    """Index a folder with shares that suit a few images."""
    return build_index(folder_rows(LocalStore(folder)), 20, 20)


def config(**options: object) -> RunConfig:
    """Give a configuration with these options."""
    return RunConfig(data=("d",), models="m", name="x", **options)  # type: ignore[arg-type]


def test_every_image_is_one_workers(data: Path) -> None:
    """The shares are disjoint, complete and about the same; a new image moves no other."""
    index = index_of(data)
    shares = [share(index, worker, 3) for worker in range(3)]
    names = [example.name for part in shares for example in part.examples]
    assert sorted(names) == sorted(example.name for example in index.examples)
    assert all(25 <= len(part.examples) <= 55 for part in shares)
    (data / "cyan" / "000.jpg").unlink()
    fewer = share(index_of(data), 1, 3)
    assert fewer.examples == tuple(e for e in shares[1].examples if e.name != "cyan/000.jpg")


def test_the_first_worker_waits_for_the_embeddings_of_the_others(
    data: Path, tmp_path: Path
) -> None:
    """What another process puts into the cache meanwhile ends the wait, and is not done again."""
    backbone = load_backbone(str(write_pooling(tmp_path / "module")), cache_dir=tmp_path)
    index = index_of(data)

    def open_cache() -> EmbeddingCache:
        cache = EmbeddingCache(LocalStore(tmp_path / "cache"), space_name(of="tests"))
        cache.refresh()
        return cache

    def work(worker: int) -> None:
        part = share(index, worker, 2)
        embed(LocalStore(data), part, backbone, threads=4, cache=open_cache())

    work(0)
    cache, seen = open_cache(), []
    other = threading.Thread(target=lambda: (time.sleep(0.5), work(1)))
    other.start()
    wait_for_others(cache, index, timeout=60, advance=seen.append)
    other.join()
    assert sum(seen) == len(index.examples)
    assert embed(LocalStore(data), index, backbone, threads=4, cache=cache).hits == 120


def test_a_worker_that_never_comes_is_not_waited_for(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After the time-out the first one goes on, and the log says with how many."""
    cache = EmbeddingCache(LocalStore(tmp_path / "cache"), space_name(of="tests"))
    with caplog.at_level("WARNING", logger="regraft"):
        wait_for_others(cache, index_of(data), timeout=0.1, advance=lambda count: None)
    assert [record.fields["missing"] for record in caplog.records] == [120]


def test_the_pod_of_an_indexed_job_knows_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag beats Kubernetes' variable; a number beyond the count, or none, is exit 2."""
    monkeypatch.setenv(COMPLETION_INDEX, "2")
    assert worker_index(config(workers_count=3)) == 2
    assert worker_index(config(workers_count=3, workers_index=1)) == 1
    assert worker_index(config()) == 0
    with pytest.raises(ConfigError, match="below 2"):
        worker_index(config(workers_count=2))
    monkeypatch.delenv(COMPLETION_INDEX)
    with pytest.raises(ConfigError, match=COMPLETION_INDEX):
        worker_index(config(workers_count=2))
    with pytest.raises(ConfigError, match="of 2 jobs"):
        config(workers_count=2, workers_index=2)
    with pytest.raises(ConfigError, match="--cache is off"):
        config(workers_count=2, cache="off")


def test_a_share_that_is_killed_costs_what_was_not_saved(tmp_path: Path) -> None:
    """Of two jobs one is killed while it embeds: every image is embedded once, but for those."""
    squares = write_colours(tmp_path / "squares", 600)  # no picture is there twice
    inputs = Inputs(str(squares), write_module("pooling", tmp_path))
    models = str(tmp_path / "models")
    options = (*small_steps(inputs), "--workers-count", "2", "--workers-index")
    killed = Attempt(inputs, models, tmp_path / "killed", *options, "1")
    # Looked at, not read: the job replaces an index while it goes on.
    while not list(Path(models).glob(".embeddings/*/*.index")):
        assert killed.wait(0.01) is None, killed.last_words()
    killed.kill()
    saved = len(saved_embeddings(models))
    assert saved > 0
    jobs = [Attempt(inputs, models, tmp_path / worker, *options, worker) for worker in ("0", "1")]
    assert [job.wait() for job in jobs] == [0, 0], [job.last_words() for job in jobs]
    chief, other = (job.result() for job in jobs)
    assert (chief["status"], other["status"]) == ("published", "embedded")
    assert other["cache"]["hits"] == saved
    assert other["cache"]["misses"] > 0  # it was in the middle
    embedded = saved_embeddings(models)
    assert max(embedded.values()) == 1
    new = chief["cache"]["saved"] + other["cache"]["saved"]
    assert saved + new == len(embedded)
