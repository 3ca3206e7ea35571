"""A Job, its pods and its events, as far as they are known."""

from __future__ import annotations

from job.submit.render import CONTAINER, Object
from job.submit.watching import Change, Changed, Listed

INDEX = "batch.kubernetes.io/job-completion-index"
# What a container runtime says of a command that it could not start.
NOT_STARTED = ("StartError", "ContainerCannotRun")


class State:
    """The newest of every object; pods that are gone keep what was last seen of them."""

    def __init__(self, job: Object) -> None:
        self.job = job
        self.deleted = False
        self.pods: dict[str, Object] = {}
        self.gone: set[str] = set()
        self.events: dict[str, Object] = {}

    def take(self, change: Change) -> None:
        """Note a change."""
        if isinstance(change, Listed):
            for item in change.items:
                self._note(change.kind, item, gone=False)
            there = {item["metadata"]["uid"] for item in change.items}
            if change.kind == "pods":
                self.gone |= self.pods.keys() - there
            elif change.kind == "jobs":
                self.deleted = self.job["metadata"]["uid"] not in there
        elif isinstance(change, Changed):
            self._note(change.kind, change.item, change.gone)

    def _note(self, kind: str, item: Object, gone: bool) -> None:
        uid = item["metadata"]["uid"]
        if kind == "pods":
            self.pods[uid] = item
            if gone:
                self.gone.add(uid)
        elif kind == "events":
            self.events[uid] = item
        elif uid == self.job["metadata"]["uid"]:
            # In a list the items come without these two.
            common: Object = {key: self.job[key] for key in ("apiVersion", "kind")}
            self.job, self.deleted = {**common, **item}, gone

    @property
    def name(self) -> str:
        """Give the Job's name."""
        return str(self.job["metadata"]["name"])

    def command(self, verb: str) -> str:
        """Give the command line of kubectl that does something with the Job."""
        return f"kubectl -n {self.job['metadata']['namespace']} {verb}{self.name}"

    def finished(self) -> Object | None:
        """Give the Job's last condition, Complete or Failed; None while it goes on."""
        return condition(self.job, "Complete") or condition(self.job, "Failed")

    def succeeds(self) -> bool | None:
        """Tell whether the Job succeeds, once it is decided, though some pods have yet to end."""
        for kind in ("SuccessCriteriaMet", "Complete", "FailureTarget", "Failed"):
            if condition(self.job, kind):
                return kind in ("SuccessCriteriaMet", "Complete")
        return None

    def indexes(self, field: str) -> set[int]:
        """Give the indexes that the Job's status names as `completedIndexes` or `failedIndexes`."""
        return read_indexes(self.job.get("status", {}).get(field) or "")

    def has_what_it_needs(self) -> bool:
        """Tell whether the indexes that a rule of the successPolicy names have succeeded.

        A Job whose other indexes have ended by then, one of them for good, counts as failed: to
        Kubernetes its failed indexes come first.
        """
        rules = (self.job["spec"].get("successPolicy") or {}).get("rules") or []
        done = self.indexes("completedIndexes")
        wanted = [read_indexes(rule.get("succeededIndexes") or "") for rule in rules]
        return any(indexes and indexes <= done for indexes in wanted)

    def in_order(self) -> list[Object]:
        """Give the pods, the oldest first."""
        return sorted(self.pods.values(), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def running(self) -> list[Object]:
        """Give the pods whose container was started and has not ended, as far as is known."""
        return [
            pod
            for uid, pod in self.pods.items()
            if uid not in self.gone and has_started(pod) and not ending(pod)
        ]


def read_indexes(text: str) -> set[int]:
    """Read indexes as Kubernetes writes them: `0,2-4`."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def condition(item: Object, kind: str) -> Object | None:
    """Give a condition that holds."""
    for found in item.get("status", {}).get("conditions") or []:
        if found["type"] == kind and found["status"] == "True":
            return dict(found)
    return None


def container_state(pod: Object) -> Object:
    """Give the state of the job's container, with its `restartCount`."""
    for status in pod.get("status", {}).get("containerStatuses") or []:
        if status["name"] == CONTAINER:
            return {**(status.get("state") or {}), "restartCount": status.get("restartCount", 0)}
    return {"restartCount": 0}


def has_started(pod: Object) -> bool:
    """Tell whether the job's container runs or ran."""
    state = container_state(pod)
    if state["restartCount"] or "running" in state:
        return True
    return "terminated" in state and state["terminated"].get("reason") not in NOT_STARTED


def ending(pod: Object) -> Object | None:
    """Give how the job's container ended: `exitCode`, `reason`, `message`; None if it did not."""
    return container_state(pod).get("terminated")


def index_of(pod: Object) -> int:
    """Give the index of an Indexed Job's pod, 0 for any other."""
    return int((pod["metadata"].get("annotations") or {}).get(INDEX, 0))
