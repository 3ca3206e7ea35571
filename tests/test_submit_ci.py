"""What `submit` leaves for the CI system that it runs in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kube_objects import KubeApi
from submitting import Captured, config_map, leave, overlay, submit

FLOWERS = config_map(REGRAFT_NAME="flowers")
OPTIONS = {"envFrom": [{"configMapRef": {"name": "options"}}]}


@pytest.mark.parametrize(
    ("result", "code", "said", "case"),
    [
        ({"status": "published", "version": 17}, 0, "version 17 is published", "<system-out>"),
        ({"status": "unchanged", "version": 17}, 0, "unchanged, version 17", "<skipped"),
        (
            {"status": "rejected", "error": {"type": "GateRejected", "message": "worse"}},
            4, "rejected by the gate\n\nworse", "<failure",
        ),
    ],
)  # fmt: skip
def test_summary_cases_and_result_are_on_this_side(
    result: dict[str, object], code: int, said: str, case: str,
    capsys: Captured, tmp_path: Path, kube: KubeApi, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By the result that the pod left, under the name of the model; the exit code is the pod's."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    cases, copy = tmp_path / "junit.xml", tmp_path / "result.json"
    job = overlay(tmp_path, leave(result, code), others=(FLOWERS,), container=OPTIONS)
    done = submit(capsys, job, "--junit-file", str(cases), "--result-file", str(copy))
    assert done.code == code
    assert f"## flowers: {said}" in (tmp_path / "summary.md").read_text()
    assert case in cases.read_text()
    assert copy.read_text() == done.out.splitlines()[-1] + "\n"


def test_what_is_not_even_sent_is_told_as_well(capsys: Captured, tmp_path: Path) -> None:
    """An overlay that is not there is an error in the cases."""
    cases = tmp_path / "junit.xml"
    done = submit(
        capsys, str(tmp_path / "none"), "--junit-file", str(cases), "--", "--name", "roses"
    )
    assert done.code == 2
    assert 'testsuite name="roses" tests="1" failures="0" errors="1"' in cases.read_text()
    assert json.loads(done.out)["status"] == "failed"
