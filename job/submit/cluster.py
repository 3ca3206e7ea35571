"""The cluster's API through the official client: objects as JSON, errors as the job's own.

Objects stay the JSON that the server gives: the client's models would refuse or drop what a newer
or older server has. The kinds are looked up where they are needed, since the dynamic client keeps
what it found in a file that outlives the cluster.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from urllib3.exceptions import HTTPError, SSLError

from job.errors import ConfigError, RegraftError, UnavailableError, brief
from job.progress import log
from job.submit.render import Object

# Who manages the fields; and a field that the server does not know is an error, not dropped.
WRITE = (("fieldManager", "regraft"), ("fieldValidation", "Strict"))
# Tells our Job from another one of the same name, should the answer to its creation be lost.
SUBMISSION = "regraft-submission"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0
# A watch ends itself this often, so that a connection that died unseen is not waited for.
WATCH_SECONDS = 60
# Seconds between two tries: the first pause, and the longest.
PAUSE, LONGEST_PAUSE = 0.5, 8.0

APPLY = "application/apply-patch+yaml"
JSON = "application/json"


class Refused(Exception):
    """The server answered with an error: `status` is HTTP's, `reason` Kubernetes' own."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message

    @property
    def passing(self) -> bool:
        """Tell whether the same request may succeed later."""
        return self.status == 429 or self.status >= 500


class Lost(Exception):
    """There was no answer, or it broke off."""


