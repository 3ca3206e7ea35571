"""The workflows in ci/, read."""

from __future__ import annotations

from typing import Any

import yaml
from conftest import ROOT

CI = ROOT / "ci"


def load(name: str) -> Any:
    """Give the one document of a file."""
    return yaml.safe_load((CI / name).read_text())


def documents(name: str) -> list[dict[str, Any]]:
    """Give all documents of a file."""
    return list(yaml.safe_load_all((CI / name).read_text()))


GITHUB, GITLAB, CLOUD_BUILD = (
    load(name) for name in ("github-actions.yml", "gitlab-ci.yml", "cloudbuild.yaml")
)
ARGO = {item["kind"]: item for item in documents("argo-workflow.yaml")}
EVENTS = {item["kind"]: item for item in documents("argo-events.yaml")}
