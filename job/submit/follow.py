"""Follows a Job to its end: tells each change once, shows the logs, and gives what came of it."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from job.errors import RegraftError, Stopped, UnavailableError
from job.progress import log
from job.result import Result
from job.submit.cluster import Cluster
from job.submit.explain import (
    Trouble,
    decisive,
    disruption,
    failure_of,
    job_trouble,
    pod_trouble,
    result_of,
    success_of,
)  # fmt: skip
from job.submit.render import Object
from job.submit.show import Screen
from job.submit.state import State, container_state, ending, has_started, index_of
from job.submit.watching import Broken, Line, Listed, Watching

# Seconds between two looks at the clock; a change is dealt with at once.
TICK = 0.5
# Seconds that a pod may take to end beyond its own grace period, and its log to come.
GRACE = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a Job: its result, and the error that it ended with, if it failed."""

    result: dict[str, Any]
    error: RegraftError | None = None


class Follower:
    """Follows one Job."""

    def __init__(self, cluster: Cluster, job: Object, screen: Screen, start_timeout: float) -> None:
        """Follow `job`, which is deleted when no pod has started in time; 0 means for ever."""
        self._cluster, self._screen = cluster, screen
        self._state = State(job)
        self._watching = Watching(cluster)
        self._timeout = start_timeout
        self._deadline = time.monotonic() + start_timeout if start_timeout else float("inf")
        self._told: set[tuple[object, ...]] = set()
        self._first: dict[tuple[str, str], Trouble] = {}
        self._trouble: Trouble | None = None
        self._logs: dict[tuple[str, int], threading.Event] = {}

    def follow(self) -> Outcome:
        """Wait for the end; UnavailableError when the API is lost, or no pod starts in time."""
        metadata = self._state.job["metadata"]
        place, name = metadata["namespace"], metadata["name"]
        jobs = self._cluster.path_of(self._state.job).rpartition("/")[0]
        labels = self._state.job["spec"]["selector"]["matchLabels"]
        self._pods = f"/api/v1/namespaces/{place}/pods"
        self._selector = ("labelSelector", ",".join(f"{k}={v}" for k, v in labels.items()))
        self._watching.watch("jobs", jobs, ("fieldSelector", f"metadata.name={name}"))
        self._watching.watch("pods", self._pods, self._selector)
        about = f"involvedObject.kind=Job,involvedObject.name={name}"
        events = f"/api/v1/namespaces/{place}/events"
        self._watching.watch("events", events, ("fieldSelector", about))
        try:
            while not (self._state.finished() or self._state.deleted):
                self._take()
                self._tell()
                self._check_start()
            self._wait_for_the_rest()
            return self._outcome()
        finally:
            self._watching.stop()

    def _take(self) -> None:
        """Take what has happened, for at most a tick if nothing does."""
        timeout: float | None = TICK
        try:
            while True:
                change = self._watching.changes.get(timeout=timeout)
                if isinstance(change, Line):
                    self._screen.line(index_of(self._state.pods[change.pod]), change.text)
                elif isinstance(change, Broken):
                    self._give_up(change)
                else:
                    self._state.take(change)
                    return
                timeout = 0
        except queue.Empty:
            return

    def _give_up(self, broken: Broken) -> None:
        """Raise what ends the following; without events or logs it goes on."""
        if broken.kind in ("jobs", "pods"):
            if isinstance(broken.error, RegraftError):
                broken.error.hint += f"; the Job goes on: `{self._state.command('get job ')}`"
            raise broken.error
        self._once(logging.WARNING, str(broken.error), broken.kind)

    def _once(self, level: int, message: str, *key: object, **fields: object) -> None:
        if key not in self._told:
            self._told.add(key)
            log(message, level=level, **fields)

    def _tell(self) -> None:
        """Log every change that has not been told, and read the logs of pods that have begun."""
        for number, pod in enumerate(self._state.in_order(), 1):
            self._tell_pod(pod, number)
        self._tell_trouble()
        found = self._state.finished()
        if found:
            words = f"Job {self._state.name} is complete"
            if found["type"] == "Failed":
                why = f"{found.get('reason', '')}, {found.get('message', '')}"
                words = f"Job {self._state.name} has failed: {why}"
            self._once(logging.INFO, words, "finished", job=self._state.name)
        elif self._state.deleted:
            self._once(logging.WARNING, f"Job {self._state.name} was deleted", "deleted")

    def _tell_pod(self, pod: Object, number: int) -> None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        count = container_state(pod)["restartCount"]
        if has_started(pod):
            node = pod["spec"].get("nodeName", "?")
            self._once(logging.INFO, f"pod {name} runs on {node}", uid, count, "runs", pod=name)
            self._read_log(pod, count)
        over = bool(ending(pod)) or uid in self._state.gone
        for key, event in self._logs.items():
            if key[0] == uid and (over or key[1] < count):
                event.set()
        if why := disruption(pod):
            words = f"pod {name} is taken from its node: {why}"
            self._once(logging.WARNING, words, uid, "disrupted", pod=name)
        if (ended := ending(pod)) and ended.get("exitCode"):
            tries = self._state.job["spec"].get("backoffLimit", 6)
            error = failure_of(pod)
            self._once(
                logging.WARNING, f"try {number} (backoffLimit {tries}): {error}", uid, count, "end",
                pod=name, exit_code=ended["exitCode"],
            )  # fmt: skip

    def _read_log(self, pod: Object, count: int) -> None:
        key = (pod["metadata"]["uid"], count)
        if key not in self._logs and key[0] not in self._state.gone:
            self._logs[key] = threading.Event()
            self._watching.read_log(pod, self._logs[key])

    def _tell_trouble(self) -> None:
        """Tell what keeps the pods from starting; the first words of a kind say most."""
        living = [p for uid, p in self._state.pods.items() if uid not in self._state.gone]
        troubles = [(p["metadata"]["uid"], pod_trouble(p)) for p in living]
        troubles.append(("", job_trouble(self._state)))
        if living:
            self._trouble = None  # whatever kept a pod from starting may be over
        for uid, trouble in troubles:
            if trouble is not None:
                self._trouble = self._first.setdefault((uid, trouble.kind), trouble)
                words = self._trouble.message
                self._once(logging.WARNING, words, uid, trouble.kind, hint=trouble.hint)

    def _check_start(self) -> None:
        """Delete the Job and raise why, when no pod has started in time or none ever will."""
        if any(map(has_started, self._state.pods.values())) or self._state.finished():
            return
        hopeless = self._trouble is not None and self._trouble.hopeless
        if not hopeless and time.monotonic() < self._deadline:
            return
        self._look()
        self._tell()
        if any(map(has_started, self._state.pods.values())):
            return
        error = self._not_started()
        try:
            self._cluster.delete(self._state.job)
            log(f"Job {self._state.name} is deleted", job=self._state.name)
        except RegraftError as failed:
            log(f"Job {self._state.name} is left: {failed}", level=logging.WARNING)
        raise error

    def _not_started(self) -> RegraftError:
        if self._trouble:
            return self._trouble.error(self._state.name)
        said = ""
        for pod in self._state.in_order():
            query = [("fieldSelector", f"involvedObject.uid={pod['metadata']['uid']}")]
            path = self._pods.removesuffix("pods") + "events"
            with contextlib.suppress(RegraftError):  # not everybody may read them
                found = self._cluster.request("GET", path, query=query, doing="read events")
                warnings = [e["message"] for e in found["items"] if e.get("type") == "Warning"]
                said = warnings[-1] if warnings else said
        after = f" within {self._timeout:g} s" if self._timeout else ""
        return UnavailableError(
            f"no pod of Job {self._state.name} has started{after}" + (f": {said}" if said else ""),
            hint="look at the cluster's events; --start-timeout says how long to wait",
        )

    def _wait_for_the_rest(self) -> None:
        """Wait until the pods have ended as well and all of their logs are here."""
        spec = self._state.job["spec"]["template"]["spec"]
        end = time.monotonic() + spec.get("terminationGracePeriodSeconds", 30) + GRACE
        self._look()
        self._tell()
        while self._state.running() or self._watching.reading():
            if time.monotonic() > end:
                break
            self._take()
            self._tell()
        while not self._watching.changes.empty():
            self._take()

    def _look(self) -> None:
        """Look at the pods as they are now, whatever their watch has brought."""
        found = self._cluster.request("GET", self._pods, query=[self._selector], doing="list pods")
        self._state.take(Listed("pods", found["items"]))

    def _outcome(self) -> Outcome:
        state, found = self._state, self._state.finished()
        if found and found["type"] == "Complete":
            return Outcome(success_of(state))
        pod = decisive(state)
        if found is None:
            hint = "whoever deleted it knows why; the same command submits it again"
            error: RegraftError = Stopped(f"Job {state.name} was deleted", hint=hint)
        elif pod and has_started(pod):
            error = failure_of(pod, late=found.get("reason") == "DeadlineExceeded")
        elif self._trouble:
            error = self._trouble.error(state.name)
        else:
            words = f"{found.get('reason', 'failed')}: {found.get('message', '')}"
            hint = "look at the log above; the same command may work later"
            error = UnavailableError(f"Job {state.name} failed: {words}", hint=hint)
        result = result_of(ending(pod) or {}) if pod else {}
        if not result:
            failed = Result()
            failed.fail(error)
            result = asdict(failed)
        return Outcome(result, error)
