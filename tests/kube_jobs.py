"""The stand-in's Job controller and kubelet, as Kubernetes' documentation has them.

A container with an image `local/...` is the program that its command and args say; any other is
`python -m job` with its args. The termination message is a file, whose name stands where the
container says /dev/termination-log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kube_api import TICK, KubeApi, Object, now

ROOT = Path(__file__).resolve().parent.parent
INDEX = "batch.kubernetes.io/job-completion-index"
MESSAGE = "/dev/termination-log"
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


def evict(api: KubeApi, pod: Object, why: str) -> None:
    """Take a pod from its node, as a drain does."""
    with api.changed:
        disrupted = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
        }
        pod["status"].setdefault("conditions", []).append({**disrupted, "message": why})
        pod["metadata"]["deletionTimestamp"] = now()
        api.put("pods", pod)


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


class Kubelet:
    """Runs one pod's container as a process and keeps the pod's status."""

    def __init__(self, api: KubeApi, pod: Object, index: int | None) -> None:
        self.api, self.pod, self.index = api, pod, index
        self.over = False
        self.process: subprocess.Popen[str] | None = None
        (self.container,) = (c for c in pod["spec"]["containers"] if c["name"] == "regraft")
        self.message = api.folder / f"{pod['metadata']['name']}.message"
        threading.Thread(target=self.run, daemon=True).start()

    def kill(self) -> None:
        """End the process, if there is one."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def status(self, phase: str, state: Object, **more: Any) -> None:
        """Put the pod's status."""
        with self.api.changed:
            key = (self.pod["metadata"]["namespace"], self.pod["metadata"]["name"])
            status = {"name": "regraft", "restartCount": 0, "state": state}
            self.pod["status"] |= {"phase": phase, "containerStatuses": [status], **more}
            if key in self.api.objects["pods"]:
                self.api.put("pods", self.pod)

    @property
    def deleted(self) -> bool:
        """Tell whether the pod is to end."""
        return "deletionTimestamp" in self.pod["metadata"]

    def run(self) -> None:
        """Take the pod from its beginning to its end."""
        while not self.deleted and (self.api.unschedulable or self.api.image_trouble[0]):
            self.wait_with(self.api.unschedulable, *self.api.image_trouble)
            time.sleep(TICK)
        if self.deleted:
            self.pod["status"]["phase"] = "Failed"
            self.over = True
            return
        self.pod["spec"]["nodeName"] = "node-1"
        try:
            self.process = self.begin()
        except OSError as error:
            failed = {"exitCode": 128, "reason": "StartError", "message": f"exec: {error}"}
            self.status("Failed", {"terminated": failed})
            self.over = True
            return
        self.status("Running", {"running": {"startedAt": now()}})
        reader = threading.Thread(target=self.read, daemon=True)
        reader.start()
        self.watch()
        reader.join()
        self.finish()

    def wait_with(self, node: str, reason: str, message: str) -> None:
        """Show what keeps the pod waiting."""
        if node:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            wanted: Object = {"conditions": [{**condition, "message": node}]}
        else:
            waiting = {
                "name": "regraft",
                "restartCount": 0,
                "state": {"waiting": {"reason": reason, "message": message}},
            }
            wanted = {
                self.api.trouble_of: [waiting],
                "conditions": [{"type": "PodScheduled", "status": "True"}],
            }
        with self.api.changed:
            if not wanted.items() <= self.pod["status"].items():
                self.pod["status"].update(wanted)
                self.api.put("pods", self.pod)

    def variables(self) -> dict[str, str]:
        """Give the container's environment, with what its ConfigMaps have."""
        place = self.pod["metadata"]["namespace"]
        found: dict[str, str] = {}
        for source in self.container.get("envFrom") or []:
            found |= self.api.get("configmaps", place, source["configMapRef"]["name"])["data"]
        for entry in self.container.get("env") or []:
            found[entry["name"]] = str(entry.get("value", ""))
        if self.index is not None:
            found["JOB_COMPLETION_INDEX"] = str(self.index)
        return found | {"REGRAFT_RESULT_FILE": str(self.message)}

    def begin(self) -> subprocess.Popen[str]:
        """Start the process."""
        line = [*(self.container.get("command") or []), *(self.container.get("args") or [])]
        if not str(self.container["image"]).startswith("local/"):
            line = [sys.executable, "-m", "job", *(self.container.get("args") or [])]
        line = [str(word).replace(MESSAGE, str(self.message)) for word in line]
        kept = {name: v for name, v in os.environ.items() if not name.startswith("REGRAFT_")}
        self.message.touch()
        process = subprocess.Popen(
            line, cwd=ROOT, env=kept | self.variables(), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self.api.processes[self.pod["metadata"]["uid"]] = process
        return process

    def read(self) -> None:
        """Keep the log with the time of each line."""
        assert self.process is not None
        assert self.process.stdout is not None
        lines = self.api.logs.setdefault(self.pod["metadata"]["uid"], [])
        for line in self.process.stdout:
            stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
            lines.append((stamp, line.rstrip("\n")))

    def watch(self) -> None:
        """Wait for the process; a pod that is deleted gets SIGTERM, and SIGKILL after its grace."""
        assert self.process is not None
        grace = self.pod["spec"].get("terminationGracePeriodSeconds", 30)
        kill_at = float("inf")
        while self.process.poll() is None:
            if self.deleted and kill_at == float("inf"):
                kill_at = time.monotonic() + grace
                self.process.terminate()
            if time.monotonic() >= kill_at:
                self.process.kill()
            time.sleep(TICK)
        with contextlib.suppress(OSError):  # what it has left running would keep the log open
            os.killpg(self.process.pid, signal.SIGKILL)

    def finish(self) -> None:
        """Show how the process ended."""
        assert self.process is not None
        code = self.process.returncode
        code = 128 - code if code < 0 else code
        lines = self.api.logs.get(self.pod["metadata"]["uid"], [])
        message = self.message.read_text()
        if (
            not message
            and code
            and self.container.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        ):
            message = "\n".join(text for _, text in lines[-80:])[-2048:]
        reason = "Completed" if code == 0 else "Error"
        if code == 137 and self.api.out_of_memory:
            reason = "OOMKilled"
        ended = {"exitCode": code, "reason": reason, "message": message, "finishedAt": now()}
        self.status("Failed" if code else "Succeeded", {"terminated": ended})
        self.over = True
