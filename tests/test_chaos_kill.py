"""Jobs that are killed leave nothing wrong behind, and what would be wrong is seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import chaos_kill
import chaos_publish
import pytest
from attempts import MOMENTS, NAME, Attempt, Inputs
from caches import SPACE, files
from chaos_kill import Tally, Undisturbed, find_problems, take_result, version_digests

from job.publish import publish
from job.shards import Record, seal
from job.storage import LocalStore

SAVED = files(4)


def store_shard(models: Path, first: int, last: int) -> None:
    """Write a shard with the embeddings of some files, whatever is there already."""
    records = [
        Record(bytes([i]) * 16, bytes.fromhex(f.known.digest), 0, "", f.row)
        for i, f in enumerate(SAVED[first:last])
    ]
    seal(SPACE, "float32", records).write(LocalStore(models / ".embeddings"))


@pytest.fixture
def left(tmp_path: Path) -> tuple[Path, Undisturbed]:
    """A models folder as a good trial leaves it, and what it should have learnt."""
    models, bundle = tmp_path / "models", tmp_path / "bundle"
    chaos_publish.write_bundle(bundle, "one")
    store = LocalStore(models / NAME)
    store.root.mkdir(parents=True)
    version = publish(bundle, store)
    store_shard(models, 0, 2)
    store_shard(models, 2, 4)
    return models, Undisturbed(version_digests(store, version), 1.0, {})


def version_of(models: Path) -> Path:
    """Give the folder of the only version."""
    (version,) = models.glob(f"{NAME}/[0-9]*")
    return version


def add_partial_version(models: Path) -> None:
    """Leave a version without `saved_model.pb` that no cleaning takes for stale."""
    path = models / NAME / "5/labels.txt"
    path.parent.mkdir()
    path.write_text("cyan")
    os.utime(path, (time.time() + 3600,) * 2)


def copy_version(models: Path) -> None:
    """Publish once more what is published."""
    chaos_publish.write_bundle(models.parent / "again", "two")
    publish(models.parent / "again", LocalStore(models / NAME))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (copy_version, "expected one"),
        (copy_version, "has learnt other values"),
        (add_partial_version, "['5'] was not cleaned"),
        (lambda models: (models / NAME / "channels.json").unlink(), "stable is None"),
        (lambda models: (version_of(models) / "labels.txt").write_text("x"), "other bytes"),
        (lambda models: (version_of(models) / "labels.txt").write_text("x"), "other values"),
        (lambda models: (models / NAME / ".x.part").touch(), "['colours/.x.part'] belongs to"),
        (lambda models: (models / ".embeddings/half").touch(), "half'] belongs to nothing"),
        (lambda models: store_shard(models, 1, 3), "2 embeddings are stored twice"),
    ],
)
def test_what_a_trial_leaves_is_judged(
    left: tuple[Path, Undisturbed], damage: Callable[[Path], object], found: str
) -> None:
    """Nothing is wrong with a whole store; each kind of damage to it is named."""
    models, usual = left
    assert list(find_problems(str(models), usual)) == []
    damage(models)
    problems = list(find_problems(str(models), usual))
    assert any(found in problem for problem in problems), problems


def test_a_job_that_fails_or_embeds_again_is_a_problem(tmp_path: Path) -> None:
    """A job's own error is told with its last words; so are embeddings that were not recalled."""
    tally, before = Tally("local", ""), Counter({"a": 1, "b": 1})
    attempt = Attempt(Inputs("data", tmp_path), "models", tmp_path / "room", "--no-such-option")
    (problem,) = take_result(tally, attempt, attempt.wait(), before)
    assert "ended with 2" in problem
    assert "no-such-option" in problem
    for hits, problems in ((2, 0), (1, 1)):
        cache = {"hits": hits, "misses": 3 - hits}
        result = {"status": "published", "cache": cache, "images": {"total": 3}}
        attempt.stdout.write_text(json.dumps(result) + "\n")
        assert len(list(take_result(tally, attempt, 0, before))) == problems
    assert (tally.published, tally.saved, tally.twice) == (2, 4, 1)


def test_the_moment_of_a_kill_is_the_phase_that_began_last(tmp_path: Path) -> None:
    """It is told from the log, whose last line may be half, with other lines between."""
    attempt = Attempt(Inputs("data", tmp_path), "models", tmp_path / "room", "--no-such-option")
    attempt.wait()
    seen = []
    for line in ("noise", '{"message": "index: started"}', '{"message": "embed: started"}',
                 '{"message": "fit: sta', '\n{"message": "publish: done in 0 s"}'):  # fmt: skip
        with attempt.stderr.open("a") as file:
            file.write(line + "\n" * (not line.endswith("sta")))
        seen.append(attempt.moment())
    assert seen == ["start", "index", "embed", "embed", "end"]


def test_killed_jobs() -> None:
    """SIGKILL at random moments on both stores: the job that ends publishes what it should."""
    script = Path(chaos_kill.__file__)
    done = subprocess.run(
        [sys.executable, script, "--short"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line[:1] == "|"]
    figures = {row[0]: [int(cell) for cell in row[1:]] for row in rows[2:]}
    assert figures["jobs killed"] == [4, 4]
    assert [sum(f) for f in zip(*(figures[f"in {m}"] for m in MOMENTS), strict=True)] == [4, 4]
    assert min(figures["versions seen"]) > 0
