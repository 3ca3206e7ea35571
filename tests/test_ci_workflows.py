"""The workflows in ci/: valid, pinned, in step with the job's options; and their shell is run."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from hera.events import models as events
from hera.workflows import models as workflows
from kubernetes_validate import latest_version, validate

from job.cli import cli
from job.errors import RegraftError

CI = ROOT / "ci"
BIN = Path(sys.executable).parent
SETTINGS = {
    "REGRAFT_DATA": "gs://bucket/all images",
    "REGRAFT_MODELS": "gs://bucket/models",
    "REGRAFT_NAME": "flowers",
    "TRAINER_IMAGE": "registry.example.com/regraft:0.1.0-cpu",
}


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

# --- Schemas ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "schema", "key"),
    [
        ("github-actions.yml", "vendor.github-workflows", "timeout-minutes"),
        ("gitlab-ci.yml", "vendor.gitlab-ci", "resource_group"),
        ("cloudbuild.yaml", "vendor.cloudbuild", "allowFailure"),
    ],
)
def test_a_file_fits_its_schema_and_a_misspelt_one_does_not(
    name: str, schema: str, key: str, tmp_path: Path
) -> None:
    """The system's own schema takes the file, and refuses it with one letter less in a key."""
    text = (CI / name).read_text()
    wrong = tmp_path / f"wrong-{name}"
    wrong.write_text(text.replace(f"{key}:", f"{key[:-1]}:", 1))
    assert wrong.read_text() != text
    command = [BIN / "check-jsonschema", "--builtin-schema", schema, "-o", "json", CI / name, wrong]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    report = json.loads(done.stdout)
    assert {Path(e["filename"]).name for e in report["errors"]} == {wrong.name}, report


def known_to(model: Any, item: dict[str, Any]) -> bool:
    """Tell whether a model keeps all of an object: it drops the fields that it does not know."""
    read = model.model_validate(item).model_dump(by_alias=True, exclude_none=True, mode="json")
    kind = {key: item[key] for key in ("apiVersion", "kind")}  # some models have no field for it
    return bool(kind | read == item)


MODELS = {
    "WorkflowTemplate": workflows.WorkflowTemplate,
    "CronWorkflow": workflows.CronWorkflow,
    "Workflow": workflows.Workflow,
    "EventSource": events.EventSource,
    "Sensor": events.Sensor,
}


def objects() -> list[dict[str, Any]]:
    """Give all objects for Argo; what the sensor creates, which no model of it knows, by itself."""
    found = [*ARGO.values(), *copy.deepcopy(list(EVENTS.values()))]
    source = found[-1]["spec"]["triggers"][0]["template"]["k8s"]["source"]
    found.append(source["resource"])
    source["resource"] = {}
    return found


@pytest.mark.parametrize("item", objects(), ids=lambda item: item["kind"])
def test_argo_knows_each_field(item: dict[str, Any]) -> None:
    """Argo's own models, and Kubernetes' schemas, know every field of the objects."""
    if item["kind"] not in MODELS:
        validate(item, latest_version(), strict=True)
        return
    assert known_to(MODELS[item["kind"]], item)
    spec = {**item["spec"], "serviceAcountName": "misspelt"}
    assert not known_to(MODELS[item["kind"]], {**item, "spec": spec})


# --- Rights, versions, limits -------------------------------------------------------------------


def test_actions_are_pinned_and_few() -> None:
    """Each action is GitHub's or Google's own, by its commit, with the version beside it."""
    used = re.findall(r"uses: (.+)", (CI / "github-actions.yml").read_text())
    assert used
    pinned = r"(actions|google-github-actions)/[a-z-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+"
    assert [line for line in used if not re.fullmatch(pinned, line)] == []


def test_nothing_has_a_key_or_more_rights_than_it_needs() -> None:
    """No secret is named anywhere; tokens are asked for by the jobs that need them alone."""
    for path in CI.iterdir():
        assert not re.search(r"secrets\.|_KEY\b|PASSWORD|credentials_json", path.read_text()), path
    assert GITHUB["permissions"] == {}
    for job in GITHUB["jobs"].values():
        assert job["permissions"] == {"contents": "read", "id-token": "write"}
    assert all("id_tokens" not in job for name, job in GITLAB.items() if name != ".regraft")
    assert CLOUD_BUILD["serviceAccount"]
    rules = [ARGO["Role"]["rules"], EVENTS["Role"]["rules"]]
    assert all("*" not in json.dumps(rule) for rule in rules)


def test_one_run_at_a_time_for_a_model() -> None:
    """Each system that can keeps a second run of the same model waiting, and cancels none."""
    assert GITHUB["concurrency"] == {
        "group": "regraft-${{ vars.REGRAFT_NAME }}",
        "cancel-in-progress": False,
    }
    retraining = [job for name, job in GITLAB.items() if name.startswith("regraft-retrain")]
    assert [job["resource_group"] for job in retraining] == ["regraft-$REGRAFT_NAME"] * 2
    template = ARGO["WorkflowTemplate"]["spec"]
    assert template["synchronization"]["mutexes"] == [
        {"name": "regraft-{{workflow.parameters.name}}"}
    ]
    assert ARGO["CronWorkflow"]["spec"]["concurrencyPolicy"] == "Forbid"


