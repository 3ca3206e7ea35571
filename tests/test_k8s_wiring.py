"""The parts of a build find each other, and each component does what it says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from manifests import (
    BUILDS,
    Objects,
    composed,
    environment,
    folders,
    job_pod,
    job_template,
    of_kind,
    pod_templates,
    rendered,
    uses,
)

from job.config import RunConfig
from job.workers import worker_index

each_build = pytest.mark.parametrize("build", BUILDS)
WORKERS = [name for name in BUILDS if uses(name, "multi-worker")]
INDEXED = [name for name in BUILDS if uses(name, "indexed")]
SCHEDULED = [name for name in BUILDS if uses(name, "cronjob")]
QUEUED = [name for name in BUILDS if uses(name, "kueue")]


def names(objects: Objects, kind: str) -> set[str]:
    """Give the names of the objects of a kind."""
    return {item["metadata"]["name"] for item in objects if item["kind"] == kind}


def selected(objects: Objects, labels: dict[str, str]) -> list[dict[str, Any]]:
    """Give the pod templates whose labels a selector asks for."""
    found = [
        pod for pod in pod_templates(objects) if labels.items() <= pod["metadata"]["labels"].items()
    ]
    assert labels
    return found


@each_build
def test_references_resolve(build: str) -> None:
    """Accounts, ConfigMaps by their hashed names, volumes and scale targets are there."""
    objects = rendered(build)
    for template in pod_templates(objects):
        spec = template["spec"]
        assert spec["serviceAccountName"] in names(objects, "ServiceAccount")
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        used = [volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume]
        for container in spec["containers"]:
            used += [source["configMapRef"]["name"] for source in container["envFrom"]]
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert set(used) <= names(objects, "ConfigMap")
        # With a hash: other settings make another name, and so a change is never missed.
        assert all(re.fullmatch(r"[a-z-]+-[a-z0-9]{10}", name) for name in used)
    for item in objects:
        if item["kind"] == "HorizontalPodAutoscaler":
            target = item["spec"]["scaleTargetRef"]
            assert target["name"] in names(objects, target["kind"])
            assert "replicas" not in of_kind(objects, target["kind"])["spec"]
        if item["kind"] == "PodDisruptionBudget":
            assert len(selected(objects, item["spec"]["selector"]["matchLabels"])) == 1
        if item["kind"] == "NetworkPolicy":
            (rule,) = item["spec"]["ingress"]
            assert rule["from"] == [{"podSelector": item["spec"]["podSelector"]}]
            assert len(selected(objects, item["spec"]["podSelector"]["matchLabels"])) == 1


@each_build
def test_services_lead_to_pods(build: str) -> None:
    """Each Service selects the pods of one workload, which have its ports."""
    objects = rendered(build)
    for service in (item for item in objects if item["kind"] == "Service"):
        (pod,) = selected(objects, service["spec"]["selector"])
        (container,) = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for port in service["spec"]["ports"]:
            assert port.get("targetPort", port["port"]) in {*ports, *ports.values()}


@pytest.mark.parametrize("build", WORKERS)
@pytest.mark.parametrize("job_name", ["regraft", "regraft-20261126-7f3a"])
def test_workers_know_each_other(build: str, job_name: str) -> None:
    """TF_CONFIG names every pod by the host name that it has, whatever the Job is called."""
    objects = rendered(build)
    spec, pod = job_template(objects)["spec"], job_pod(objects)
    service = next(i for i in objects if i["metadata"]["name"] == pod["subdomain"])
    assert service["kind"] == "Service"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert selected(objects, service["spec"]["selector"])[0]["spec"] == pod
    (port,) = pod["containers"][0]["ports"]
    for index in range(spec["completions"]):
        given = json.loads(environment(objects, index, job_name)["TF_CONFIG"])
        assert given["cluster"] == {
            # As the Job controller names the pods, and DNS those of a headless Service.
            "worker": [
                f"{job_name}-{number}.{pod['subdomain']}:{port['containerPort']}"
                for number in range(spec["completions"])
            ]
        }
        assert given["task"] == {"type": "worker", "index": index}


@pytest.mark.parametrize("build", [*WORKERS, *INDEXED])
def test_pods_run_at_once_and_the_first_decides(build: str) -> None:
    """All indices run together, each with its own tries, and the Job is done when 0 is."""
    spec = job_template(rendered(build))["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"] > 1
    assert spec["backoffLimitPerIndex"] >= 3
    assert "backoffLimit" not in spec
    assert spec["successPolicy"]["rules"] == [{"succeededIndexes": "0"}]
    # Workers cannot do without one another, and those who only embed can.
    assert spec.get("maxFailedIndexes") == (0 if build in WORKERS else None)


@pytest.mark.parametrize("build", INDEXED)
def test_shares_are_those_of_the_pods(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job takes the index of each pod for its share, and there are as many as pods."""
    objects = rendered(build)
    count = job_template(objects)["spec"]["completions"]
    for index in range(count):
        given = environment(objects, index)
        monkeypatch.setenv("JOB_COMPLETION_INDEX", given["JOB_COMPLETION_INDEX"])
        workers = int(given["REGRAFT_WORKERS_COUNT"])
        config = RunConfig(data=("d",), models="m", name="n", workers_count=workers)
        assert (worker_index(config), workers) == (index, count)


