"""Why a Job does not get on, and what its end means, from what its objects say."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from job.documents import parse_object
from job.errors import (
    ConfigError,
    DataError,
    GateRejected,
    PublishError,
    RegraftError,
    Stopped,
    UnavailableError,
)  # fmt: skip
from job.submit.render import Object
from job.submit.state import NOT_STARTED, State, condition, container_state, ending, index_of

ERRORS = (ConfigError, DataError, GateRejected, PublishError, UnavailableError, Stopped)

MEANING = {
    1: "a bug", 2: "bad usage or configuration", 3: "bad data", 4: "rejected by the gate",
    5: "publish conflict or broken export", 126: "the image cannot start it",
    127: "the image does not have it", 130: "interrupted", 137: "killed",
    138: "a dependency is out", 143: "stopped by SIGTERM",
}  # fmt: skip

PULL = "check --image and the registry's credentials (imagePullSecrets of the ServiceAccount)"
SPEC = "mend the pod's spec in the overlay"

# What a container waits for: the words for it, what to do, whether waiting can help.
WAITING = {
    "ErrImagePull": ("the image cannot be pulled", PULL, True),
    "ImagePullBackOff": ("the image cannot be pulled", PULL, True),
    "RegistryUnavailable": ("the registry does not answer", PULL, True),
    "InvalidImageName": ("the image's name is none", "give an --image like host/name:tag", False),
    "ErrImageNeverPull": (
        "the image is not on the node, and imagePullPolicy is Never",
        "load the image into every node, or change imagePullPolicy", False,
    ),
    "CreateContainerConfigError": ("the container cannot be made", SPEC, True),
    "CreateContainerError": ("the container cannot be made", SPEC, True),
    "RunContainerError": ("the container cannot be started", SPEC, True),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps a pod from starting: told once for each `kind` and pod.

    `permanent` means that no retry will mend it (exit 2), `hopeless` that waiting will not either.
    """

    kind: str
    message: str
    hint: str
    permanent: bool = False
    hopeless: bool = False

    def error(self, job: str) -> RegraftError:
        """Give the error that ends a Job for it."""
        kind = ConfigError if self.permanent else UnavailableError
        return kind(f"no pod of Job {job} has started: {self.message}", hint=self.hint)


def pod_trouble(pod: Object) -> Trouble | None:
    """Give what keeps a pod from starting, None where nothing is known to."""
    state = container_state(pod)
    for waiting in waiting_states(pod):
        reason, said = waiting["reason"], str(waiting.get("message", ""))
        words, hint, hope = WAITING[reason]
        message = f"{words} ({reason}): {said}" if said else f"{words} ({reason})"
        permanent = reason != "RegistryUnavailable"
        return Trouble(words, message, hint, permanent=permanent, hopeless=not hope)
    if state.get("terminated", {}).get("reason") in NOT_STARTED:
        said = str(state["terminated"].get("message", ""))
        return Trouble("start", f"the image cannot start it: {said}", SPEC, permanent=True)
    for found in pod.get("status", {}).get("conditions") or []:
        if found["type"] == "PodScheduled" and found["status"] == "False":
            message = f"no node takes it: {found.get('message') or found.get('reason', '')}"
            return Trouble("node", message, "lower its requests, or add or free a node that fits")
    return None


def job_trouble(state: State) -> Trouble | None:
    """Give what keeps a Job from having a pod, None where nothing is known to."""
    if state.job["spec"].get("suspend"):
        return Trouble(
            "suspended",
            "the Job is suspended",
            "a queue admits it when there is room (Kueue: `kubectl get workloads`); without one, "
            "set suspend to false",
        )
    if len(set(state.pods) - state.gone) >= state.job["spec"].get("parallelism", 1):
        return None
    failed = [e for e in state.events.values() if e.get("reason") == "FailedCreate"]
    if not failed:
        return None
    said = str(failed[-1].get("message", ""))
    if "exceeded quota" in said:
        hint = "wait until other Jobs are done, or raise the namespace's ResourceQuota"
        return Trouble("quota", f"no pod can be made: {said}", hint)
    return Trouble("create", f"no pod can be made: {said}", SPEC, permanent=True)


