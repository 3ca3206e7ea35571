"""What happens in the cluster, as it happens: watches and logs, each read by a thread.

A connection that breaks, a version that has expired and a server that is away for a while are dealt
with here: a watch lists again, a log goes on behind the last line that came.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from job.progress import log
from job.submit.cluster import (
    LONGEST_PAUSE,
    PAUSE,
    WATCH_SECONDS,
    Cluster,
    Lost,
    Refused,
    explained,
    lines_of,
    out_of_reach,
)  # fmt: skip
from job.submit.render import CONTAINER, Object

GONE = 410
STAMP = re.compile(r"\d{4}-\d\d-\d\dT")
# Seconds that a stream may be silent after it should have ended by itself.
GRACE = 10


@dataclass(frozen=True, slots=True)
class Listed:
    """All objects of a kind, as they are now."""

    kind: str
    items: list[Object]


@dataclass(frozen=True, slots=True)
class Changed:
    """One object that is new, has changed or, with `gone`, was deleted."""

    kind: str
    item: Object
    gone: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a pod's log; `pod` is the pod's UID."""

    pod: str
    text: str


@dataclass(frozen=True, slots=True)
class Broken:
    """What can be watched no more, and why."""

    kind: str
    error: Exception


@dataclass(frozen=True, slots=True)
class LogEnd:
    """A log is read; `count` is how often the pod's container had been restarted before it."""

    pod: str
    count: int


Change = Listed | Changed | Line | LogEnd | Broken


class Watching:
    """Brings the changes of a Job together: `changes` has them in the order in which they came."""

    def __init__(self, cluster: Cluster) -> None:
        self.changes: queue.SimpleQueue[Change] = queue.SimpleQueue()
        self._cluster = cluster
        self._stopped = threading.Event()
        self._logs: list[threading.Thread] = []

    def watch(self, kind: str, path: str, *selector: tuple[str, str]) -> None:
        """Watch what is at a path, with a fieldSelector or labelSelector."""
        self._begin(self._watch, kind, path, list(selector))

    def read_log(self, pod: Object, count: int, over: threading.Event) -> None:
        """Read a pod's log until its end, `over` telling that its container has ended."""

        def read() -> None:
            self._read_log(pod, over)
            self.changes.put(LogEnd(pod["metadata"]["uid"], count))

        self._logs.append(self._begin(read))

    def reading(self) -> bool:
        """Tell whether a log is still being read."""
        return any(thread.is_alive() for thread in self._logs)

    def stop(self) -> None:
        """Let the threads end; one that waits for the server does so when that has answered."""
        self._stopped.set()

    def _begin(self, read: Callable[..., None], *arguments: Any) -> threading.Thread:
        def run() -> None:
            try:
                read(*arguments)
            except Exception as error:  # or else the main thread would wait for ever
                self.changes.put(Broken("jobs", error))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _watch(self, kind: str, path: str, selector: list[tuple[str, str]]) -> None:
        patience = Patience(self._cluster.timeout)
        while not self._stopped.is_set():
            try:
                answer = self._cluster.send("GET", path, timeout=WATCH_SECONDS, query=selector)
                found = _parsed(answer.read())
                self.changes.put(Listed(kind, found["items"]))
                patience.rest()
                self._go_on(kind, path, selector, found["metadata"]["resourceVersion"])
            except (Lost, Refused) as error:
                lasting = error if isinstance(error, Refused) and not error.passing else None
                # 401: a token that has run out is made anew by the next request.
                again = lasting is None or lasting.status in (GONE, 401)
                if not again or not patience.wait(tell=kind == "jobs", why=error):
                    doing = f"list {kind}"
                    told = explained(lasting, doing) if lasting else out_of_reach(error, doing)
                    self.changes.put(Broken(kind, told))
                    return

    def _go_on(self, kind: str, path: str, selector: list[tuple[str, str]], version: str) -> None:
        """Watch from a version on; raises Refused with 410 when that has expired."""
        while not self._stopped.is_set():
            query = [
                *selector, ("watch", "true"), ("resourceVersion", version),
                ("allowWatchBookmarks", "true"), ("timeoutSeconds", WATCH_SECONDS),
            ]  # fmt: skip
            answer = self._cluster.send("GET", path, timeout=WATCH_SECONDS + GRACE, query=query)
            for line in lines_of(answer):
                event = _parsed(line)
                item = event["object"]
                if event["type"] == "ERROR":
                    said = str(item.get("message", ""))
                    raise Refused(int(item.get("code", 500)), str(item.get("reason", "")), said)
                version = item["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    self.changes.put(Changed(kind, item, gone=event["type"] == "DELETED"))
            time.sleep(PAUSE)  # should the server end each watch at once

    def _read_log(self, pod: Object, over: threading.Event) -> None:
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/log"
        patience, place = Patience(self._cluster.timeout), Place()
        while not self._stopped.is_set():
            last = over.is_set()
            query = [("container", CONTAINER), ("follow", "true"), ("timestamps", "true")]
            query += [("sinceTime", place.stamp)] if place.stamp else []
            try:
                answer = self._cluster.send("GET", path, timeout=WATCH_SECONDS, query=query)
                for text in place.new(lines_of(answer)):
                    self.changes.put(Line(metadata["uid"], text))
                    patience.rest()
                if last:
                    return
                over.wait(PAUSE)
            except (Lost, Refused) as error:
                # 400: its container does not run yet, or has no log any more.
                waits = isinstance(error, Lost) or error.passing or error.status == 400
                if not waits or (last and isinstance(error, Refused)) or not patience.wait():
                    if not isinstance(error, Refused) or error.status in (401, 403):
                        words = error if isinstance(error, Refused) else Refused(0, "", str(error))
                        self.changes.put(Broken("log", explained(words, "read the log")))
                    return


class Place:
    """How far a log was read: the time of the last line, and how many lines of that time came."""

    def __init__(self) -> None:
        self.stamp, self._same = "", 0

    def new(self, lines: Iterator[bytes]) -> Iterator[str]:
        """Give the text of those lines that have not come before.

        A server starts at the full second, so that lines come again.
        """
        before, again = self.stamp, self._same
        for line in lines:
            stamp, _, text = line.decode(errors="replace").partition(" ")
            # What the kubelet itself says, as of a container that is gone, has no time.
            if stamp < before or not STAMP.match(stamp):
                continue
            if stamp == before and again:
                again -= 1
                continue
            self._same = self._same + 1 if stamp == self.stamp else 1
            self.stamp = stamp
            yield text


class Patience:
    """How long to go on with a server that does not answer."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.rest()

    def rest(self) -> None:
        """Note that it has answered."""
        self._since: float | None = None
        self._pause = PAUSE

    def wait(self, *, tell: bool = False, why: object = "") -> bool:
        """Wait a little, each time longer; False when it was long enough."""
        if tell and self._since is None and getattr(why, "status", 0) != GONE:
            log(f"the cluster's API does not answer: {why}; trying again", level=logging.WARNING)
        self._since = self._since or time.monotonic()
        if time.monotonic() + self._pause - self._since >= self._timeout:
            return False
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return True


def _parsed(text: bytes) -> Object:
    try:
        found: Object = json.loads(text)
    except ValueError as error:  # cut off in the middle
        raise Lost(f"an answer that is no JSON: {text[:80]!r}") from error
    return found
