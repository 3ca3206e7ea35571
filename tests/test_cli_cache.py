"""The cache's commands: what they print, what they remove, what they refuse."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from caches import SPACE, WIDTH, files, fill, shard_names

from job.cli import main
from job.storage import Store, open_store

Captured = pytest.CaptureFixture[str]


@pytest.fixture(params=["local", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A cache of each kind with two shards, of 5 and 3 files."""
    uri = str(tmp_path / "cache")
    if request.param == "gcs":
        uri = f"gs://{request.getfixturevalue('bucket')}/models/.embeddings"
    filled = open_store(uri)
    fill(filled, files(5))
    fill(filled, files(5, 8))
    return filled


def said(capsys: Captured) -> list[dict[str, Any]]:
    """Read stdout, one JSON object a line."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_show_prints_a_line_for_each_space(store: Store, capsys: Captured) -> None:
    """Without a terminal it is JSON."""
    assert main(["cache", "show", "--cache", store.uri]) == 0
    (space,) = said(capsys)
    assert space["space"] == SPACE
    assert (space["shards"], space["rows"]) == (2, 8)
    assert (space["dim"], space["dtype"]) == (WIDTH, "float32")
    assert space["bytes"] == sum(entry.size for entry in store.list())
    assert 1.7e9 < space["oldest"] <= space["newest"]


def test_show_draws_a_table_for_people(store: Store, capsys: Captured) -> None:
    """The name of the space whole, the kind of its rows, and the sum below."""
    assert main(["cache", "show", "--cache", store.uri, "--log-format", "text"]) == 0
    shown = capsys.readouterr().out
    assert SPACE in shown
    assert f"{WIDTH} float32" in shown
    assert "0.000 GB in all" in shown


def test_prune_removes_and_counts(store: Store, capsys: Captured) -> None:
    """Nothing below the limits; everything above them."""
    keep = ["--older-than", "1", "--max-size", "1"]
    assert main(["cache", "prune", "--cache", store.uri, *keep]) == 0
    assert said(capsys) == [{"objects": 0, "bytes": 0}]
    size = sum(entry.size for entry in store.list())
    assert main(["cache", "prune", "--cache", store.uri, "--max-size", "1e-9"]) == 0
    assert said(capsys) == [{"objects": 4, "bytes": size}]
    assert shard_names(store) == []


def test_the_size_is_in_gigabytes(store: Store, capsys: Captured) -> None:
    """1 GB is 1e9 bytes: just as much room as is needed keeps all, a byte less does not."""
    size = sum(entry.size for entry in store.list())
    assert (
        main(["cache", "prune", "--cache", store.uri, "--max-size", str((size + 0.5) / 1e9)]) == 0
    )
    assert said(capsys) == [{"objects": 0, "bytes": 0}]
    assert (
        main(["cache", "prune", "--cache", store.uri, "--max-size", str((size - 0.5) / 1e9)]) == 0
    )
    assert said(capsys)[0]["objects"] == 2


def test_the_age_is_in_days(tmp_path: Path, capsys: Captured) -> None:
    """Shards of three days ago are younger than four and older than two."""
    fill(open_store(str(tmp_path)), files(5))
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (time.time() - 3 * 86400, time.time() - 3 * 86400))
    assert main(["cache", "prune", "--cache", str(tmp_path), "--older-than", "4"]) == 0
    assert said(capsys)[0]["objects"] == 0
    assert main(["cache", "prune", "--cache", str(tmp_path), "--older-than", "2"]) == 0
    assert said(capsys)[0]["objects"] == 2


def test_prune_without_a_limit_is_refused(tmp_path: Path, capsys: Captured) -> None:
    """Nobody means to remove everything by saying nothing."""
    assert main(["cache", "prune", "--cache", str(tmp_path)]) == 2
    assert "--older-than" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--older-than", "-1"], ["--max-size", "-1"]])
def test_limits_below_zero_are_refused(tmp_path: Path, flags: list[str]) -> None:
    """A negative age or size is a slip."""
    assert main(["cache", "prune", "--cache", str(tmp_path), *flags]) == 2


@pytest.mark.parametrize("command", ["show", "prune"])
def test_a_cache_that_is_not_there_is_told(command: str, tmp_path: Path, capsys: Captured) -> None:
    """A misspelt place is not an empty cache."""
    flags = ["--older-than", "1"] if command == "prune" else []
    assert main(["cache", command, "--cache", str(tmp_path / "nope"), *flags]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_options_come_from_the_environment(
    store: Store, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option is a variable too, as for the other commands."""
    monkeypatch.setenv("REGRAFT_CACHE", store.uri)
    monkeypatch.setenv("REGRAFT_OLDER_THAN", "0")
    assert main(["cache", "prune"]) == 0
    assert said(capsys)[0]["objects"] == 4