def waiting_states(pod: Object) -> list[Object]:
    """Give why containers of a pod wait where it is no matter of time, init containers first."""
    status = pod.get("status", {})
    found = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    states = [dict((item.get("state") or {}).get("waiting") or {}) for item in found]
    return [state for state in states if state.get("reason") in WAITING]


def disruption(pod: Object) -> str:
    """Tell why a pod is taken from its node, empty where it is not."""
    if found := condition(pod, "DisruptionTarget"):
        return str(found.get("message") or found.get("reason", ""))
    status = pod.get("status", {})
    return str(status.get("message", "")) if status.get("reason") == "Evicted" else ""


def result_of(ended: Object) -> dict[str, Any]:
    """Give the result that a container left as its termination message, empty if it left none."""
    message = str(ended.get("message") or "").strip()
    for text in (message, message.rpartition("\n")[2]):
        with contextlib.suppress(ValueError):
            found = parse_object(text)
            if "status" in found:  # or it is a line of the log
                return found
    return {}


def last_words(ended: Object) -> dict[str, Any]:
    """Give the last line that a container left, as a line of the job's log: `message`, `hint`."""
    text = str(ended.get("message") or "").strip().rpartition("\n")[2]
    try:
        return parse_object(text)
    except ValueError:
        return {"message": text}


def failure_of(pod: Object, *, late: bool = False) -> RegraftError:
    """Give the error that a pod's container ended with, its exit code being the container's.

    `late`: it was stopped because the Job's deadline was over.
    """
    ended = ending(pod) or {}
    code = int(ended.get("exitCode", 1))
    told = result_of(ended).get("error") or last_words(ended)
    said = str(told.get("message", ""))
    hint = str(told.get("hint", ""))
    if ended.get("reason") == "OOMKilled":
        said = "its memory limit was reached (OOMKilled)"
        hint = "raise resources.limits.memory; the next try starts from the cache"
    if late:
        said = f"the Job's deadline was over. {said}"
        hint = "raise activeDeadlineSeconds, or submit it again: it goes on from what was saved"
    words = f"exit code {code} ({MEANING.get(code, 'unknown')})"
    name = pod["metadata"]["name"]
    return error_for(code, f"pod {name}: {words}" + (f": {said[:600]}" if said else ""), hint)


def error_for(code: int, message: str, hint: str) -> RegraftError:
    """Give the error of an exit code, or a plain one with that code where there is none."""
    for kind in ERRORS:
        if kind.exit_code == code:
            return kind(message, hint=hint)
    error = RegraftError(message, hint=hint)
    error.exit_code = code
    return error


def decisive(state: State) -> Object | None:
    """Give the pod that made a Job fail: the policy's own, the first permanent, or the last.

    Where an index has used up its tries, it is one of its pods: the others were stopped for it.
    """
    failed = [pod for pod in state.in_order() if (ending(pod) or {}).get("exitCode")]
    end = state.finished() or {}
    named = {name for _, name in re.findall(r"pod ([^/\s]+)/(\S+)", str(end.get("message", "")))}
    for pod in failed:
        if pod["metadata"]["name"] in named:
            return pod
    if end.get("reason") in ("FailedIndexes", "MaxFailedIndexesExceeded"):
        used_up = state.indexes("failedIndexes")
        failed = [pod for pod in failed if index_of(pod) in used_up]
    permanent = [pod for pod in failed if (ending(pod) or {})["exitCode"] < 128]
    return next(iter(permanent), failed[-1] if failed else None)


def success_of(state: State) -> dict[str, Any]:
    """Give the result of a Job that has succeeded: that of its first index."""
    done = [pod for pod in state.in_order() if (ending(pod) or {}).get("exitCode") == 0]
    for pod in sorted(done, key=index_of):
        return result_of(ending(pod) or {}) or {"status": "succeeded"}
    return {"status": "succeeded"}
