"""Follows a Job to its end, and gives what came of it."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from dataclasses import asdict, dataclass
from typing import Any

from job.errors import RegraftError, Stopped, UnavailableError
from job.progress import log
from job.result import Result
from job.submit.cluster import Cluster
from job.submit.explain import decisive, failure_of, result_of, success_of
from job.submit.render import Object
from job.submit.show import Screen
from job.submit.state import State, ending, has_started
from job.submit.tell import Teller
from job.submit.watching import Broken, Line, Listed, LogEnd, Watching

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
        self._cluster = cluster
        self._state = State(job)
        self._watching = Watching(cluster)
        self._teller = Teller(self._state, self._watching, screen)
        self._timeout = start_timeout
        self._deadline = time.monotonic() + start_timeout if start_timeout else float("inf")
        labels = job["spec"]["selector"]["matchLabels"]
        self._core = f"/api/v1/namespaces/{job['metadata']['namespace']}"
        about = f"involvedObject.kind=Job,involvedObject.name={self._state.name}"
        self._about = ("fieldSelector", about)
        self._selector = ("labelSelector", ",".join(f"{k}={v}" for k, v in labels.items()))

    def follow(self) -> Outcome:
        """Wait for the end; UnavailableError when the API is lost, or no pod starts in time."""
        name, jobs = self._state.name, self._cluster.path_of(self._state.job).rpartition("/")[0]
        self._watching.watch("jobs", jobs, ("fieldSelector", f"metadata.name={name}"))
        self._watching.watch("pods", f"{self._core}/pods", self._selector)
        self._watching.watch("events", f"{self._core}/events", self._about)
        try:
            while not (self._state.finished() or self._state.deleted):
                self._take()
                self._check_start()
            self._wait_for_the_rest()
            self._teller.tell_end()
            return self._outcome()
        finally:
            self._watching.stop()

    def _take(self) -> None:
        """Take what has happened, for at most a tick if nothing does, and tell it."""
        timeout: float | None = TICK
        with contextlib.suppress(queue.Empty):
            while True:
                change = self._watching.changes.get(timeout=timeout)
                timeout = 0
                if isinstance(change, Line):
                    self._teller.show(change)
                elif isinstance(change, LogEnd):
                    self._teller.note_end(change)
                    break
                elif isinstance(change, Broken):
                    self._give_up(change)
                else:
                    self._state.take(change)
                    break
        self._teller.tell()

    def _give_up(self, broken: Broken) -> None:
        """Raise what ends the following; without events or logs it goes on."""
        if broken.kind in ("jobs", "pods"):
            if isinstance(broken.error, RegraftError):
                broken.error.hint += f"; the Job goes on: `{self._state.command('get job ')}`"
            raise broken.error
        self._teller.once(logging.WARNING, str(broken.error), broken.kind)

    def _look(self) -> None:
        """Look at pods and events as they are now, whatever their watches have brought."""
        for kind, selector in (("pods", self._selector), ("events", self._about)):
            path = f"{self._core}/{kind}"
            with contextlib.suppress(RegraftError):  # what their watches have brought must do
                found = self._cluster.request("GET", path, query=[selector], doing=f"list {kind}")
                self._state.take(Listed(kind, found["items"]))
        self._teller.tell()

    def _has_started(self) -> bool:
        return any(map(has_started, self._state.pods.values()))

    def _check_start(self) -> None:
        """Delete the Job and raise why, when no pod has started in time or none ever will."""
        if self._has_started() or self._state.finished():
            return
        trouble = self._teller.trouble
        if not (trouble and trouble.hopeless) and time.monotonic() < self._deadline:
            return
        self._look()
        if self._has_started():
            return
        error = self._not_started()
        name = self._state.name
        try:
            self._cluster.delete(self._state.job)
            log(f"Job {name} is deleted", job=name)
        except RegraftError as failed:
            log(f"Job {name} is left: {failed}", level=logging.WARNING, job=name)
        raise error

    def _not_started(self) -> RegraftError:
        if self._teller.trouble:
            return self._teller.trouble.error(self._state.name)
        said = ""
        for pod in self._state.in_order():
            query = [("fieldSelector", f"involvedObject.uid={pod['metadata']['uid']}")]
            path = f"{self._core}/events"
            with contextlib.suppress(RegraftError):  # not everybody may read them
                found = self._cluster.request("GET", path, query=query, doing="read events")
                warnings = [e["message"] for e in found["items"] if e.get("type") == "Warning"]
                said = f": {warnings[-1]}" if warnings else said
        after = f" within {self._timeout:g} s" if self._timeout else ""
        return UnavailableError(
            f"no pod of Job {self._state.name} has started{after}{said}",
            hint="look at the cluster's events; --start-timeout says how long to wait",
        )

    def _wait_for_the_rest(self) -> None:
        """Wait until the pods have ended as well and all of their logs are here."""
        spec = self._state.job["spec"]["template"]["spec"]
        end = time.monotonic() + spec.get("terminationGracePeriodSeconds", 30) + GRACE
        self._look()
        while self._state.running() or self._watching.reading():
            if time.monotonic() > end:
                break
            self._take()
        while not self._watching.changes.empty():
            self._take()

    def _outcome(self) -> Outcome:
        state, found = self._state, self._state.finished()
        if found and (found["type"] == "Complete" or state.has_what_it_needs()):
            return Outcome(success_of(state))
        pod = decisive(state)
        if found is None:
            hint = "whoever deleted it knows why; the same command submits it again"
            error: RegraftError = Stopped(f"Job {state.name} was deleted", hint=hint)
        elif pod and has_started(pod):
            error = failure_of(pod, late=found.get("reason") == "DeadlineExceeded")
        elif self._teller.trouble:
            error = self._teller.trouble.error(state.name)
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