class Cluster:
    """One server, its credentials, and the namespace to use where none is given."""

    def __init__(self, api: Any, namespace: str, timeout: float) -> None:
        """Speak through a `kubernetes.client.ApiClient`; give up after `timeout` seconds."""
        self._api, self.namespace, self.timeout = api, namespace, timeout
        self._kinds: dict[str, dict[str, tuple[str, bool]]] = {}

    def apply(self, item: Object, namespace: str) -> None:
        """Make an object, or change it to what it should be, by server-side apply."""
        path = f"{self.collection(item, namespace)}/{item['metadata']['name']}"
        query = [*WRITE, ("force", "false")]
        what = f"{item['kind']} {item['metadata']['name']}"
        self.request("PATCH", path, query=query, body=item, content=APPLY, doing=f"apply {what}")

    def create_job(self, job: Object, namespace: str) -> Object:
        """Make a Job and give it as the server has it; ConfigError when its name is taken."""
        mark = uuid.uuid4().hex
        metadata = job["metadata"]
        body = {**job, "metadata": {**metadata, "annotations": {
            **(metadata.get("annotations") or {}), SUBMISSION: mark}}}  # fmt: skip
        path, doing = self.collection(job, namespace), f"create Job {metadata['name']}"
        try:
            return self._answer("POST", path, query=[*WRITE], body=body, doing=doing)
        except Refused as refused:
            if refused.status == 409:
                there = self.request("GET", f"{path}/{metadata['name']}", doing="look at the Job")
                if (there["metadata"].get("annotations") or {}).get(SUBMISSION) == mark:
                    return there
            raise explained(refused, doing) from refused

    def delete(self, job: Object) -> None:
        """Delete a Job and its pods; one that is gone already is fine."""
        path = self.path_of(job)
        body = {"propagationPolicy": "Background"}
        try:
            self._answer("DELETE", path, body=body, doing="delete the Job")
        except Refused as refused:
            if refused.status != 404:
                raise explained(refused, "delete the Job") from refused

    def path_of(self, item: Object) -> str:
        """Give the path of an object that has a namespace."""
        metadata = item["metadata"]
        return f"{self.collection(item, metadata['namespace'])}/{metadata['name']}"

    def collection(self, item: Object, namespace: str) -> str:
        """Give the path of an object's kind; ConfigError for one that the server does not know."""
        version, kind = str(item["apiVersion"]), str(item["kind"])
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if version not in self._kinds:
            try:
                found = self._answer("GET", root, doing="look up kinds").get("resources", [])
            except Refused as refused:
                if refused.status != 404:
                    raise explained(refused, f"look up {version}") from refused
                found = []
            self._kinds[version] = {
                entry["kind"]: (entry["name"], entry["namespaced"])
                for entry in found
                if "/" not in entry["name"]
            }
        if kind not in self._kinds[version]:
            raise ConfigError(
                f"the cluster does not know {version} {kind}",
                hint="install what brings this kind, or leave its component out of the overlay",
            )
        name, namespaced = self._kinds[version][kind]
        place = item["metadata"].get("namespace", namespace)
        return f"{root}/namespaces/{place}/{name}" if namespaced else f"{root}/{name}"

    def request(self, method: str, path: str, *, doing: str, **sent: Any) -> Object:
        """Send a request and give its JSON; the job's own errors for what is refused.

        UnavailableError when the server does not answer for `timeout` seconds.
        """
        try:
            return self._answer(method, path, doing=doing, **sent)
        except Refused as refused:
            raise explained(refused, doing) from refused

    def _answer(self, method: str, path: str, *, doing: str, **sent: Any) -> Object:
        end, pause = time.monotonic() + self.timeout, PAUSE
        while True:
            try:
                answer = self.send(method, path, timeout=READ_TIMEOUT, **sent)
                try:
                    found: Object = json.loads(answer.read())
                except (HTTPError, OSError, ValueError) as error:
                    raise Lost(brief(error)) from error
                return found
            except (Lost, Refused) as error:
                if isinstance(error, Refused) and not error.passing:
                    raise
                if time.monotonic() + pause >= end:
                    raise out_of_reach(error, doing) from error
                if pause == PAUSE:
                    log(f"the cluster's API does not answer (to {doing}): {error}; trying again")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def send(
        self,
        method: str,
        path: str,
        *,
        timeout: float,
        query: list[tuple[str, Any]] | None = None,
        body: Object | None = None,
        content: str = JSON,
    ) -> Any:
        """Send one request and give its answer, a urllib3 response that is not read yet.

        Raises Refused for an error of the server, Lost when there is no answer at all.
        """
        headers = {"Accept": "application/json, */*", "Content-Type": content}
        request = self._api.param_serialize(
            method, path, query_params=query or [], header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            answer = self._api.call_api(*request, _request_timeout=(CONNECT_TIMEOUT, timeout))
            if 200 <= answer.status <= 299:
                return answer.response
            raise _refused(answer.status, answer.reason, answer.response.read())
        except client.ApiException as error:  # what the client makes of TLS errors
            raise _distrusted(error) from error
        except (HTTPError, OSError) as error:
            if isinstance(getattr(error, "reason", None), SSLError):
                raise _distrusted(error) from error
            raise Lost(brief(getattr(error, "reason", None) or error)) from error


def connect(kubeconfig: str | None, context: str | None, timeout: float) -> Cluster:
    """Give the cluster of a kubeconfig's context, or the one that this process is a pod of.

    Raises ConfigError when there is neither.
    """
    # The client reads the variable when it is imported, and looks no more.
    file = kubeconfig or os.environ.get("KUBECONFIG", "~/.kube/config")
    exists = any(Path(part).expanduser().exists() for part in file.split(os.pathsep))
    settings = client.Configuration()
    try:
        if kubeconfig or context or exists:
            config.load_kube_config(file, context, settings, persist_config=False)
            contexts, active = config.list_kube_config_contexts(file)
            chosen = next((item for item in contexts if item["name"] == context), active)
            namespace = chosen["context"].get("namespace") or "default"
        else:
            config.load_incluster_config(client_configuration=settings)
            namespace = NAMESPACE_FILE.read_text().strip()
    except Exception as error:
        raise ConfigError(
            f"no cluster: {brief(error)}",
            hint="give --kubeconfig and --context, or set KUBECONFIG; --dry-run needs no cluster",
        ) from error
    settings.connection_pool_maxsize = 1000  # a log of each pod is a connection
    settings.retries = urllib3.Retry(0, redirect=2)  # we try again ourselves
    return Cluster(client.ApiClient(settings), namespace, timeout)


def lines_of(answer: Any) -> Iterator[bytes]:
    """Give the lines of a stream as they come; Lost when it breaks off."""
    rest = b""
    try:
        for piece in answer.stream(None, decode_content=False):
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole
    except (HTTPError, OSError) as error:
        raise Lost(brief(error)) from error
    finally:
        answer.close()
    if rest:
        yield rest


def out_of_reach(error: Exception, doing: str) -> UnavailableError:
    """Give the error for a server that has not answered for too long."""
    return UnavailableError(
        f"the cluster's API does not answer (to {doing}): {error}",
        hint="look at the network and the cluster; --api-timeout says how long to try",
    )


def _refused(status: int, reason: str, body: bytes) -> Refused:
    try:
        found = json.loads(body)
        return Refused(status, str(found.get("reason", reason)), str(found["message"]))
    except (ValueError, KeyError, AttributeError):
        text = body[:300].decode(errors="replace").strip()
        return Refused(status, reason or "", text or f"HTTP {status} {reason}")


def _distrusted(error: Exception) -> ConfigError:
    return ConfigError(
        f"the cluster's certificate is not trusted: {brief(error)}",
        hint="check the kubeconfig's server and certificate-authority",
    )


def explained(refused: Refused, doing: str) -> RegraftError:
    """Give the job's error for what the server refused."""
    message = f"the cluster refused to {doing}: {refused.message}"
    if refused.status == 403 and "exceeded quota" in refused.message:
        hint = "wait until other Jobs are done, or raise the namespace's ResourceQuota"
        return UnavailableError(message, hint=hint)
    hints = {
        401: "log in again: the credentials of the kubeconfig are not accepted",
        403: "ask for a role that allows it: docs/submit.md has one",
        404: "check --namespace and --context",
        409: "another one has it: choose another --job-name, or delete what is there"
        if refused.reason == "AlreadyExists"
        else "another tool manages these fields: apply the overlay with that tool, or change it",
    }
    return ConfigError(message, hint=hints.get(refused.status, "change the overlay"))
