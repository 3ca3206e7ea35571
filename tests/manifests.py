"""What k8s/ builds, by kubectl itself, and what a pod of it is given, as Kubernetes would do it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from conftest import ROOT

K8S = ROOT / "k8s"
Objects = list[dict[str, Any]]


def folders(kind: str) -> list[str]:
    """Give the names of the overlays or components."""
    return sorted(path.parent.name for path in (K8S / kind).glob("*/kustomization.yaml"))


def below(component: str) -> str:
    """Give what a component is put on."""
    return "serving" if component.startswith("serving") else "base"


def components_of(folder: str) -> set[str]:
    """Give the components of a folder of k8s/ and of all that it is made of."""
    text = yaml.safe_load((K8S / folder / "kustomization.yaml").read_text())
    found = {Path(name).name for name in text.get("components", [])}
    for name in text["resources"]:
        if not name.endswith(".yaml"):
            found |= components_of(os.path.normpath(f"{folder}/{name}"))
    return found


def uses(build: str, component: str) -> bool:
    """Tell whether a component is part of a build."""
    resources, components = BUILDS[build]
    return component in {*components, *(c for name in resources for c in components_of(name))}


# Name of a build: the folders of k8s/ that are its resources, and its components.
BUILDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = (
    {name: ((name,), ()) for name in ("base", "serving")}
    | {f"overlays/{name}": ((f"overlays/{name}",), ()) for name in folders("overlays")}
    | {f"components/{name}": ((below(name),), (name,)) for name in folders("components")}
    | {
        "a queue of GPUs, by night": (
            ("base", "serving"),
            ("gpu", "spot", "workload-identity", "kueue", "indexed", "cronjob", "serving-labels"),
        ),
        "a queue of workers": (("overlays/prod", "serving"), ("kueue", "multi-worker")),
        "workers by night": (("base",), ("multi-worker", "gpu", "spot", "kueue", "cronjob")),
    }
)
# Those that run the job.
JOBS = [name for name, (resources, _) in BUILDS.items() if resources[0] != "serving"]


def kubectl(*arguments: str, cwd: Path = ROOT) -> str:
    """Run kubectl and give what it prints."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    program = shutil.which("kubectl", path=path)
    assert program, "kubectl is not installed; `make test` gets it with requirements-dev.txt"
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=60, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def rendered(build: str) -> Objects:
    """Give the objects of a build; not to be changed."""
    resources, components = BUILDS[build]
    if not components:
        return parsed(kubectl("kustomize", str(K8S / resources[0])))
    return composed({
        "resources": [f"../{name}" for name in resources],
        "components": [f"../components/{name}" for name in components],
    })  # fmt: skip


def composed(kustomization: dict[str, Any]) -> Objects:
    """Build a kustomization as if it were a folder of k8s/."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(shutil.copytree(K8S, Path(temporary) / "k8s"))
        (copy / "build").mkdir()
        (copy / "build" / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return parsed(kubectl("kustomize", str(copy / "build")))


def parsed(text: str) -> Objects:
    """Give the objects in a stream of YAML documents."""
    return [dict(document) for document in yaml.safe_load_all(text)]


def of_kind(objects: Objects, kind: str) -> dict[str, Any]:
    """Give the one object of a kind."""
    (found,) = (item for item in objects if item["kind"] == kind)
    return dict(found)


def job_template(objects: Objects) -> dict[str, Any]:
    """Give the one Job, or what the one CronJob makes: its `metadata` and `spec`."""
    (found,) = (item for item in objects if item["kind"] in ("Job", "CronJob"))
    return dict(found["spec"]["jobTemplate"] if found["kind"] == "CronJob" else found)


def pod_templates(objects: Objects) -> Iterator[dict[str, Any]]:
    """Give the template of every pod: its `metadata` and `spec`."""
    for item in objects:
        if item["kind"] == "Deployment":
            yield item["spec"]["template"]
        elif item["kind"] in ("Job", "CronJob"):
            yield job_template([item])["spec"]["template"]


def job_pod(objects: Objects) -> dict[str, Any]:
    """Give the spec of the pods that run the job."""
    return dict(job_template(objects)["spec"]["template"]["spec"])


def environment(objects: Objects, index: int = 0, job_name: str = "regraft") -> dict[str, str]:
    """Give the variables that Kubernetes gives to a pod of the job."""
    (container,) = job_pod(objects)["containers"]
    index_name = "batch.kubernetes.io/job-completion-index"
    fields = {
        "metadata.labels['batch.kubernetes.io/job-name']": job_name,
        f"metadata.annotations['{index_name}']": str(index),
    }
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        name = source["configMapRef"]["name"]
        (settings,) = (
            item["data"]
            for item in objects
            if item["kind"] == "ConfigMap" and item["metadata"]["name"] == name
        )
        found |= settings
    for variable in container.get("env", []):
        if "valueFrom" in variable:
            found[variable["name"]] = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        else:
            found[variable["name"]] = expanded(variable["value"], found)
    if job_template(objects)["spec"].get("completionMode") == "Indexed":
        found["JOB_COMPLETION_INDEX"] = str(index)
    return found


def expanded(text: str, known: dict[str, str]) -> str:
    """Put known variables in place of $(NAME); one that is unknown stays, $$ stands for $."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[1] is None else known.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", value, text)


def newest_releases(count: int) -> list[str]:
    """Give the newest Kubernetes releases whose schemas the validator carries."""
    schemas = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    found = {
        tuple(int(part) for part in match.groups())
        for path in schemas.iterdir()
        if (match := re.fullmatch(r"v(\d+)\.(\d+)\.(\d+)-local-strict", path.name))
    }
    return [".".join(map(str, release)) for release in sorted(found)[-count:]]
