"""A process that was told to stop, or that stands still, is gone when it was said to be."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

Start = Callable[..., subprocess.Popen[str]]

# A process that is watched: `deaf` is a main thread that no Python code of ours can interrupt.
PROGRAM = """
import ctypes, json, sys, threading, time
from job.guard import GUARD, Terminated, beat, leave

def last_words(error, doing):
    print(json.dumps({"error": type(error).__name__, "message": str(error), "doing": doing}))
    sys.stdout.flush()

def deaf():
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)

GUARD.last_words = last_words
GUARD.stop_timeout = 1.0
with GUARD.watching():
    print("ready", flush=True)
    try:
        BODY
    except (Terminated, KeyboardInterrupt) as error:
        print(type(error).__name__)
        AFTER
leave(7)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that starts the program with a body and waits until it is ready."""
    started: list[subprocess.Popen[str]] = []

    def begin(body: str, after: str = "pass") -> subprocess.Popen[str]:
        code = textwrap.dedent(PROGRAM).replace("BODY", body).replace("AFTER", after)
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ending(process: subprocess.Popen[str], *numbers: int) -> tuple[int, list[str]]:
    """Send signals; give the exit code and what was said since."""
    for number in numbers:
        time.sleep(0.5)  # it has said that it is ready to do this, not that it is doing it
        process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    return process.returncode, said.splitlines()


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "Terminated"), (signal.SIGINT, "KeyboardInterrupt")]
)
def test_a_signal_is_an_exception_of_the_main_thread(start: Start, number: int, name: str) -> None:
    """What ends in time ends by itself, with its own exit code and no last words."""
    assert ending(start("time.sleep(60)"), number) == (7, [name])


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGTERM, 143, "Stopped"), (signal.SIGINT, 130, "KeyboardInterrupt")],
)
def test_a_deaf_process_is_gone_after_its_budget(
    start: Start, number: int, code: int, name: str
) -> None:
    """A main thread inside C code never sees the signal; the guard says so and where it was."""
    found, said = ending(start("deaf()"), number)
    assert found == code
    words = json.loads(said[-1])
    assert words["error"] == name
    assert "still busy 1 s later" in words["message"]
    assert "in deaf" in words["doing"]


def test_a_second_signal_ends_the_process_at_once(start: Start) -> None:
    """Even where the first one is being dealt with, and whatever the budget."""
    process = start("GUARD.stop_timeout = 60; time.sleep(60)", after="time.sleep(60)")
    code, said = ending(process, signal.SIGTERM, signal.SIGTERM)
    assert code == 143
    assert json.loads(said[-1])["doing"] == ""
    process = start("GUARD.stop_timeout = 60; deaf()")
    assert ending(process, signal.SIGTERM, signal.SIGINT)[0] == 130


LOSING = """
class Losing:
    def __del__(self):
        time.sleep(1)  # the signal arrives here, and its exception is dropped

Losing()
print("went on", flush=True)
time.sleep(60)
"""


def test_a_signal_whose_exception_was_lost_is_raised_again(start: Start) -> None:
    """Python drops what is raised in a finaliser; the process ends by itself all the same."""
    body = f"GUARD.stop_timeout = 60; exec({LOSING!r})"
    code, said = ending(start(body), signal.SIGTERM)
    assert (code, said) == (7, ["went on", "Terminated"])


def test_a_signal_that_became_another_error_is_remembered(start: Start) -> None:
    """C code may put an error of its own in the place of the signal's; the guard knows better."""
    body = (
        "exec('try: time.sleep(60)\\nexcept BaseException: print(GUARD.raised.__name__)\\n"
        "GUARD.settle(); print(GUARD.raised)')"
    )
    assert ending(start(body), signal.SIGTERM) == (7, ["Terminated", "None"])


def test_a_process_on_its_way_out_is_not_interrupted_again(start: Start) -> None:
    """What it saves takes longer than a few looks of the guard."""
    body = "GUARD.stop_timeout = 60; exec('try: time.sleep(60)\\nfinally: time.sleep(3)')"
    code, said = ending(start(body, after="time.sleep(3); print('saved')"), signal.SIGTERM)
    assert (code, said) == (7, ["Terminated", "saved"])


def test_what_is_done_is_told_as_done(start: Start) -> None:
    """Once a process has settled, a signal changes nothing about how it ends."""
    body = "GUARD.stop_timeout = 60; GUARD.settle(); time.sleep(3); print('done')"
    assert ending(start(body), signal.SIGTERM) == (7, ["done"])


def test_a_process_that_stands_still_is_ended_with_its_stacks(start: Start) -> None:
    """Exit code 138, since the next try may not meet what it waited for."""
    code, said = ending(start("GUARD.stall_timeout = 1.0; threading.Event().wait()"))
    assert code == 138
    words = json.loads(said[-1])
    assert words["error"] == "UnavailableError"
    assert "MainThread" in words["doing"]
    assert "wait" in words["doing"]


def test_a_process_that_gets_on_is_left_alone(start: Start) -> None:
    """Beats from any thread count, however long it takes."""
    body = "GUARD.stall_timeout = 1.0; [(time.sleep(0.3), beat()) for _ in range(10)]"
    assert ending(start(body)) == (7, [])


def test_a_frozen_process_is_no_stalled_one(start: Start) -> None:
    """Time in which it could not run does not count."""
    process = start("GUARD.stall_timeout = 2.0; [(time.sleep(0.1), beat()) for _ in range(20)]")
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    assert ending(process) == (7, [])


def test_nobody_is_waited_for_at_the_end(start: Start) -> None:
    """A thread in the middle of a request does not keep the process."""
    body = "threading.Thread(target=time.sleep, args=[60]).start()"
    assert ending(start(body)) == (7, [])


def test_last_words_that_nobody_reads_do_not_keep_the_process(tmp_path: Path) -> None:
    """A full pipe on the other end of stdout delays the end by seconds only."""
    code = textwrap.dedent(PROGRAM).replace("BODY", "deaf()").replace("AFTER", "pass")
    code = code.replace('"doing": doing', '"doing": "x" * 10_000_000')
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    process.stdout.close()
