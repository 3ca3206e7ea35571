"""`submit` with the real job in the pods, and what signals do to it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, write_colours
from kube_objects import KubeApi, Object
from modules import write_pooling
from submitting import Captured, config_map, overlay, submit
from test_submit_follow import meanwhile, running

RUN: Object = {
    "image": "registry/regraft:1", "command": None, "args": ["run"],
    "envFrom": [{"configMapRef": {"name": "options"}}],
}  # fmt: skip


@pytest.fixture
def job(tmp_path: Path) -> str:
    """An overlay whose container is the job, with squares for images and a tiny backbone."""
    data = config_map(
        REGRAFT_DATA=str(write_colours(tmp_path / "data", 20)),
        REGRAFT_MODELS=str(tmp_path / "models"),
        REGRAFT_NAME="squares",
        REGRAFT_BACKBONE=str(write_pooling(tmp_path / "module")),
        REGRAFT_WORK_DIR=str(tmp_path / "work"),
        REGRAFT_LOG_FORMAT="json",
    )
    return overlay(tmp_path, container=RUN, others=(data,))


def test_two_pods_share_the_work_and_one_resumes(
    capsys: Captured, kube: KubeApi, job: str, tmp_path: Path
) -> None:
    """An Indexed Job: both embed a share, index 0 is killed after that, and its next pod publishes.

    Options behind -- reach the job, and nothing is embedded twice.
    """
    file = Path(job)
    indexed = "spec:\n  completionMode: Indexed\n  completions: 2\n  parallelism: 2\n"
    file.write_text(file.read_text().replace("spec:\n", indexed, 1))

    def embedded() -> list[Object]:
        pods = [pod for pod in running(kube) if "-0-" in pod["metadata"]["name"]]
        logs = [kube.logs.get(pod["metadata"]["uid"], []) for pod in pods]
        return pods if any("embed: done" in text for log in logs for _, text in log) else []

    meanwhile(embedded, lambda pods: kube.signal(pods[0], signal.SIGTERM))
    options = ("--workers-count", "2", "--skip-doctor", "--l2", "0.001")
    done = submit(capsys, job, "--", *options)
    assert done.code == 0, done.err
    assert done.result["status"] == "published"
    assert done.result["metrics"]["test_accuracy"] == 1.0
    assert done.result["cache"]["hits"] == 60
    assert done.told("exit code 143 (stopped by SIGTERM)") == 1
    assert done.told("runs on node-1") == 3
    assert {json.loads(line).get("pod") for line in done.lines} >= {0, 1}


def test_bad_data_fails_the_job_at_once(
    capsys: Captured, kube: KubeApi, job: str, tmp_path: Path
) -> None:
    """The job's own exit code 3 is a FailJob rule: one pod, and its message and hint are ours."""
    (tmp_path / "few" / "cyan").mkdir(parents=True)
    done = submit(capsys, job, "--", "--data", str(tmp_path / "few"))
    assert done.code == 3
    assert done.told("runs on node-1") == 1
    assert done.told("PodFailurePolicy") >= 1
    assert done.result["error"]["type"] == "DataError"
    assert done.error["hint"] == done.result["error"]["hint"] != ""


@contextmanager
def on_a_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start `submit` on a terminal of its own; gives the process and the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "job", "submit", *arguments], cwd=ROOT, start_new_session=True,
        stdin=theirs, stdout=theirs, stderr=theirs,
        preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def take_terminal() -> None:
    """Make stdin the controlling terminal, so that Ctrl-C reaches the process."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until(terminal: int, words: str, seconds: float = 30) -> str:
    """Read a terminal until it shows these words; gives all that it showed."""
    shown, end = "", time.monotonic() + seconds
    while words not in shown:
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 4096).decode()
            except OSError:  # the other end is closed
                break
    assert words in shown, shown
    return shown


@pytest.mark.parametrize("answer", ["y", "n"])
def test_ctrl_c_asks_before_it_deletes(tmp_path: Path, kube: KubeApi, answer: str) -> None:
    """Yes deletes the Job and its pods; anything else leaves them and says how to reach them."""
    file = overlay(tmp_path, "echo ready; exec sleep 60")
    with on_a_terminal(file, "--job-name", "mine") as (process, terminal):
        read_until(terminal, "ready")
        os.write(terminal, b"\x03")
        read_until(terminal, "Delete Job mine? [y/N] ")
        os.write(terminal, answer.encode() + b"\n")
        words = "is deleted" if answer == "y" else "kubectl -n default logs -f job/mine"
        read_until(terminal, words)
        assert process.wait(timeout=30) == 130
    assert len(kube.list("jobs")) == (0 if answer == "y" else 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_without_a_terminal_leaves_the_job(
    tmp_path: Path, kube: KubeApi, number: int, code: int
) -> None:
    """A CI system that cancels does not decide over the Job; the result says how to reach it."""
    file = overlay(tmp_path, "echo ready; exec sleep 60")
    process = subprocess.Popen(
        [sys.executable, "-m", "job", "submit", file, "--job-name", "mine"], cwd=ROOT,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any("ready" in line for line in process.stderr)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    result = json.loads(out.splitlines()[-1])
    told = result["error"]["message"] + result["error"]["hint"]
    assert "Job mine is left" in told
    assert "`kubectl -n default delete job mine` ends it" in told
    assert len(kube.list("jobs")) == len(running(kube)) == 1


def test_kubectl_agrees_with_the_stand_in(tmp_path: Path, kube: KubeApi, capsys: Captured) -> None:
    """A client nobody here wrote reads the Job, its pod and its log from the same server."""
    assert submit(capsys, overlay(tmp_path, "echo hello"), "--job-name", "mine").code == 0
    kube.token = ""  # kubectl shows none where there is no TLS

    def kubectl(*arguments: str) -> str:
        command = [str(Path(sys.executable).parent / "kubectl"), *arguments]
        environment = {**os.environ, "HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    found = json.loads(kubectl("get", "job", "mine", "-o", "json"))
    assert found["status"]["conditions"][-1]["type"] == "Complete"
    (name,) = re.findall(r"pod/(mine-\S+)", kubectl("get", "pods", "-o", "name"))
    assert kubectl("logs", name) == "hello\n"
