"""The workflows in ci/: valid, pinned, with few rights; and their page."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ci_files import ARGO, CI, CLOUD_BUILD, EVENTS, GITHUB, GITLAB
from conftest import ROOT
from hera.events import models as events
from hera.workflows import models as workflows
from kubernetes_validate import latest_version, validate

from job.cli import cli
from job.errors import RegraftError

BIN = Path(sys.executable).parent

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
