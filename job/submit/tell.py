"""Tells what happens to a Job: each change once, in the order in which a reader wants it."""

from __future__ import annotations

import logging
import threading

from job.progress import log
from job.submit.explain import Trouble, disruption, failure_of, job_trouble, pod_trouble
from job.submit.render import Object
from job.submit.show import Screen
from job.submit.state import State, container_state, ending, has_started, index_of
from job.submit.watching import Line, LogEnd, Watching

# A container: its pod's UID, and how often it was restarted.
Container = tuple[str, int]


class Teller:
    """Logs what is new in a state, and begins to read the logs of pods that have started.

    `trouble` is what keeps the Job from starting, None where nothing is known to.
    """

    def __init__(self, state: State, watching: Watching, screen: Screen) -> None:
        self.trouble: Trouble | None = None
        self._state, self._watching, self._screen = state, watching, screen
        self._told: set[tuple[object, ...]] = set()
        self._first: dict[tuple[str, str], Trouble] = {}
        # The logs that are read: each with what says that its container has ended.
        self._logs: dict[Container, threading.Event] = {}
        self._read: set[Container] = set()

    def tell(self) -> None:
        """Log every change that has not been told."""
        for pod in self._state.in_order():
            self._tell_pod(pod)
        self._tell_trouble()

    def tell_end(self) -> None:
        """Log how the Job ended."""
        found, name = self._state.finished(), self._state.name
        if found is None:
            log(f"Job {name} was deleted", level=logging.WARNING, job=name)
        elif found["type"] == "Complete":
            log(f"Job {name} is complete", job=name)
        else:
            why = f"{found.get('reason', '')}, {found.get('message', '')}"
            if self._state.has_what_it_needs():
                why += (
                    "; what its successPolicy asks for has succeeded before, and that counts here"
                )
            log(f"Job {name} has failed: {why}", level=logging.WARNING, job=name)

    def once(self, level: int, message: str, *key: object, **fields: object) -> None:
        """Log a message unless there was one with this key."""
        if key not in self._told:
            self._told.add(key)
            log(message, level=level, **fields)

    def show(self, line: Line) -> None:
        """Show a line of a pod's log."""
        self._screen.line(index_of(self._state.pods[line.pod]), line.text)

    def note_end(self, end: LogEnd) -> None:
        """Note that a log is read, so that its container's end can be told."""
        self._read.add((end.pod, end.count))

    def _tell_pod(self, pod: Object) -> None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        count = container_state(pod)["restartCount"]
        gone = uid in self._state.gone
        if has_started(pod):
            node = pod["spec"].get("nodeName", "?")
            self.once(logging.INFO, f"pod {name} runs on {node}", uid, count, "runs", pod=name)
            if (uid, count) not in self._logs and not gone:
                self._logs[uid, count] = threading.Event()
                self._watching.read_log(pod, count, self._logs[uid, count])
        for key, event in self._logs.items():
            if key[0] == uid and (ending(pod) or gone or key[1] < count):
                event.set()
        if why := disruption(pod):
            words = f"pod {name} is taken from its node: {why}"
            self.once(logging.WARNING, words, uid, "disrupted", pod=name)
        # The end of a log explains the exit code: it comes first.
        read = (uid, count) in self._read or (uid, count) not in self._logs
        if read and (code := (ending(pod) or {}).get("exitCode")):
            self._tell_failure(pod, code)

    def _tell_failure(self, pod: Object, code: int) -> None:
        """Tell how a pod failed; of one that was deleted, not before it is clear what for."""
        state, uid, name = self._state, pod["metadata"]["uid"], pod["metadata"]["name"]
        spec, index = state.job["spec"], index_of(pod)
        tries = [p["metadata"]["uid"] for p in state.in_order() if index_of(p) == index]
        words = f"try {tries.index(uid) + 1}"
        if spec.get("completionMode") == "Indexed":
            words += f" of index {index}"
        limit = "backoffLimitPerIndex" if "backoffLimitPerIndex" in spec else "backoffLimit"
        words = f"{words} ({limit} {spec.get(limit, 6)}): {failure_of(pod)}"
        level, succeeds = logging.WARNING, state.succeeds()
        if "deletionTimestamp" in pod["metadata"]:
            if succeeds is None and not state.deleted and uid == tries[-1]:
                return  # the next pod of its index, or the Job's end, tells
            if succeeds:
                level, words = logging.INFO, f"pod {name} is stopped: the Job is done without it"
        count = container_state(pod)["restartCount"]
        self.once(level, words, uid, count, "end", pod=name, exit_code=code)

    def _tell_trouble(self) -> None:
        """Tell what keeps pods from starting; the first words of a kind say most."""
        living = [p for uid, p in self._state.pods.items() if uid not in self._state.gone]
        troubles = [(p["metadata"]["uid"], pod_trouble(p)) for p in living]
        troubles.append(("", job_trouble(self._state)))
        if living:
            self.trouble = None  # whatever kept a pod from starting may be over
        for uid, trouble in troubles:
            if trouble is not None:
                self.trouble = self._first.setdefault((uid, trouble.kind), trouble)
                words = self.trouble.message
                self.once(logging.WARNING, words, uid, trouble.kind, hint=trouble.hint)
