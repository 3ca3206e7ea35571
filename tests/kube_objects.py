"""The objects of the stand-in for a Kubernetes API server, and what its clients do to them."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str]

# The kinds that are served: group and version, plural, kind, whether it has a namespace.
KINDS = (
    ("v1", "configmaps", "ConfigMap", True),
    ("v1", "events", "Event", True),
    ("v1", "namespaces", "Namespace", False),
    ("v1", "pods", "Pod", True),
    ("v1", "resourcequotas", "ResourceQuota", True),
    ("v1", "serviceaccounts", "ServiceAccount", True),
    ("v1", "services", "Service", True),
    ("batch/v1", "cronjobs", "CronJob", True),
    ("batch/v1", "jobs", "Job", True),
    ("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", True),
)
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "backoffLimitPerIndex", "completionMode",
    "completions", "maxFailedIndexes", "parallelism", "podFailurePolicy", "successPolicy",
    "suspend", "template", "ttlSecondsAfterFinished",
}  # fmt: skip
# Seconds between two looks of what waits.
TICK = 0.02


def now() -> str:
    """Give the time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status,
            "reason": reason, "message": message,
        }  # fmt: skip


@dataclass
class Rule:
    """Refuses requests whose method and path match, so many times."""

    method: str
    path: str
    refusal: Refusal
    times: int


