"""The stand-in's kubelet: each pod's container is a process of this machine.

A container with an image `local/...` is the program that its command and args say; any other is
`python -m job` with its args. The termination message is a file, whose name stands where the
container says /dev/termination-log.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kube_objects import TICK, KubeApi, Object, now

ROOT = Path(__file__).resolve().parent.parent
MESSAGE = "/dev/termination-log"
# Another variable in the value of one.
NAMED = re.compile(r"\$\((\w+)\)")


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
            path = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            value = self.field(path) if path else str(entry.get("value", ""))
            found[entry["name"]] = NAMED.sub(lambda name: found.get(name[1], name[0]), value)
        if self.index is not None:
            found["JOB_COMPLETION_INDEX"] = str(self.index)
        return found | {"REGRAFT_RESULT_FILE": str(self.message)}

    def field(self, path: str) -> str:
        """Give a label or annotation of the pod by its path, metadata.labels['NAME']."""
        kind, name = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path).groups()
        return str(self.pod["metadata"][kind][name])

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
