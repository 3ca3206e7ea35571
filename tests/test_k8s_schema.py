"""What an API server would refuse is refused here: fields, names, quantities, words."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
from kubernetes.utils import parse_quantity
from manifests import BUILDS, Objects, newest_releases, pod_templates, rendered

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # a DNS label of RFC 1123
SUBDOMAIN = re.compile(rf"{LABEL.pattern}(\.{LABEL.pattern})*")
QUALIFIED = re.compile(rf"({SUBDOMAIN.pattern}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
# What room a name needs for what is appended: a CronJob's Jobs get 11 characters more.
LONGEST = {"CronJob": 52, "Job": 63, "Service": 63}

# A field, or what it is in and the field, and the words it knows; to its schema any text is right.
WORDS: dict[str, set[str]] = {
    "restartPolicy": {"Never", "OnFailure"},
    "completionMode": {"Indexed", "NonIndexed"},
    "concurrencyPolicy": {"Allow", "Forbid", "Replace"},
    "action": {"Ignore", "FailJob", "FailIndex", "Count"},
    "onExitCodes.operator": {"In", "NotIn"},
    "tolerations.operator": {"Exists", "Equal"},
    "matchExpressions.operator": {"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "onPodConditions.type": {"DisruptionTarget", "Ready", "PodScheduled", "ContainersReady"},
    "onPodConditions.status": {"True", "False", "Unknown"},
    "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "seccompProfile.type": {"RuntimeDefault", "Localhost"},
    "policyTypes": {"Ingress", "Egress"},
    "target.type": {"Utilization", "AverageValue", "Value"},
    "metrics.type": {"Resource", "ContainerResource", "Pods", "Object", "External"},
}
each_build = pytest.mark.parametrize("build", BUILDS)


@cache
def problem(release: str, text: str) -> str:
    """Give what an API server of a release finds wrong with an object, or nothing."""
    try:
        kubernetes_validate.validate(json.loads(text), release, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)
    return ""


def fields(value: Any, inside: str = "") -> Iterator[tuple[str, str, Any]]:
    """Walk an object: what each field is in, its name, its value or each of its plain values."""
    if isinstance(value, dict):
        for key, child in value.items():
            plain = child if isinstance(child, list) else [child]
            yield from ((inside, key, item) for item in plain if not isinstance(item, dict | list))
            yield from fields(child, key)
    elif isinstance(value, list):
        for child in value:
            yield from fields(child, inside)


def quantity(value: Any) -> Decimal:
    """Give a quantity in its unit; ValueError for what is none."""
    return Decimal(parse_quantity(value))


@pytest.mark.parametrize("release", newest_releases(3))
@each_build
def test_every_object_is_valid(build: str, release: str) -> None:
    """Every object of every build is valid, with no unknown field, in the three newest releases."""
    objects = rendered(build)
    assert objects
    for item in objects:
        assert not problem(release, json.dumps(item, sort_keys=True)), item["kind"]


@each_build
def test_names_are_names(build: str) -> None:
    """Objects, containers, ports, volumes and labels have names that the cluster takes."""
    objects = rendered(build)
    seen = Counter((item["kind"], item["metadata"]["name"]) for item in objects)
    assert max(seen.values()) == 1, seen
    for item in objects:
        kind, name = item["kind"], item["metadata"]["name"]
        pattern = LABEL if kind in LONGEST else SUBDOMAIN
        assert pattern.fullmatch(name), f"{kind} {name}"
        assert len(name) <= LONGEST.get(kind, 253)
        assert "app.kubernetes.io/name" in item["metadata"]["labels"], f"{kind} {name}"
    for template in pod_templates(objects):
        spec = template["spec"]
        for named in (*spec["containers"], *spec["volumes"]):
            assert LABEL.fullmatch(named["name"])
        for container in spec["containers"]:
            variables = [variable["name"] for variable in container.get("env", [])]
            assert len(set(variables)) == len(variables)
        for toleration in spec.get("tolerations", []):
            assert ("value" in toleration) == (toleration["operator"] == "Equal")
    for item in objects:
        for inside, key, value in fields(item):
            if inside in ("labels", "matchLabels"):
                assert LABEL_VALUE.fullmatch(value), f"{key}: {value}"
            if inside in ("labels", "matchLabels", "annotations", "nodeSelector"):
                assert QUALIFIED.fullmatch(key), key
            if inside == "ports" and key == "name":
                assert re.fullmatch(r"[a-z0-9-]{1,15}", value), value


@each_build
def test_words_are_known(build: str) -> None:
    """Each field that takes one of a few words has one of them, which a schema does not check."""
    for item in rendered(build):
        for inside, key, value in fields(item):
            words = WORDS.get(f"{inside}.{key}") or WORDS.get(key)
            assert words is None or value in words, f"{inside}.{key}: {value}"
            if key == "timeZone":
                assert re.fullmatch(r"[A-Z][A-Za-z]+/[A-Z][A-Za-z_]+", value), value
            if key == "schedule":
                assert re.fullmatch(r"(\S+ ){4}\S+", value), value


def test_the_words_are_those_of_the_manifests() -> None:
    """No word is checked that is nowhere, where a renamed field would escape."""
    found = {
        name
        for build in BUILDS
        for item in rendered(build)
        for inside, key, _ in fields(item)
        for name in (key, f"{inside}.{key}")
    }
    assert set(WORDS) - found == set()


@each_build
def test_resources_add_up(build: str) -> None:
    """Quantities parse, no request is above its limit, and the volumes fit in the pod's disk."""
    for template in pod_templates(rendered(build)):
        spec = template["spec"]
        assert spec["containers"]
        for container in spec["containers"]:
            requests = {k: quantity(v) for k, v in container["resources"]["requests"].items()}
            limits = {k: quantity(v) for k, v in container["resources"]["limits"].items()}
            assert {"cpu", "memory", "ephemeral-storage"} <= set(requests)
            assert {"memory", "ephemeral-storage"} <= set(limits)
            assert all(value <= limits.get(name, value) for name, value in requests.items())
            # The job refuses to start with less.
            assert limits["memory"] >= quantity("2Gi")
            volumes = [volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume]
            room = sum(quantity(volume["sizeLimit"]) for volume in volumes)
            assert 0 < room <= limits["ephemeral-storage"]


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Job", ("spec", "backofLimit"), 4),
        ("Job", ("spec", "backoffLimit"), "four"),
        ("ServiceAccount", ("automountServiceAccountTokens",), False),
    ],
)
def test_the_validator_validates(kind: str, path: tuple[str, ...], value: Any) -> None:
    """A misspelt field and a value of another type are found, so that the tests above can fail."""
    objects: Objects = json.loads(json.dumps(rendered("base")))
    (item,) = (item for item in objects if item["kind"] == kind)
    release = newest_releases(1)[0]
    assert not problem(release, json.dumps(item))
    inner = item
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert problem(release, json.dumps(item))