@pytest.mark.parametrize("build", SCHEDULED)
def test_a_schedule_makes_the_same_job(build: str) -> None:
    """A CronJob's template is the Job that the build would have had without it, which is gone."""
    objects = rendered(build)
    assert not names(objects, "Job")
    cronjob = of_kind(objects, "CronJob")
    assert cronjob["spec"]["concurrencyPolicy"] == "Forbid"
    assert cronjob["spec"]["startingDeadlineSeconds"] >= 600
    resources, components = BUILDS[build]
    if resources == ("overlays/nightly",):
        plain = rendered("overlays/prod")
    else:
        plain = composed({
            "resources": [f"../{name}" for name in resources],
            "components": [f"../components/{name}" for name in components if name != "cronjob"],
        })  # fmt: skip
    job, template = of_kind(plain, "Job"), cronjob["spec"]["jobTemplate"]
    assert template["spec"] == job["spec"]
    assert template["metadata"]["labels"] == job["metadata"]["labels"]
    assert environment(objects) == environment(plain)


@pytest.mark.parametrize("build", QUEUED)
def test_a_queue_starts_the_job(build: str) -> None:
    """For Kueue the Job, or each of a schedule, is suspended and says which queue it is in."""
    template = job_template(rendered(build))
    assert template["spec"]["suspend"] is True
    assert template["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "regraft"


def test_components_place_the_pod() -> None:
    """Production runs on a spot node with a GPU, tolerates both, and is a Google account."""
    objects = rendered("overlays/prod")
    pod = job_pod(objects)
    assert {t["key"] for t in pod["tolerations"]} >= {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (first, *_) = (term["matchExpressions"] for term in affinity["nodeSelectorTerms"])
    assert first == [{"key": "cloud.google.com/gke-spot", "operator": "In", "values": ["true"]}]
    # What GKE leaves to a pod whose spot node is taken.
    assert pod["terminationGracePeriodSeconds"] <= 15
    annotations = of_kind(objects, "ServiceAccount")["metadata"]["annotations"]
    assert annotations["iam.gke.io/gcp-service-account"].endswith(".iam.gserviceaccount.com")


def test_an_overlay_of_ones_own_has_the_last_word() -> None:
    """Settings, image, kind of GPU and grace of a user's overlay beat those of the components."""
    objects = composed({
        "resources": ["../base"],
        "components": ["../components/gpu", "../components/spot"],
        "images": [{"name": "registry.example.com/regraft", "newName": "eu.example.com/r"}],
        "configMapGenerator": [
            {"name": "regraft", "behavior": "merge", "literals": ["REGRAFT_NAME=flowers"]}
        ],
        "patches": [{
            "target": {"kind": "Job"},
            "patch": json.dumps([{
                "op": "replace",
                "path": "/spec/template/spec/nodeSelector",
                "value": {"k8s.amazonaws.com/accelerator": "nvidia-l4"},
            }]),
        }],
    })  # fmt: skip
    pod, given = job_pod(objects), environment(objects)
    assert re.fullmatch(r"eu\.example\.com/r:[0-9.]+", pod["containers"][0]["image"])
    assert pod["nodeSelector"] == {"k8s.amazonaws.com/accelerator": "nvidia-l4"}
    assert (given["REGRAFT_NAME"], given["REGRAFT_STOP_TIMEOUT"]) == ("flowers", "10")


def test_a_pipeline_can_wait_for_ci() -> None:
    """The ci overlay answers within the hour, tries again, and its Job outlives the answer."""
    spec = job_template(rendered("overlays/ci"))["spec"]
    assert spec["activeDeadlineSeconds"] <= 3600
    assert 1 <= spec["backoffLimit"] <= 3
    assert spec["ttlSecondsAfterFinished"] >= 86400
    assert set(folders("overlays")) >= {"ci", "dev", "prod"}
