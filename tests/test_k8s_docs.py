"""What docs/kubernetes.md shows works as it stands there."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import yaml
from conftest import ROOT
from manifests import (
    composed,
    environment,
    folders,
    job_pod,
    job_template,
    kubectl,
    newest_releases,
    parsed,
)
from test_k8s_schema import problem

from job.cli import run
from job.config import RunConfig

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
COMMANDS = re.findall(r"^    (kubectl kustomize [^|#\n]+)", PAGE, re.M)
# The versioned base of the page is this one.
OVERLAYS = [
    re.sub(r"https://\S+//k8s/(\S+?)\?ref=\S+", r"../\1", block)
    for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_build(command: str) -> None:
    """Each `kubectl kustomize` line of the page gives objects."""
    _, *arguments = shlex.split(command)
    assert parsed(kubectl(*arguments))


@pytest.mark.parametrize("text", OVERLAYS)
def test_overlays_build(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each overlay of the page is valid, and gives the job a configuration."""
    objects = composed(yaml.safe_load(text))
    for item in objects:
        assert not problem(newest_releases(1)[0], json.dumps(item, sort_keys=True))
    (container,) = job_pod(objects)["containers"]
    # A variable of the page for the credentials is no option of the job.
    for name, value in environment(objects).items():
        monkeypatch.setenv(name, value)
    options = run.make_context("run", []).params
    options.pop("log_format")
    config = RunConfig(**options)
    count = job_template(objects)["spec"]["completions"]
    assert config.workers_count in (1, count)
    # What the page sets is what the pod gets.
    for name, value in re.findall(r"(REGRAFT_[A-Z_]+)=(\S+)", text):
        assert environment(objects)[name] == value
    for image in re.findall(r"newName: (\S+)", text):
        assert re.fullmatch(rf"{image}:[0-9.]+", container["image"])


def test_the_page_has_every_part() -> None:
    """Each overlay and component has its row, and no row is of one that is gone."""
    rows = set(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.M))
    assert rows == {*folders("overlays"), *folders("components")}
    assert len(COMMANDS) >= 3
    assert len(OVERLAYS) >= 4