def test_what_may_work_the_next_time_is_tried_again() -> None:
    """GitLab and Argo retry after each error that a retry may mend, and after no other."""
    retried = GITLAB[".regraft"]["retry"]["exit_codes"]
    (template,) = (t for t in ARGO["WorkflowTemplate"]["spec"]["templates"] if "container" in t)
    expression = template["retryStrategy"]["expression"]
    pattern = r"lastRetry\.status == 'Error' \|\| asInt\(lastRetry\.exitCode\) >= (\d+)"
    least = re.fullmatch(pattern, expression)
    assert least is not None
    assert template["retryStrategy"]["retryPolicy"] == "Always"  # or `Error` never gets that far
    codes = {error.exit_code for error in all_errors(RegraftError)}
    assert {4, 138, 143} <= codes
    for code in codes | {126, 127, 137}:  # the last: killed, out of memory or with its node
        assert (code in retried) is (code >= int(least[1])) is (code > 127), code


def test_images_are_of_this_version() -> None:
    """Where an image is named it has the version of pyproject.toml, and is that for CPUs."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    named = [
        tag for path in CI.iterdir() for tag in re.findall(r"/regraft:([\w.-]+)", path.read_text())
    ]
    assert set(named) == {f"{version}-cpu"}


def test_names_lead_from_object_to_object() -> None:
    """Sensor, cron and bindings name what is there."""
    template = ARGO["WorkflowTemplate"]["metadata"]["name"]
    (trigger,) = EVENTS["Sensor"]["spec"]["triggers"]
    for spec in (
        ARGO["CronWorkflow"]["spec"]["workflowSpec"],
        trigger["template"]["k8s"]["source"]["resource"]["spec"],
    ):
        assert spec["workflowTemplateRef"]["name"] == template
    (dependency,) = EVENTS["Sensor"]["spec"]["dependencies"]
    assert dependency["eventSourceName"] == EVENTS["EventSource"]["metadata"]["name"]
    assert dependency["eventName"] in EVENTS["EventSource"]["spec"]["pubSub"]


def all_errors(parent: type[RegraftError]) -> Iterator[type[RegraftError]]:
    """Walk the error tree."""
    yield parent
    for child in parent.__subclasses__():
        yield from all_errors(child)


@pytest.mark.parametrize("objects", [ARGO, EVENTS], ids=["workflow", "events"])
def test_accounts_are_bound(objects: dict[str, Any]) -> None:
    """The account that the pods run as is there, and the role is bound to it."""
    account = objects["ServiceAccount"]["metadata"]["name"]
    binding = objects["RoleBinding"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account}]
    assert binding["roleRef"]["name"] == objects["Role"]["metadata"]["name"]
    users = re.findall(r"'serviceAccountName': '([^']+)'", str(list(objects.values())))
    assert set(users) == {account}


# --- Shell, run ---------------------------------------------------------------------------------


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


# --- docs/ci.md ---------------------------------------------------------------------------------

DOCS = (ROOT / "docs/ci.md").read_text()


def test_every_variable_is_an_option() -> None:
    """In ci/ and its page; a misspelt one would end a run with exit code 2."""
    options = {str(param.envvar) for param in cli.commands["run"].params}
    texts = [DOCS, *(path.read_text() for path in CI.iterdir())]
    named = {name for text in texts for name in re.findall(r"REGRAFT_[A-Z_]*[A-Z]", text)}
    assert "REGRAFT_DATA" in named
    assert named - options == set()


def test_the_page_names_what_is_there() -> None:
    """Files, variables that the workflows read, and every exit code that there is."""
    for name in re.findall(r"`(ci/[a-z.-]+|k8s/[a-z/]+)`", DOCS):
        assert (ROOT / name).exists(), name
    for path in CI.iterdir():
        assert f"ci/{path.name}" in DOCS
    headings = {line.lower().replace(" ", "-") for line in re.findall(r"^## (.+)$", DOCS, re.M)}
    links = re.findall(r"\]\(([^):]+)\)", DOCS)
    assert {link[1:] for link in links if link.startswith("#")} <= headings
    for link in links:
        assert link.startswith("#") or (ROOT / "docs" / link).exists(), link
    used = set(re.findall(r"vars\.([A-Z_]+)", (CI / "github-actions.yml").read_text()))
    assert {name for name in used if f"`{name}`" not in DOCS} == set()
    rows = {
        int(code) for row in re.findall(r"^\| ([\d, ]+) \|", DOCS, re.M) for code in row.split(",")
    }
    assert rows == {error.exit_code for error in all_errors(RegraftError)} | {0, 130, 137}
