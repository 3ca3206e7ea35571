"""The result is one line of JSON that fits a termination message, whatever happened."""

from __future__ import annotations

import json

import pytest

from job.errors import ConfigError, Stopped
from job.result import MAX_BYTES, Result


def test_a_small_result_is_whole() -> None:
    """Nothing is cut from what fits."""
    result = Result(status="published", version=5, labels=["a", "b"])
    result.images = {"total": 3, "skipped_names": ["a/1.jpg: empty file"]}
    read = json.loads(result.to_json())
    assert read["labels"] == ["a", "b"]
    assert read["images"]["skipped_names"] == ["a/1.jpg: empty file"]


@pytest.mark.parametrize("names", [60, 5_000])
def test_a_large_result_is_cut_to_size_and_says_so(names: int) -> None:
    """Thousands of labels and skipped images leave a valid object below 4,096 bytes."""
    result = Result(status="published", version=5, uri="gs://b/m/5")
    result.labels = [f"label {number} é" for number in range(names)]
    result.images = {"skipped_names": [f"{n}: {'x' * 200}" for n in range(names)]}
    result.metrics = {"test_recall": {f"label {n}": 0.5 for n in range(names)}}
    line = result.to_json()
    assert len(line.encode()) < MAX_BYTES
    assert "\n" not in line
    assert json.loads(line)["uri"] == "gs://b/m/5"


def test_a_long_list_ends_in_what_is_missing() -> None:
    """The cut is told, not silent."""
    result = Result(labels=[f"label {number:04}" for number in range(300)])
    assert json.loads(result.to_json())["labels"][-1] == "... and 250 more"


def test_failures_carry_status_and_hint() -> None:
    """A known error keeps its hint; SIGTERM is preempted; anything else is called a bug."""
    for error, status in ((ConfigError("x", hint="y"), "failed"), (Stopped("x"), "preempted")):
        result = Result()
        result.fail(error)
        assert result.status == status
        assert result.error is not None
        assert result.error["hint"] == error.hint
    result = Result()
    result.fail(ZeroDivisionError("oops"))
    assert result.error is not None
    assert "bug" in result.error["hint"]
