"""The stand-in's Job controller, as Kubernetes' documentation has it."""

from __future__ import annotations

import threading
import time
import uuid
from datetime import UTC, datetime

from kube_objects import TICK, KubeApi, Object, now
from kube_pods import Kubelet

INDEX = "batch.kubernetes.io/job-completion-index"
# The real controller waits 10 s after a failure, then twice as long each time.
BACKOFF = 0.05


def matches(rule: Object, pod: Object) -> bool:
    """Tell whether a rule of the podFailurePolicy is one for a failed pod."""
    for wanted in rule.get("onPodConditions") or []:
        for found in pod["status"].get("conditions", []):
            if (found["type"], found["status"]) == (wanted["type"], wanted.get("status", "True")):
                return True
    wanted = rule.get("onExitCodes")
    if not wanted:
        return False
    for status in pod["status"].get("containerStatuses", []):
        code = status["state"].get("terminated", {}).get("exitCode", 0)
        named = wanted.get("containerName") in (None, status["name"])
        if named and code and (code in wanted["values"]) == (wanted["operator"] == "In"):
            return True
    return False


class Controller:
    """Runs the Jobs of an API until it is stopped."""

    def __init__(self, api: KubeApi) -> None:
        self.api = api
        self.stopped = threading.Event()
        self.counts: dict[str, Count] = {}
        self.pods: dict[str, Kubelet] = {}
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End, and kill what runs."""
        self.stopped.set()
        self.thread.join()
        for pod in self.pods.values():
            pod.kill()

    def run(self) -> None:
        """Look at every Job again and again."""
        while not self.stopped.wait(TICK):
            with self.api.changed:
                living = {job["metadata"]["uid"] for job in self.api.list("jobs")}
                for job in self.api.list("jobs"):
                    Sync(self, job, self.counts.setdefault(job["metadata"]["uid"], Count())).step()
                for pod in self.api.list("pods"):
                    owner = pod["metadata"]["ownerReferences"][0]["uid"]
                    if owner not in living:
                        self.delete(pod)
                    kubelet = self.pods[pod["metadata"]["uid"]]
                    counted = (
                        owner not in living or pod["metadata"]["uid"] in self.counts[owner].seen
                    )
                    if "deletionTimestamp" in pod["metadata"] and kubelet.over and counted:
                        self.api.put("pods", pod, "DELETED")

    def delete(self, pod: Object) -> None:
        """Ask a pod to end."""
        if "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = now()
            self.api.put("pods", pod)


class Count:
    """What is known of a Job besides its object."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.ended = 0.0
        self.failed = 0
        self.succeeded: set[int] = set()
        self.seen: set[str] = set()
        self.next_try = 0.0
        self.told = False
        self.failure: tuple[str, str] | None = None