@dataclass
class KubeApi:
    """The objects, and the switches for what goes wrong.

    `down`: no request is answered and every stream breaks off. `token`: what a client must show.
    `quota`, `unschedulable`, `image_trouble` (a reason such as ErrImagePull and a message): what
    keeps pods from starting; `trouble_of` are the statuses that have the last. `rules`: requests
    that are refused. `cut_logs`: a log that is followed ends after so many lines. `out_of_memory`:
    a container that was killed was so for its memory limit. `lose_answer`: the next Job is made,
    and its client never hears of it. `requests` has what was asked for.
    """

    folder: Path
    down: bool = False
    token: str = "secret"  # noqa: S105
    quota: str = ""
    unschedulable: str = ""
    image_trouble: tuple[str, str] = ("", "")
    cut_logs: int = 0
    out_of_memory: bool = False
    lose_answer: bool = False
    trouble_of: str = "containerStatuses"
    rules: list[Rule] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.objects: dict[str, dict[Key, Object]] = {plural: {} for _, plural, _, _ in KINDS}
        self.history: list[tuple[int, str, str, Object]] = []
        self.version = self.oldest = 100
        self.breaks = 0
        self.logs: dict[str, list[tuple[str, str]]] = {}
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.put("namespaces", {"metadata": {"name": "default"}})

    def put(self, plural: str, item: Object, kind: str = "") -> Object:
        """Keep an object as it is now, and tell those who watch; gives it."""
        with self.changed:
            metadata = item["metadata"]
            key = (metadata.get("namespace", ""), metadata["name"])
            new = key not in self.objects[plural]
            self.version += 1
            metadata["resourceVersion"] = str(self.version)
            if new:
                metadata.setdefault("uid", str(uuid.uuid4()))
                metadata.setdefault("creationTimestamp", now())
            if kind == "DELETED":
                self.objects[plural].pop(key, None)
            else:
                self.objects[plural][key] = item
            kind = kind or ("ADDED" if new else "MODIFIED")
            self.history.append((self.version, kind, plural, json.loads(json.dumps(item))))
            self.changed.notify_all()
            return item

    def get(self, plural: str, namespace: str, name: str) -> Object:
        """Give an object; Refusal with 404 when it is not there."""
        found = self.objects[plural].get((namespace, name))
        if found is None:
            raise Refusal(404, "NotFound", f'{plural} "{name}" not found')
        return found

    def list(self, plural: str, namespace: str = "") -> list[Object]:
        """Give the objects of a kind."""
        with self.changed:
            return [
                o
                for (place, _), o in self.objects[plural].items()
                if not namespace or place == namespace
            ]

    def refuse(
        self, method: str, path: str, status: int, reason: str, message: str, times: int = -1
    ) -> None:
        """Refuse requests from now on, `times` of them or all."""
        self.rules.append(Rule(method, path, Refusal(status, reason, message), times))

    def signal(self, pod: Object, number: int) -> None:
        """Send a signal to a pod's process."""
        self.processes[pod["metadata"]["uid"]].send_signal(number)

    def expire(self) -> None:
        """Forget the history: watches end with 410, and older versions are too old for new ones."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.changed.notify_all()

    def break_streams(self) -> None:
        """Cut every watch and log in the middle of a line."""
        with self.changed:
            self.breaks += 1
            self.changed.notify_all()

    def check(self, method: str, path: str, token: str) -> None:
        """Raise the Refusal that is set for a request."""
        self.requests.append(f"{method} {path}")
        if self.token and token != f"Bearer {self.token}":
            raise Refusal(401, "Unauthorized", "Unauthorized")
        for rule in self.rules:
            if rule.times and rule.method == method and re.search(rule.path, path):
                rule.times -= 1
                raise rule.refusal


def apply(api: KubeApi, plural: str, item: Object, manager: str, force: bool) -> Object:
    """Server-side apply: a manager may change the fields that nobody else manages."""
    key = (item["metadata"].get("namespace", ""), item["metadata"]["name"])
    there = api.objects[plural].get(key)
    if there is None:
        item["metadata"]["managedFields"] = [{"manager": manager, "operation": "Apply"}]
        return api.put(plural, item)
    owner = there["metadata"].get("managedFields", [{}])[0].get("manager", manager)
    for name, value in item.items():
        if name != "metadata" and owner != manager and not force and there.get(name) != value:
            message = f'Apply failed with 1 conflict: conflict with "{owner}": .{name}'
            raise Refusal(409, "Conflict", message)
    there.update({name: value for name, value in item.items() if name != "metadata"})
    return api.put(plural, there)


def create(api: KubeApi, plural: str, item: Object) -> Object:
    """Make an object; a Job gets the selector and labels by which its pods are found."""
    metadata = item["metadata"]
    if (metadata.get("namespace", ""), metadata["name"]) in api.objects[plural]:
        message = f'{plural} "{metadata["name"]}" already exists'
        raise Refusal(409, "AlreadyExists", message)
    if plural == "jobs":
        metadata["uid"] = str(uuid.uuid4())
        labels = {"batch.kubernetes.io/controller-uid": metadata["uid"]}
        item["spec"]["selector"] = {"matchLabels": dict(labels)}
        template = item["spec"]["template"].setdefault("metadata", {}).setdefault("labels", {})
        names = ("job-name", "batch.kubernetes.io/job-name")
        template.update(labels, **dict.fromkeys(names, metadata["name"]))
        tries = 2**31 - 1 if "backoffLimitPerIndex" in item["spec"] else 6
        for name, value in (("backoffLimit", tries), ("parallelism", 1), ("suspend", False)):
            item["spec"].setdefault(name, value)
        item["status"] = {}
    return api.put(plural, item)


def selected(query: dict[str, str]) -> Callable[[Object], bool]:
    """Give what tells whether an object fits the labelSelector and the fieldSelector."""

    def pairs(name: str) -> list[list[str]]:
        return [
            part.replace("==", "=").split("=", 1) for part in query.get(name, "").split(",") if part
        ]

    def value(item: Object, path: str) -> str:
        for part in path.split("."):
            item = item.get(part, {})
        return str(item)

    labels, fields = pairs("labelSelector"), pairs("fieldSelector")

    def fits(item: Object) -> bool:
        has = item["metadata"].get("labels") or {}
        return all(has.get(k) == v for k, v in labels) and all(
            value(item, k) == v for k, v in fields
        )

    return fits
