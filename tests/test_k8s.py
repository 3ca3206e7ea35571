"""Whatever k8s/ builds is valid, restricted, and in step with the image and the job."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ROOT
from manifests import (
    BUILDS,
    JOBS,
    Objects,
    environment,
    job_pod,
    job_template,
    pod_templates,
    rendered,
)

from job import errors
from job.cli import run
from job.config import RunConfig

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
each_build = pytest.mark.parametrize("build", BUILDS)
each_job = pytest.mark.parametrize("build", JOBS)


def containers(objects: Objects) -> list[dict[str, Any]]:
    """Give the containers of all pods."""
    return [c for pod in pod_templates(objects) for c in pod["spec"]["containers"]]


@each_build
def test_images_are_pinned(build: str) -> None:
    """The job runs the image of this version, with CUDA where it has a GPU; the server a tag."""
    tensorflow = re.search(r"^tensorflow==(\S+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert tensorflow is not None
    for container in containers(rendered(build)):
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        expected = {
            "regraft": f"registry.example.com/regraft:{VERSION}{'' if has_gpu else '-cpu'}",
            # A server that is older than what wrote the model may lack an operation.
            "serving": f"tensorflow/serving:{tensorflow[1]}",
        }
        assert container["image"] == expected[container["name"]]


@each_build
def test_pods_meet_the_restricted_standard(build: str) -> None:
    """No pod asks for a privilege that the `restricted` Pod Security Standard refuses."""
    for pod in pod_templates(rendered(build)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"hostNetwork", "hostPID", "hostIPC", "initContainers"}.isdisjoint(spec)
        kinds = {kind for volume in spec["volumes"] for kind in volume}
        assert kinds <= {"name", "emptyDir", "configMap"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "hostPort" not in str(container.get("ports"))


def action(rules: list[dict[str, Any]], exit_code: int, *, disrupted: bool = False) -> str:
    """Give the action of the first rule that matches, as the Job controller reads them."""
    for rule in rules:
        if disrupted and any(
            condition["type"] == "DisruptionTarget" and condition["status"] == "True"
            for condition in rule.get("onPodConditions", [])
        ):
            return str(rule["action"])
        codes = rule.get("onExitCodes")
        if codes and (exit_code in codes["values"]) == (codes["operator"] == "In"):
            return str(rule["action"])
    return "Count"


def all_errors(parent: type[errors.RegraftError]) -> Iterator[type[errors.RegraftError]]:
    """Walk the error tree."""
    yield parent
    for child in parent.__subclasses__():
        yield from all_errors(child)


@each_job
def test_exit_codes_decide_what_the_cluster_does(build: str) -> None:
    """Permanent errors fail the Job at once, retryable ones count, a disruption costs nothing."""
    spec = job_template(rendered(build))["spec"]
    rules = spec["podFailurePolicy"]["rules"]
    for error in all_errors(errors.RegraftError):
        expected = "FailJob" if error.exit_code < 128 else "Count"
        assert action(rules, error.exit_code) == expected, error
        assert action(rules, error.exit_code, disrupted=True) == "Ignore", error
    assert action(rules, 137) == "Count"  # killed by the kernel, out of memory perhaps
    for values in (rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule):
        assert values == sorted(set(values))
        assert 0 not in values
    # A failure policy is for pods that are never restarted in place.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    names = {container["name"] for container in spec["template"]["spec"]["containers"]}
    assert {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule} == (
        names
    )


@each_job
def test_the_settings_are_a_configuration(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pods are given is read by `run` and contradicts nothing."""
    objects = rendered(build)
    for index in range(job_template(objects)["spec"]["completions"]):
        for name, value in environment(objects, index).items():
            monkeypatch.setenv(name, value)
        options = run.make_context("run", []).params
        assert options.pop("log_format") == "json"
        config = RunConfig(**options)
        mounts = job_pod(objects)["containers"][0]["volumeMounts"]
        assert str(config.work_dir) in {mount["mountPath"] for mount in mounts}


@each_job
def test_a_pod_has_the_time_to_stop(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is gone before the kubelet kills it, and tells of a stall before its deadline."""
    objects = rendered(build)
    for name, value in environment(objects).items():
        monkeypatch.setenv(name, value)
    options = run.make_context("run", []).params
    assert options["stop_timeout"] + 3 < job_pod(objects)["terminationGracePeriodSeconds"]
    spec = job_template(objects)["spec"]
    assert options["stall_timeout"] < spec["activeDeadlineSeconds"]
    assert options["storage_deadline"] < spec["activeDeadlineSeconds"]
    # Whoever waits for it, or asks for its log, still finds it.
    assert spec["ttlSecondsAfterFinished"] >= 3600


def test_every_variable_is_an_option() -> None:
    """Each REGRAFT_ variable in k8s/ sets an option of `run`: a misspelt one would end the job."""
    names = {
        name
        for path in (ROOT / "k8s").rglob("*.yaml")
        for name in re.findall(r"REGRAFT_[A-Z0-9_]+", path.read_text())
    }
    command = [sys.executable, "-m", "job", "run", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    options = set(re.findall(r"--[a-z][a-z0-9-]*", shown.stdout))
    assert "REGRAFT_DATA" in names
    wanted = {"--" + name.removeprefix("REGRAFT_").lower().replace("_", "-") for name in names}
    assert wanted - options == set()


@each_job
def test_image_and_manifest_agree(build: str) -> None:
    """The pod runs as the image's user and mounts a volume on its only writable folder."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    spec = job_pod(rendered(build))
    user, group = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)[-1]
    context = spec["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    workdir = re.findall(r"^WORKDIR (.+)$", dockerfile, re.MULTILINE)[-1]
    mounted = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert {workdir, "/tmp"} == mounted  # noqa: S108
