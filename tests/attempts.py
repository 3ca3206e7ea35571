"""Whole jobs as processes, for the scripts that kill and stop them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import ROOT, write_colours

from job.errors import ConfigError
from job.shards import list_shards, read_index
from job.storage import open_store

NAME = "colours"
PHASES = (
    "index", "backbone", "embed", "fit", "evaluate", "gate", "export", "verify", "publish",
)  # fmt: skip
# Before the first phase the process imports TensorFlow, after the last one it winds up.
MOMENTS = ("start", *PHASES, "end")
LONGEST = 300.0  # seconds; a job that takes longer hangs
PHOTOS = ("fruit", "mammal", "vehicle")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What every job of a store is given: where its images lie, and its backbone."""

    data: str
    backbone: Path


class Attempt:
    """A job as a process that finds its work folder and its TMPDIR empty."""

    def __init__(
        self, inputs: Inputs, models: str, room: Path, *options: str, tf_config: str = ""
    ) -> None:
        """Start it; all that it leaves but for the store goes to the new folder `room`."""
        self.room = room
        self.stdout, self.stderr = room / "stdout", room / "stderr"
        for name in ("work", "tmp"):
            (room / name).mkdir(parents=True)
        command = [sys.executable, "-m", "job", "run", "--log-format", "json", "--name", NAME]
        command += ["--data", inputs.data, "--models", models, "--work-dir", str(room / "work")]
        command += ["--result-file", str(room / "result.json"), *options]
        with self.stdout.open("wb") as stdout, self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, cwd=ROOT, start_new_session=True,
                env={**os.environ, "TMPDIR": str(room / "tmp"), "TF_CONFIG": tf_config},
            )  # fmt: skip

    def log(self) -> list[dict[str, Any]]:
        """Give the log's lines that are whole; TensorFlow's own notes are passed over."""
        lines = []
        for line in self.stderr.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                lines += [record] if isinstance(record, dict) else []
        return lines

    def moment(self) -> str:
        """Give the phase that began last."""
        messages = [str(line.get("message")) for line in self.log()]
        if any(message.startswith("publish: done") for message in messages):
            return "end"
        begun = [m.removesuffix(": started") for m in messages if m.endswith(": started")]
        return next((phase for phase in reversed(begun) if phase in PHASES), "start")

    def wait_for(self, phase: str) -> None:
        """Wait for the start line of a phase, or for the process to end."""
        line, end = f'"{phase}: started"'.encode(), time.monotonic() + LONGEST
        while line not in self.stderr.read_bytes() and self.process.poll() is None:
            if time.monotonic() > end:
                return
            time.sleep(0.003)

    def wait(self, seconds: float = LONGEST) -> int | None:
        """Give the exit code; None where the process still runs after these seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def kill(self) -> int:
        """Kill what is left of it, whatever it has started included; gives the exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def result(self) -> dict[str, Any]:
        """Give the JSON object of the last line on stdout; empty where that is none."""
        with contextlib.suppress(ValueError, IndexError):
            found = json.loads(self.stdout.read_text().splitlines()[-1])
            return found if isinstance(found, dict) else {}
        return {}

    def last_words(self) -> str:
        """Give the end of its stderr, for a message."""
        return self.stderr.read_text(errors="replace")[-2000:]


def small_steps(inputs: Inputs) -> list[str]:
    """Give the options by which many shards are saved in a run of seconds."""
    steps = ["--batch-size", "2", "--checkpoint-interval", "0.2", "--l2", "0.01"]
    return ["--backbone", str(inputs.backbone), *steps]


def write_inputs(folder: Path) -> Inputs:
    """Write squares of three colours and photos of three kinds, and a tiny module."""
    data = write_colours(folder / "data", 60)
    for kind in PHOTOS:
        shutil.copytree(ROOT / "samples/clipart" / kind, data / kind)
    return Inputs(str(data), write_module("pooling", folder))


def write_module(kind: str, folder: Path) -> Path:
    """Write a module of `modules`, `pooling` or `conv`, into a new folder below; gives that.

    In a process of its own: this one forks nothing later on, but TensorFlow takes 500 MB.
    """
    program = f"import pathlib, sys, modules; modules.write_{kind}(pathlib.Path(sys.argv[1]))"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    subprocess.run(
        [sys.executable, "-c", program, folder / kind], check=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": path, "TF_USE_LEGACY_KERAS": "1"},
    )  # fmt: skip
    return folder / kind


def upload(folder: Path, uri: str) -> str:
    """Put a folder's files into a bucket; gives its URI."""
    open_store(uri).put_tree(folder, "data")
    return f"{uri}/data"


def saved_embeddings(models: str) -> Counter[str]:
    """Count the embeddings in whole shards by the digest of their content.

    Raises DamagedShardError when a shard that a listing shows whole cannot be read.
    """
    store = open_store(f"{models}/.embeddings")
    found: Counter[str] = Counter()
    with contextlib.suppress(ConfigError):  # there is no such folder yet
        for listed in list_shards(store):
            if listed.is_whole:
                columns = read_index(store, listed).columns
                rows = columns.digests[columns.places >= 0]
                found.update(row.tobytes().hex() for row in rows)
    return found
