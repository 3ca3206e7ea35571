"""The stand-in's Job controller, as Kubernetes' documentation has it."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from datetime import UTC, datetime

from kube_objects import TICK, KubeApi, Object, now
from kube_pods import Kubelet
from kube_policy import failure_action, success_rule, write_indexes

INDEX = "batch.kubernetes.io/job-completion-index"
# The real controller waits 10 s after a failure, then twice as long each time.
BACKOFF = 0.05


def policy_message(pod: Object, number: int) -> str:
    """Give the words of Kubernetes for a pod that a FailJob rule is for."""
    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    code = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
    return (
        f"Container regraft for pod {name} failed with exit code {code} matching FailJob rule "
        f"at index {number}"
    )


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
    """What is known of a Job besides its object; None is an index that has no tries of its own."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.ended = 0.0
        self.failures: Counter[int | None] = Counter()
        self.succeeded: set[int] = set()
        self.failed: set[int] = set()
        self.seen: set[str] = set()
        self.next_try: dict[int | None, float] = {}
        self.told = False
        self.verdict: Object | None = None


class Sync:
    """One look at one Job."""

    def __init__(self, controller: Controller, job: Object, count: Count) -> None:
        self.controller, self.api, self.job, self.count = controller, controller.api, job, count
        self.spec = job["spec"]
        self.wanted = int(self.spec.get("completions") or 1)
        self.indexed = self.spec.get("completionMode") == "Indexed"
        self.tries_of_each: int | None = self.spec.get("backoffLimitPerIndex")
        uid = job["metadata"]["uid"]
        self.pods = [
            pod
            for pod in self.api.list("pods")
            if pod["metadata"]["ownerReferences"][0]["uid"] == uid
        ]
        self.active = [pod for pod in self.pods if pod["status"]["phase"] in ("Pending", "Running")]

    def step(self) -> None:
        """Count what has ended, and do what that asks for."""
        if self.count.ended:
            ttl = self.spec.get("ttlSecondsAfterFinished")
            if ttl is not None and time.monotonic() >= self.count.ended + ttl:
                self.api.put("jobs", self.job, "DELETED")
            return
        if self.spec.get("suspend"):
            self.count.began = time.monotonic()
            return
        for pod in self.pods:
            over = pod["status"]["phase"] in ("Succeeded", "Failed")
            if over and pod["metadata"]["uid"] not in self.count.seen:
                self.count.seen.add(pod["metadata"]["uid"])
                self.take(pod)
        if self.count.verdict is None:
            self.judge()
        if self.count.verdict is not None:
            self.finish(self.count.verdict)
        else:
            self.start()

    def take(self, pod: Object) -> None:
        """Count a pod that has ended, as the podFailurePolicy says."""
        index = int(pod["metadata"]["annotations"].get(INDEX, len(self.count.seen)))
        if pod["status"]["phase"] == "Succeeded":
            self.count.succeeded.add(index)
            return
        action, rule = failure_action(self.spec, pod)
        if action == "Ignore" or self.count.verdict is not None:
            return
        if action == "FailJob":
            self.conclude("FailureTarget", "PodFailurePolicy", policy_message(pod, rule))
        key = None if self.tries_of_each is None else index
        self.count.failures[key] += 1
        self.count.next_try[key] = time.monotonic() + BACKOFF
        if self.tries_of_each is not None and (
            action == "FailIndex" or self.count.failures[key] > self.tries_of_each
        ):
            self.count.failed.add(index)

    def judge(self) -> None:
        """Conclude how the Job ends, if it does, in the order of the real controller."""
        failed, succeeded = self.count.failed, self.count.succeeded
        deadline = self.spec.get("activeDeadlineSeconds", float("inf"))
        rule = success_rule(self.spec, succeeded)
        if self.count.failures.total() > self.spec["backoffLimit"]:
            message = "Job has reached the specified backoff limit"
            self.conclude("FailureTarget", "BackoffLimitExceeded", message)
        elif time.monotonic() - self.count.began >= deadline:
            message = "Job was active longer than specified deadline"
            self.conclude("FailureTarget", "DeadlineExceeded", message)
        elif len(failed) > self.spec.get("maxFailedIndexes", float("inf")):
            message = "Job has exceeded the specified maximal number of failed indexes"
            self.conclude("FailureTarget", "MaxFailedIndexesExceeded", message)
        elif failed and len(failed) + len(succeeded) >= self.wanted:
            self.conclude("FailureTarget", "FailedIndexes", "Job has failed indexes")
        elif rule is not None:
            words = f"Matched rules at index {rule}"
            self.conclude("SuccessCriteriaMet", "SuccessPolicy", words)
        elif len(succeeded) >= self.wanted:
            words = "Reached expected number of succeeded pods"
            self.conclude("SuccessCriteriaMet", "CompletionsReached", words)

    def conclude(self, kind: str, reason: str, message: str) -> None:
        """Say how the Job is going to end; it has ended when all of its pods have."""
        self.count.verdict = {
            "type": kind, "status": "True", "reason": reason, "message": message,
        }  # fmt: skip
        status = self.job["status"]
        status.setdefault("conditions", []).append(self.count.verdict)
        if self.indexed:
            status["completedIndexes"] = write_indexes(self.count.succeeded)
        if self.tries_of_each is not None:
            status["failedIndexes"] = write_indexes(self.count.failed)
        self.api.put("jobs", self.job)

    def finish(self, verdict: Object) -> None:
        """End what runs; the last condition says what the verdict said."""
        for pod in self.active:
            self.controller.delete(pod)
        if not self.active:
            self.count.ended = time.monotonic()
            last = {"FailureTarget": "Failed", "SuccessCriteriaMet": "Complete"}[verdict["type"]]
            self.job["status"]["conditions"].append({**verdict, "type": last})
            self.api.put("jobs", self.job)

    def start(self) -> None:
        """Make the pods that are missing."""
        taken = {int(pod["metadata"]["annotations"].get(INDEX, -1)) for pod in self.active}
        over = self.count.succeeded | self.count.failed
        free = [i for i in range(self.wanted) if not self.indexed or i not in over | taken]
        left = self.wanted - len(over) - len(self.active)
        room = min(self.spec["parallelism"] - len(self.active), left)
        for index in [i for i in free if self.may_try(i)][: max(0, room)]:
            if self.api.quota:
                if not self.count.told:
                    self.count.told = True
                    self.tell("FailedCreate", self.api.quota)
                return
            self.make(index if self.indexed else None)

    def may_try(self, index: int) -> bool:
        """Tell whether the pause after the last failure is over."""
        key = None if self.tries_of_each is None else index
        return time.monotonic() >= self.count.next_try.get(key, 0)

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
