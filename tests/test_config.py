"""Options are checked before anything happens, and a file's options are the flags'."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from job.config import RunConfig, contains, read_options
from job.errors import ConfigError

VALID: dict[str, Any] = {"data": ("gs://b/data",), "models": "gs://b/models", "name": "flowers"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "7"}, "--name is '7'"),
        ({"name": "../x"}, "--name"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"test_percent": float("nan")}, "--test-percent is nan"),
        ({"validation_percent": 60.0, "test_percent": 40.0}, "less than 10 % to train"),
        ({"l2": -1.0}, "--l2 is -1"),
        ({"data": ()}, "--data is empty"),
        ({"label_map": ("cat",)}, "--label-map is 'cat'"),
        ({"label_map": ("cat=a", "cat=b")}, "names a label twice"),
        ({"group_regex": "(x"}, r"--group-regex '\(x' is no regular expression"),
        ({"models": "gs://b/data/models"}, "lies inside --data"),
        ({"data": ("x", "images"), "models": "images"}, "lies inside --data"),
    ],
)
def test_values_out_of_bounds_are_named(changed: dict[str, Any], message: str) -> None:
    """The message has the flag and the value, the hint what would do."""
    with pytest.raises(ConfigError, match=message) as caught:
        RunConfig(**VALID | changed)
    assert caught.value.hint


def test_every_option_has_help() -> None:
    """A field without help text would be a flag without help."""
    assert all(spec.metadata["help"].endswith(".") for spec in fields(RunConfig))


def test_places_inside_each_other() -> None:
    """Paths are compared as places, not as text."""
    assert contains("data", "data/x/../models")
    assert contains("gs://b", "gs://b/models")
    assert not contains("gs://b/data", "gs://b/data2")
    assert not contains("gs://b/data", "gs://c/data/models")
    assert not contains("/data/models", "/data")


def test_a_file_of_options(tmp_path: Path) -> None:
    """Dashes and underscores are the same; an unknown name is refused with its neighbour."""
    path = tmp_path / "job.yaml"
    path.write_text("batch-size: 8\nfetch_threads: 4\n")
    known = {"batch_size", "fetch_threads", "data", "label_map"}
    assert read_options(path, known, {"data", "label_map"}) == {"batch_size": 8, "fetch_threads": 4}
    path.write_text("data: gs://b\nlabel-map: {kitten: cat, junk: }\n")
    asked = {"data": ["gs://b"], "label_map": ["kitten=cat", "junk="]}
    assert read_options(path, known, {"data", "label_map"}) == asked
    path.write_text("batch-sise: 8\n")
    with pytest.raises(ConfigError, match="batch_sise; did you mean batch_size"):
        read_options(path, known, {"data", "label_map"})
    for text in ("- a list\n", "{", "\x80", "l2: 2026-02-30", "[" * 2000):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=r"job\.yaml"):
            read_options(path, known, {"data", "label_map"})
