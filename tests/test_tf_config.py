"""$TF_CONFIG says which of several workers this is, or is refused with what it should look like."""

from __future__ import annotations

import json

import pytest

from job.cluster import TF_CONFIG, Cluster, find_cluster
from job.config import RunConfig
from job.errors import ConfigError
from job.workers import find_place, trains_together

TWO = {"worker": ["a:1", "b:2"]}


def told(monkeypatch: pytest.MonkeyPatch, cluster: object, kind: str, index: int) -> None:
    """Set the variable as TensorFlow's launchers do."""
    task = {"type": kind, "index": index}
    monkeypatch.setenv(TF_CONFIG, json.dumps({"cluster": cluster, "task": task}))


@pytest.mark.parametrize(
    ("cluster", "kind", "index", "expected"),
    [
        (TWO, "worker", 1, Cluster(("a:1", "b:2"), 1)),
        ({"chief": ["c:3"], **TWO}, "chief", 0, Cluster(("c:3", "a:1", "b:2"), 0)),
        ({"chief": ["c:3"], **TWO}, "worker", 1, Cluster(("c:3", "a:1", "b:2"), 2)),
        ({"worker": ["a:1"]}, "worker", 0, None),
        ({}, "worker", 0, None),
    ],
)
def test_the_place_among_the_workers(
    cluster: object, kind: str, index: int, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chief comes before the workers; one process alone is no cluster."""
    told(monkeypatch, cluster, kind, index)
    assert find_cluster() == expected


@pytest.mark.parametrize("text", ["", "  ", "{}"])
def test_without_one_the_process_is_alone(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset, empty and `{}` all mean that."""
    monkeypatch.setenv(TF_CONFIG, text)
    assert find_cluster() is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no such object"),
        ("[]", "no such object"),
        ('{"cluster": {"worker": 3}}', "no such object"),
        ('{"cluster": {"worker": ["a:1", "b:2"], "ps": ["c:3"]}}', "it has ps"),
        ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"index": 2}}', "worker 2, is not in"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief"}}', "chief 0, is not in"),
    ],
)
def test_what_is_no_cluster_is_refused(
    text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint has an example of what is expected."""
    monkeypatch.setenv(TF_CONFIG, text)
    with pytest.raises(ConfigError, match=words) as caught:
        find_cluster()
    assert '{"cluster": {"worker": ["host:port"' in caught.value.hint


def config(**options: object) -> RunConfig:
    """Give a configuration with these options."""
    return RunConfig(data=("d",), models="m", name="x", **options)  # type: ignore[arg-type]


def test_workers_share_the_embedding_and_perhaps_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their number is the cluster's; only fine-tuning is done together."""
    told(monkeypatch, TWO, "worker", 1)
    assert find_place(config()) == find_place(config(solver="finetune")) == (1, 2)
    assert trains_together(config(solver="finetune"))
    assert not trains_together(config())
    assert find_place(config(solver="finetune", cache="off")) == (1, 2)
    with pytest.raises(ConfigError, match="--cache is off"):
        find_place(config(cache="off"))
    with pytest.raises(ConfigError, match="tells of 2 workers"):
        find_place(config(workers_count=3))
    monkeypatch.delenv(TF_CONFIG)
    assert not trains_together(config(solver="finetune"))
    assert find_place(config(workers_count=3, workers_index=2)) == (2, 3)
