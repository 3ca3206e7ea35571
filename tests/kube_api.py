"""A stand-in for a Kubernetes API server: real HTTP, real processes in the place of pods.

    python tests/kube_api.py FOLDER    # serves until it is killed; FOLDER/kubeconfig reaches it

It has what `submit` and `kubectl get` use: discovery, server-side apply, create, get, list, watch
and delete, the logs of pods; tests/kube_jobs.py runs the Jobs. What goes wrong in a cluster is
switched on by the attributes of `KubeApi`.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

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
)
PATH = re.compile(
    r"/(?:api|apis)/(?P<version>v1|[a-z.]+/v1)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?P<log>/log)?"
)
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "completionMode", "completions", "parallelism",
    "podFailurePolicy", "suspend", "template", "ttlSecondsAfterFinished",
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
        template.update(labels, **{"job-name": metadata["name"]})
        for name, value in (("backoffLimit", 6), ("parallelism", 1), ("suspend", False)):
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


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    api: KubeApi

    def log_message(self, *arguments: object) -> None:
        """Say nothing on stderr."""

    def answer(self) -> None:
        """Answer a request, whatever its method."""
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.api.down:
            self.close_connection = True
            return
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        try:
            self.api.check(self.command, parts.path, self.headers.get("Authorization", ""))
            if (found := discovery(parts.path)) is not None:
                self.send(200, found)
                return
            match = PATH.fullmatch(parts.path)
            kind = match and next(
                (k for k in KINDS if k[:2] == (match["version"], match["plural"])), None
            )
            if not match or not kind:
                raise Refusal(404, "NotFound", "the server could not find the requested resource")
            self.serve(kind, match, query, json.loads(body) if body else {})
        except Refusal as refusal:
            self.send(refusal.status["code"], refusal.status)

    do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

    def serve(
        self,
        kind: tuple[str, str, str, bool],
        match: re.Match[str],
        query: dict[str, str],
        body: Object,
    ) -> None:
        """Do what is asked with the objects of a kind."""
        api, (version, plural, name, namespaced) = self.api, kind
        place, item = match["namespace"] or "", unquote(match["name"] or "")
        if namespaced and place and ("", place) not in api.objects["namespaces"]:
            raise Refusal(404, "NotFound", f'namespaces "{place}" not found')
        if match["log"]:
            self.log(api.get("pods", place, item), query)
        elif self.command == "GET" and item:
            self.send(200, api.get(plural, place, item))
        elif self.command == "GET" and query.get("watch") in ("true", "1"):
            self.watch(plural, place, query)
        elif self.command == "GET":
            with api.changed:
                # As Kubernetes does it: the list says what its items are, they do not.
                common = {"apiVersion", "kind"}
                items = [
                    {key: value for key, value in found.items() if key not in common}
                    for found in api.list(plural, place)
                    if selected(query)(found)
                ]
                listed = {"resourceVersion": str(api.version)}
                self.send(
                    200,
                    {
                        "kind": f"{name}List",
                        "apiVersion": version,
                        "metadata": listed,
                        "items": items,
                    },
                )
        elif self.command == "DELETE":
            api.get(plural, place, item)
            with api.changed:
                api.get(plural, place, item)["metadata"].setdefault("deletionTimestamp", now())
                if plural != "pods":
                    api.put(plural, api.get(plural, place, item), "DELETED")
                else:
                    api.put(plural, api.get(plural, place, item))
            self.send(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
        else:
            written = self.write(plural, place, query, body)
            if plural == "jobs" and api.lose_answer:
                api.lose_answer, self.close_connection = False, True
            else:
                self.send(200 if item else 201, written)

    def write(self, plural: str, place: str, query: dict[str, str], body: Object) -> Object:
        """Make or apply an object."""
        name = str(body["metadata"].get("name", ""))
        if not NAME.fullmatch(name) or len(name) > 63:
            raise Refusal(
                422,
                "Invalid",
                f'metadata.name: Invalid value: "{name}": a lowercase RFC 1123 subdomain',
            )
        body["metadata"]["namespace"] = place
        with self.api.changed:
            if self.command == "PATCH":
                return apply(
                    self.api, plural, body, query["fieldManager"], query.get("force") == "true"
                )
            unknown = body.get("spec", {}).keys() - JOB_FIELDS if plural == "jobs" else set()
            if unknown and query.get("fieldValidation") == "Strict":
                words = f'strict decoding error: unknown field "spec.{min(unknown)}"'
                raise Refusal(400, "BadRequest", words)
            return create(self.api, plural, body)

    def send(self, status: int, item: Object) -> None:
        """Send JSON."""
        with self.api.changed:
            body = json.dumps(item).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def watch(self, plural: str, place: str, query: dict[str, str]) -> None:
        """Send changes as they come, until the time is over or the history is."""
        fits, at = selected(query), int(query.get("resourceVersion") or 0)
        end = time.monotonic() + float(query.get("timeoutSeconds", 300))
        with self.stream("application/json") as write:
            while time.monotonic() < end:
                with self.api.changed:
                    if at < self.api.oldest:
                        gone = Refusal(410, "Expired", "too old resource version").status
                        write(json.dumps({"type": "ERROR", "object": gone}) + "\n")
                        return
                    new = [h for h in self.api.history if h[0] > at and h[2] == plural]
                    at = max([at, *(h[0] for h in new)])
                    lines = [
                        json.dumps({"type": h[1], "object": h[3]}) + "\n"
                        for h in new
                        if fits(h[3])
                        and h[3]["metadata"].get("namespace", "")
                        in (place or h[3]["metadata"].get("namespace", ""),)
                    ]
                    if not new:
                        self.api.changed.wait(TICK)
                write("".join(lines))

    def log(self, pod: Object, query: dict[str, str]) -> None:
        """Send a pod's log, and what is added to it."""
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        states = pod["status"].get("containerStatuses") or [{"state": {"waiting": {}}}]
        if "waiting" in states[0]["state"]:
            message = f'container "regraft" in pod "{name}" is waiting to start: ContainerCreating'
            raise Refusal(400, "BadRequest", message)
        since = query.get("sinceTime", "")[:19]
        sent = count = 0
        with self.stream("text/plain") as write:
            while True:
                over = "terminated" in pod["status"]["containerStatuses"][0]["state"]
                lines = self.api.logs.get(uid, [])
                for stamp, text in lines[sent:]:
                    sent += 1
                    if stamp[:19] >= since:
                        count += 1
                        write(
                            f"{stamp} {text}\n"
                            if query.get("timestamps") == "true"
                            else f"{text}\n"
                        )
                        if self.api.cut_logs and count >= self.api.cut_logs:
                            return
                if over or query.get("follow") != "true":
                    return
                time.sleep(TICK)

    @contextlib.contextmanager
    def stream(self, kind: str) -> Iterator[Callable[[str], None]]:
        """Send an answer in pieces; an outage cuts it in the middle of a piece."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        breaks = self.api.breaks

        def write(text: str) -> None:
            if self.api.down or self.api.breaks != breaks:
                self.wfile.write(b'ff\r\n{"type": "MOD')
                raise ConnectionError
            if text:
                piece = text.encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()

        try:
            yield write
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True


def discovery(path: str) -> Object | None:
    """Give what the server says of itself, None for a path of objects."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        version = {"groupVersion": "batch/v1", "version": "v1"}
        group = {"name": "batch", "versions": [version], "preferredVersion": version}
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}
    if path == "/version":
        return {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    found = [k for k in KINDS if k[0] == version]
    resources = [
        {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": namespaced,
         "verbs": ["create", "delete", "get", "list", "patch", "watch"]}
        for _, plural, kind, namespaced in found
    ]  # fmt: skip
    listed = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version}
    return {**listed, "resources": resources} if found else None


class Server(ThreadingHTTPServer):
    """Serves an API from threads of its own."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, api: KubeApi) -> None:
        super().__init__(("127.0.0.1", 0), type("Bound", (Handler,), {"api": api}))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of our business."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def kube_api(folder: Path) -> Iterator[KubeApi]:
    """Serve an API with its Job controller; folder/kubeconfig reaches it."""
    from kube_jobs import Controller

    api = KubeApi(folder)
    server = Server(api)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    host, port = server.server_address[:2]
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://{host!s}:{port}"}}],
        "users": [{"name": "me", "user": {"token": api.token}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }  # fmt: skip
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    controller = Controller(api)
    try:
        yield api
    finally:
        controller.stop()
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with kube_api(Path(sys.argv[1])):
        threading.Event().wait()
