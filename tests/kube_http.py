"""The stand-in's HTTP: discovery, objects, watches and logs, as Kubernetes has them."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from kube_objects import (
    JOB_FIELDS,
    KINDS,
    NAME,
    TICK,
    KubeApi,
    Object,
    Refusal,
    apply,
    create,
    now,
    selected,
)

PATH = re.compile(
    r"/(?:api|apis)/(?P<version>v1|[a-z0-9.]+/v1)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?P<log>/log)?"
)


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
        groups = []
        for name in dict.fromkeys(k[0].removesuffix("/v1") for k in KINDS if "/" in k[0]):
            version = {"groupVersion": f"{name}/v1", "version": "v1"}
            groups.append({"name": name, "versions": [version], "preferredVersion": version})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
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
