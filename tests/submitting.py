"""What the tests of `submit` share: overlays of tiny containers, and what came of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.cli import main

Object = dict[str, Any]
Captured = pytest.CaptureFixture[str]

# The rules of k8s/base, as far as a shell can break them.
POLICY = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": "regraft", "operator": "In", "values": [1, 2, 3, 4, 5, 126, 127],
            },
        },
        {
            "action": "Count",
            "onExitCodes": {"containerName": "regraft", "operator": "In", "values": [138, 143]},
        },
    ]
}  # fmt: skip


def overlay(folder: Path, script: str = "", *, others: tuple[Object, ...] = (), **spec: Any) -> str:
    """Write a Job whose container runs a shell script, and other objects; gives the file's name.

    Keywords are fields of the Job's spec, and `container` those of its container.
    """
    container = {
        "name": "regraft", "image": "local/sh", "command": ["sh", "-c", script],
        "terminationMessagePolicy": "FallbackToLogsOnError", **spec.pop("container", {}),
    }  # fmt: skip
    pod = {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": [container],
    }  # fmt: skip
    job = {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"},
        "spec": {"backoffLimit": 2, "podFailurePolicy": POLICY, "template": {"spec": pod}, **spec},
    }  # fmt: skip
    file = folder / "overlay.yaml"
    file.write_text(yaml.safe_dump_all([*others, job]))
    return str(file)


def leave(result: Object, code: int = 0) -> str:
    """Give the script of a container that leaves a result and an exit code."""
    return f"echo '{json.dumps(result)}' >/dev/termination-log; exit {code}"


def config_map(**data: str) -> Object:
    """Give a ConfigMap called `options`."""
    return {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "options"}, "data": data,
    }  # fmt: skip


class Done:
    """What a command left: its exit code, what it said, and the result if there is one."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.lines = [line for line in err.splitlines() if line]

    @property
    def result(self) -> Object:
        """Read the last line of stdout."""
        found: Object = json.loads(self.out.splitlines()[-1])
        return found

    @property
    def error(self) -> Object:
        """Read the last line of the log."""
        found: Object = json.loads(self.lines[-1])
        return found

    def told(self, words: str) -> int:
        """Count the lines of the log that have these words."""
        return sum(words in line for line in self.lines)


def submit(capsys: Captured, *arguments: str) -> Done:
    """Run `submit` here and give what came of it."""
    capsys.readouterr()
    code = main(["submit", *arguments])
    return Done(code, *capsys.readouterr())
