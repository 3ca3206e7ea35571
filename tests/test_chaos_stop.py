"""Jobs that are told to stop do so in time, and one that did not would be seen."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import chaos_stop
import pytest
from attempts import PHASES
from chaos_stop import EXEC, Case, Ended, find_problems, hears

from job.publish import Listing

EMPTY = Listing((), (), (), (), ())
PREEMPTED = {"status": "preempted", "version": None}
PUBLISHED = {"status": "published", "version": 7}
WHOLE = dataclasses.replace(EMPTY, versions=(7,))


def ended(result: dict[str, Any] | None = None, **changes: Any) -> Ended:
    """Make a job that was stopped in `fit` as it should be, but for the changes."""
    result = PREEMPTED if result is None else result
    text = json.dumps(result, separators=(",", ":")) + "\n"
    good = Ended(143, 0.5, result, text, EMPTY, 3, 4, "fit", "")
    return dataclasses.replace(good, **changes)


@pytest.mark.parametrize(
    ("case", "job", "found"),
    [
        (Case("fit"), ended(), ""),
        (Case("fit"), ended(seconds=25.0), "expected at most 21"),
        (Case("fit", twice=True), ended(seconds=6.0), "expected at most 5"),
        (Case("fit"), ended(code=-15), "exit code -15"),
        (Case(EXEC), ended(code=-15, result={}, file=""), ""),
        (Case("fit"), ended(code=1), "expected 143"),
        (Case("fit", number=signal.SIGINT), ended(), "expected 130"),
        (Case("fit"), ended({}, file=""), "says None"),
        (Case("start"), ended({}, moment="start", file=""), ""),
        (Case("fit"), ended({"status": "failed"}), "says failed"),
        (Case("fit"), ended(file="{"), "--result-file"),
        (Case("fit"), ended(after=2), "2 are left"),
        (Case("fit"), ended(listing=dataclasses.replace(EMPTY, partial=(7,))), "partial"),
        (Case("publish"), ended(violations=("version 7 vanished",)), "version 7 vanished"),
        (Case("publish"), ended(PUBLISHED, code=0), "versions []"),
        (
            Case("publish"),
            ended(PUBLISHED, code=0, listing=WHOLE),
            "",
        ),
        (Case("publish"), ended(code=0), "with preempted"),
        (
            Case("publish"),
            ended(
                PUBLISHED, code=0, seconds=8.0, listing=dataclasses.replace(EMPTY, versions=(7,))
            ),
            "it went on for 8.0 s",
        ),
        (
            Case("publish", "fake-gcs-server"),
            ended(listing=dataclasses.replace(EMPTY, partial=(7,))),
            "",
        ),
    ],
)
def test_how_a_job_ended_is_judged(case: Case, job: Ended, found: str) -> None:
    """Late, another exit code, no result, half a version, fewer embeddings: each is named."""
    problems = list(find_problems(case, job))
    assert bool(problems) == bool(found), problems
    assert found in "".join(problems)


def test_a_handler_is_seen() -> None:
    """Whether a process hears a signal is read from what the kernel says."""
    assert not hears(os.getpid(), signal.SIGUSR1)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        assert hears(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_stopped_jobs() -> None:
    """SIGTERM in each phase, a second one, SIGINT: the job is gone in time and says why."""
    script = Path(chaos_stop.__file__)
    done = subprocess.run(
        [sys.executable, script, "--short"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line[:1] == "|"]
    assert {row[0] for row in rows[2:]} >= {f"{phase}, SIGTERM" for phase in PHASES}
    assert all(row[3] == "1" for row in rows[2:])
