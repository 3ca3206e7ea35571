"""The scripts and containers of the workflows in ci/, run as each CI system does.

A stand-in for the job reads the options by the job's own parser, and ends as it is told.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ci_files import ARGO, CLOUD_BUILD, GITHUB, GITLAB
from conftest import ROOT

BIN = Path(sys.executable).parent
SETTINGS = {
    "REGRAFT_DATA": "gs://bucket/all images",
    "REGRAFT_MODELS": "gs://bucket/models",
    "REGRAFT_NAME": "flowers",
    "TRAINER_IMAGE": "registry.example.com/regraft:0.1.0-cpu",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A folder where scripts run, with a stand-in for the job on the path."""

    path: Path

    def local(self, text: str) -> str:
        """Put this folder in the place of those that a container has for itself."""
        return re.sub(r"/(tmp|workspace)\b", str(self.path), text)

    def run(
        self, command: list[str], endings: dict[str, Any], env: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with the stand-in, which ends as `endings` says."""
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=self.path,
            env={"PATH": f"{self.path}/bin:/usr/bin:/bin", "ENDINGS": json.dumps(endings), **env},
        )  # fmt: skip

    def shell(
        self, script: str, endings: dict[str, Any], env: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run a script as CI systems do, stopping at the first failure."""
        return self.run(["sh", "-ec", self.local(script)], endings, env)

    def read(self, name: str) -> str:
        """Give what a file has, empty where it is not there."""
        path = self.path / name
        return path.read_text() if path.exists() else ""

    def case(self) -> str:
        """Give what the JUnit file says of the run: passed, skipped, failure or error."""
        (case,) = ET.fromstring(self.read("junit.xml")).iter("testcase")  # noqa: S314 - ours
        return next((child.tag for child in case if child.tag != "system-out"), "passed")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A folder whose bin/ has `python`, which reads the job's options, and a `gcloud`."""
    (tmp_path / "bin").mkdir()
    standin = f'[ "$1" = -c ] || set -- "{ROOT}/tests/ci_standin.py" "$@"'
    programs = {"python": f'{standin}\nexec "{sys.executable}" "$@"', "gcloud": 'echo "$@"'}
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return Place(tmp_path)


def holds(condition: str, values: dict[str, str]) -> bool:
    """Evaluate `name == 'text'` or `name != 'text'`, as they are in the workflows."""
    left, operator, right = condition.strip("{}= ").split(" ")
    return {"==": True, "!=": False}[operator] is (values[left] == right.strip("'"))


def github(place: Place, endings: dict[str, Any], cluster: str) -> list[Any]:
    """Run the jobs as GitHub does: gives `skipped`, or a finished process, of each run step."""
    done: list[Any] = []
    known = {"vars.GKE_CLUSTER": cluster}
    env = {
        "GITHUB_OUTPUT": f"{place.path}/output",
        "GITHUB_STEP_SUMMARY": f"{place.path}/summary.md",
        "GITHUB_ACTIONS": "true",
        **{key: SETTINGS[key] for key in (*GITHUB["env"], "TRAINER_IMAGE")},
    }
    for job in GITHUB["jobs"].values():
        if not holds(job.get("if", "vars.GKE_CLUSTER != '-'"), known):
            return [*done, "skipped"]
        for step in job["steps"]:
            if "run" in step and holds(step.get("if", "vars.GKE_CLUSTER != '-'"), known):
                done.append(place.shell(step["run"], endings, env))
                if done[-1].returncode:
                    return done
        name, _, line = place.read("output").partition("=")
        assert GITHUB["jobs"]["plan"]["outputs"] == {name: f"${{{{ steps.plan.outputs.{name} }}}}"}
        known["fromJSON(needs.plan.outputs.result).status"] = json.loads(line)["status"]
    return done


@pytest.mark.parametrize("cluster", ["", "a-cluster"])
def test_github_publishes(place: Place, cluster: str) -> None:
    """Plan, then the run on the runner or the cluster; files that are uploaded, a summary."""
    command = "submit" if cluster else "run"
    planned, ran = github(place, {"plan": 0, command: 0}, cluster)
    assert (planned.returncode, ran.returncode) == (0, 0), planned.stderr + ran.stderr
    assert "version 17 is published" in place.read("summary.md")
    assert "::notice title=flowers%3A version 17 is published" in ran.stderr
    upload = GITHUB["jobs"]["retrain"]["steps"][-1]
    assert upload["if"] == "${{ !cancelled() }}"  # a red run keeps its files too
    assert all(place.read(name) for name in upload["with"]["path"].split())
    assert place.case() == "passed"


def test_github_skips_what_is_unchanged(place: Place) -> None:
    """The second job is skipped, which is green, and the page says why."""
    planned, retrained = github(place, {"plan": "unchanged"}, "")
    assert (planned.returncode, retrained) == (0, "skipped")
    assert "unchanged, version 17 stays in service" in place.read("summary.md")


@pytest.mark.parametrize(("cluster", "code"), [("", 4), ("a-cluster", 4), ("", 138)])
def test_github_is_red_with_the_reason(place: Place, cluster: str, code: int) -> None:
    """On the page, in the summary and in the cases; refused by the gate is no infrastructure."""
    *_, ran = github(place, {"plan": 0, "submit" if cluster else "run": code}, cluster)
    assert ran.returncode == code
    assert "::error title=flowers" in ran.stderr
    assert "this is the reason. this is what to do" in ran.stderr
    assert "this is the reason" in place.read("summary.md")
    assert place.case() == ("failure" if code == 4 else "error")


def test_github_stops_at_a_plan_that_fails(place: Place) -> None:
    """Bad data costs no training."""
    (planned,) = github(place, {"plan": 3}, "")
    assert planned.returncode == 3


def gitlab(place: Place, job: str, endings: dict[str, Any]) -> int:
    """Run the scripts of a job as GitLab does, in one shell; gives its exit code."""
    script = "\n".join([*GITLAB[".regraft"]["before_script"], *GITLAB[job]["script"]])
    env = {**SETTINGS, "GOOGLE_ID_TOKEN": "a token", "KUBE_CONTEXT": "group/project:agent"}
    done = place.shell(script, endings, env)
    assert place.read("google-id-token") == "a token"
    return done.returncode


@pytest.mark.parametrize(
    ("command", "ending", "code", "case"),
    [
        ("plan", 0, 0, "passed"),
        ("run", "unchanged", 0, "skipped"),
        ("run", 4, 4, "failure"),
        ("run", 138, 138, "error"),
        ("submit", 0, 0, "passed"),
        ("submit", 143, 143, "error"),
    ],
)
def test_gitlab_shows_how_a_job_ended(
    place: Place, command: str, ending: int | str, code: int, case: str
) -> None:
    """Green where it should be; what is retried is what may work the next time; files are kept."""
    jobs = {
        "plan": "regraft-plan",
        "run": "regraft-retrain",
        "submit": "regraft-retrain-on-cluster",
    }
    assert gitlab(place, jobs[command], {command: ending}) == code
    assert place.case() == case
    shared = GITLAB[".regraft"]
    assert GITLAB[jobs[command]]["extends"] == ".regraft"
    assert shared["artifacts"]["when"] == "always"
    kept = [*shared["artifacts"]["paths"], shared["artifacts"]["reports"]["junit"]]
    assert all(place.read(name) for name in kept)


def test_gitlab_runs_one_of_the_two_ways() -> None:
    """KUBE_CONTEXT decides, and both are asked by the same triggers as the plan."""
    here, there = GITLAB["regraft-retrain"]["rules"], GITLAB["regraft-retrain-on-cluster"]["rules"]
    assert here[0] == {"if": "$KUBE_CONTEXT", "when": "never"}
    assert there[0] == {"if": "$KUBE_CONTEXT == null", "when": "never"}
    assert here[1:] == there[1:] == GITLAB["regraft-plan"]["rules"]


def cloud_build(place: Place, endings: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Run the steps as Cloud Build does: the step that failed the build, and all that ran."""
    values = {**CLOUD_BUILD["substitutions"], "_NAME": "flowers", "BUILD_ID": "b1"}
    values["_REPORTS"] = "gs://bucket/ci"

    def filled(text: str) -> str:
        return re.sub(r"\$(_?[A-Z_]+)", lambda match: values[match[1]], place.local(text))

    env = dict(filled(line).split("=", 1) for line in CLOUD_BUILD["options"]["env"])
    done: dict[str, Any] = {}
    for step in CLOUD_BUILD["steps"]:
        ours = step["name"] == "$_TRAINER_IMAGE"
        start = step.get("entrypoint") or str(ROOT / "entrypoint.sh")
        assert ours or "entrypoint" in step
        command = [start, *map(filled, step["args"])]
        done[step["id"]] = place.run(command, endings, env)
        if done[step["id"]].returncode and not step.get("allowFailure"):
            return step["id"], done
    return None, done


@pytest.mark.parametrize(
    ("ending", "red", "case"),
    [
        (0, None, "passed"),
        ("unchanged", None, "skipped"),
        (4, "verdict", "failure"),
        (138, "verdict", "error"),
    ],
)
def test_cloud_build_keeps_the_files_of_a_red_build(
    place: Place, ending: int | str, red: str | None, case: str
) -> None:
    """Files are copied before the verdict, which is as red as the run was, with the reason."""
    failed, done = cloud_build(place, {"plan": 0, "run": ending})
    assert failed == red, done["verdict"].stderr
    assert place.case() == case
    copied = done["keep"].stdout.split()
    assert copied[:2] == ["storage", "cp"]
    assert {Path(name).name for name in copied[2:-1]} == {"summary.md", "junit.xml", "result.json"}
    assert copied[-1] == "gs://bucket/ci/b1/"
    assert ("this is the reason" in done["verdict"].stdout) is (red is not None)


def test_cloud_build_is_red_without_a_result(place: Place) -> None:
    """A run that was killed leaves none, and one that cannot be planned is not begun."""
    failed, done = cloud_build(place, {"plan": 0})  # the stand-in knows no ending for `run`
    assert failed == "verdict"
    assert "FileNotFoundError" in done["verdict"].stderr
    assert cloud_build(place, {"plan": 3})[0] == "plan"


def argo(place: Place, command: str, endings: dict[str, Any]) -> int:
    """Run the container of a task as Argo does; gives its exit code."""
    spec = ARGO["WorkflowTemplate"]["spec"]
    container = next(t for t in spec["templates"] if t["name"] == "job")["container"]
    given = {
        f"workflow.parameters.{p['name']}": p["value"] for p in spec["arguments"]["parameters"]
    }
    given |= {"inputs.parameters.command": command, "workflow.parameters.name": "flowers"}
    line = [
        re.sub(r"\{\{(.+?)\}\}", lambda match: given[match[1]], place.local(word))
        for word in [*container["command"], *container["args"]]
    ]
    return place.run(line, endings, {}).returncode


@pytest.mark.parametrize("ending", ["unchanged", 0, 4, 138])
def test_argo_skips_what_is_unchanged(place: Place, ending: int | str) -> None:
    """`unchanged` skips the run, and every run leaves its files."""
    templates = {t["name"]: t for t in ARGO["WorkflowTemplate"]["spec"]["templates"]}
    plan, run = templates["retrain"]["dag"]["tasks"]
    assert run["depends"] == plan["name"]
    assert argo(place, "plan", {"plan": ending if ending == "unchanged" else 0}) == 0
    outputs = templates["job"]["outputs"]
    (result,) = outputs["parameters"]
    status = json.loads(place.read(Path(result["valueFrom"]["path"]).name))["status"]
    query = "jsonpath(tasks.plan.outputs.parameters.result, '$.status')"
    condition = run["when"].replace(query, "STATUS")
    assert holds(condition, {"STATUS": status}) is (ending != "unchanged")
    if ending != "unchanged":
        code = argo(place, "run", {"run": ending})
        assert code == ending
        assert all(place.read(Path(item["path"]).name) for item in outputs["artifacts"])


@pytest.mark.parametrize("system", ["github", "gitlab"])
def test_scripts_are_clean(system: str) -> None:
    """Shellcheck finds nothing in them."""
    scripts = {
        "github": [s["run"] for j in GITHUB["jobs"].values() for s in j["steps"] if "run" in s],
        "gitlab": [
            "\n".join([*GITLAB[".regraft"]["before_script"], *job["script"]])
            for job in GITLAB.values()
            if "script" in job
        ],
    }[system]
    assert scripts
    for script in scripts:
        command = [BIN / "shellcheck", "--shell", "sh", "-"]
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, ""), script
