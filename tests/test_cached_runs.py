"""Whole runs cost what changed, and jobs that share the work publish what one would."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from conftest import write_colours
from modules import write_pooling

from job.cli import main


class Job:
    """A data set, and runs over it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.data = write_colours(folder / "data")
        for path in self.data.rglob("*.jpg"):  # so that their times tell them apart
            os.utime(path, (path.stat().st_mtime - 3600,) * 2)
        self.models = folder / "m"
        self.module = write_pooling(folder / "module")

    def run(self, *flags: object, data: object = None, models: object = None) -> dict[str, Any]:
        """Run it in this process; gives the result."""
        self.capsys.readouterr()
        places = ["--data", data or self.data, "--models", models or self.models]
        command = ["run", "--name", "x", "--backbone", self.module, *places, *flags]
        assert main([str(word) for word in command]) == 0
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out.splitlines()[-1])
        return result


@pytest.fixture
def job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Job:
    """A new data set, nothing published."""
    return Job(tmp_path, capsys)


def head(uri: str) -> dict[str, bytes]:
    """Give the bytes of a version's weights."""
    reader = tf.train.load_checkpoint(f"{uri}/variables/variables")
    names = [n for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE")]
    assert len(names) == 2
    return {name: reader.get_tensor(name).tobytes() for name in names}


def test_a_run_embeds_what_changed_and_trains_the_same_weights(job: Job) -> None:
    """Cold, warm, changed, unchanged and elsewhere: the cache says what was done."""
    cold = job.run()
    assert cold["cache"] == {"hits": 0, "misses": 120, "saved": 120}
    warm = job.run("--force")
    assert warm["cache"] == {"hits": 120, "misses": 0, "saved": 0}
    assert head(warm["uri"]) == head(cold["uri"])
    assert job.run()["status"] == "unchanged"
    (job.data / "cyan" / "000.jpg").write_bytes((job.data / "cyan" / "001.jpg").read_bytes() + b" ")
    assert job.run()["cache"] == {"hits": 119, "misses": 1, "saved": 1}
    other = job.run("--exact-decode", "--cache", job.data.parent / "elsewhere")
    assert other["cache"] == {"hits": 0, "misses": 120, "saved": 120}


def test_a_bucket_is_read_once(job: Job, bucket: str, upload: Callable[[Path, str], str]) -> None:
    """Cache and data in a bucket: the second job finds all of it, an unchanged one all the more."""
    places = {"data": upload(job.data, "data"), "models": f"gs://{bucket}/m"}
    assert job.run(**places)["cache"] == {"hits": 0, "misses": 120, "saved": 120}
    assert job.run("--force", **places)["cache"] == {"hits": 120, "misses": 0, "saved": 0}
    assert job.run(**places)["status"] == "unchanged"


def test_two_jobs_publish_what_one_would(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each embeds its share; the second publishes nothing, the first what one job alone would.

    That one has no cache, and leaves the model alone in its folder.
    """
    alone = job.run("--cache", "off", models=job.models.parent / "alone")
    assert alone["cache"] == {"hits": 0, "misses": 120, "saved": 0}
    assert [path.name for path in (job.models.parent / "alone").iterdir()] == ["x"]
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    second = job.run("--workers-count", 2)
    assert (second["status"], second["version"]) == ("embedded", None)
    assert 30 < second["cache"]["misses"] < 90
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    first = job.run("--workers-count", 2)
    assert first["status"] == "published"
    assert first["cache"]["misses"] == 120 - second["cache"]["misses"]
    assert head(first["uri"]) == head(alone["uri"])