class Sync:
    """One look at one Job."""

    def __init__(self, controller: Controller, job: Object, count: Count) -> None:
        self.controller, self.api, self.job, self.count = controller, controller.api, job, count
        self.spec = job["spec"]
        uid = job["metadata"]["uid"]
        self.pods = [
            pod
            for pod in self.api.list("pods")
            if pod["metadata"]["ownerReferences"][0]["uid"] == uid
        ]
        self.active = [pod for pod in self.pods if pod["status"]["phase"] in ("Pending", "Running")]

    def step(self) -> None:
        """Count what has ended, and do what that asks for."""
        if any(
            c["type"] in ("Complete", "Failed") for c in self.job["status"].get("conditions", [])
        ):
            ttl = self.spec.get("ttlSecondsAfterFinished")
            if ttl is not None and time.monotonic() >= self.count.ended + ttl:
                self.api.put("jobs", self.job, "DELETED")
            return
        if self.spec.get("suspend"):
            self.count.began = time.monotonic()
            return
        for pod in self.pods:
            if (
                pod["status"]["phase"] in ("Succeeded", "Failed")
                and pod["metadata"]["uid"] not in self.count.seen
            ):
                self.count.seen.add(pod["metadata"]["uid"])
                self.take(pod)
        deadline = self.spec.get("activeDeadlineSeconds")
        if deadline is not None and time.monotonic() - self.count.began >= deadline:
            message = "Job was active longer than specified deadline"
            self.count.failure = self.count.failure or ("DeadlineExceeded", message)
        if self.count.failure is None and self.count.failed > self.spec["backoffLimit"]:
            self.count.failure = (
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit",
            )
        wanted = int(self.spec.get("completions") or 1)
        if self.count.failure:
            self.fail(*self.count.failure)
        elif len(self.count.succeeded) >= wanted:
            self.end({"type": "Complete", "status": "True"})
        elif time.monotonic() >= self.count.next_try:
            self.start(wanted)

    def take(self, pod: Object) -> None:
        """Count a pod that has ended, as the podFailurePolicy says."""
        index = int(pod["metadata"]["annotations"].get(INDEX, len(self.count.seen)))
        if pod["status"]["phase"] == "Succeeded":
            self.count.succeeded.add(index)
            return
        rules = (self.spec.get("podFailurePolicy") or {}).get("rules", [])
        for number, rule in enumerate(rules):
            if matches(rule, pod):
                if rule["action"] == "FailJob":
                    self.count.failure = ("PodFailurePolicy", self.policy_message(pod, number))
                if rule["action"] == "Ignore":
                    return
                break
        self.count.failed += 1
        self.count.next_try = time.monotonic() + BACKOFF

    def policy_message(self, pod: Object, number: int) -> str:
        """Give the words of Kubernetes."""
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        code = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
        return (
            f"Container regraft for pod {name} failed with exit code {code} matching FailJob rule "
            f"at index {number}"
        )

    def fail(self, reason: str, message: str) -> None:
        """End what runs; the Job has failed when all of it has ended."""
        for pod in self.active:
            self.controller.delete(pod)
        if not self.active:
            self.end({"type": "Failed", "status": "True", "reason": reason, "message": message})

    def end(self, condition: Object) -> None:
        """Set the last condition."""
        self.count.ended = time.monotonic()
        self.job["status"].setdefault("conditions", []).append(condition)
        self.api.put("jobs", self.job)

    def start(self, wanted: int) -> None:
        """Make the pods that are missing."""
        indexed = self.spec.get("completionMode") == "Indexed"
        taken = {int(pod["metadata"]["annotations"].get(INDEX, -1)) for pod in self.active}
        free = [i for i in range(wanted) if not indexed or i not in self.count.succeeded | taken]
        left = wanted - len(self.count.succeeded) - len(self.active)
        room = min(self.spec["parallelism"] - len(self.active), left)
        for index in free[: max(0, room)]:
            if self.api.quota:
                if not self.count.told:
                    self.count.told = True
                    self.tell("FailedCreate", self.api.quota)
                return
            self.make(index if indexed else None)

    def tell(self, reason: str, message: str) -> None:
        """Make an event of the Job."""
        metadata = self.job["metadata"]
        about = {"kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
        name = f"{metadata['name']}.{uuid.uuid4().hex[:8]}"
        self.api.put("events", {
            "metadata": {"name": name, "namespace": metadata["namespace"]}, "type": "Warning",
            "involvedObject": about, "reason": reason, "message": message,
        })  # fmt: skip

    def make(self, index: int | None) -> None:
        """Make a pod and the kubelet that runs it."""
        owner, template = self.job["metadata"], self.spec["template"]
        middle = "" if index is None else f"-{index}"
        metadata: Object = {
            "name": f"{owner['name']}{middle}-{uuid.uuid4().hex[:5]}",
            "namespace": owner["namespace"],
            "labels": dict(template["metadata"]["labels"]),
            "annotations": {} if index is None else {INDEX: str(index)},
            "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "ownerReferences": [{"kind": "Job", "name": owner["name"], "uid": owner["uid"]}],
        }
        pod = {
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {**template["spec"]}, "status": {"phase": "Pending"},
        }  # fmt: skip
        self.api.put("pods", pod)
        self.controller.pods[metadata["uid"]] = Kubelet(self.api, pod, index)
