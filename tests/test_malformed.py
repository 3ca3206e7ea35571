"""Broken, odd and hostile image files: alone in a process that is watched, and through the job."""

from __future__ import annotations

import json
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_colours
from malformed import HTML, Case, cases
from modules import write_pooling

# A limit for what hangs; the worst file there is takes 2 seconds of an idle core.
MOST_CPU_SECONDS = 5
MOST_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a file: why it was refused, or "", and what that cost."""

    name: str
    reason: str
    sound: bool
    cpu_seconds: float
    peak_bytes: int


def memory(key: str) -> int:
    """Give a figure in bytes from what the kernel knows of this process."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def watched(source: Path, target: Path) -> None:
    """Load the pickled cases; what became of each is added to the target before the next one.

    A file that takes too long, and one that brings the process down, leaves no line there.
    """
    from job.images import UnreadableImage, loader

    load = loader((32, 32))
    found = pickle.loads(source.read_bytes())  # noqa: S301 - the test has just written it
    with target.open("w") as file:
        for case in found:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
            start, began = memory("VmRSS"), time.process_time()
            signal.setitimer(signal.ITIMER_PROF, MOST_CPU_SECONDS)
            reason, sound = "", True
            try:
                pixels = load(case.contents)
                sound = bool(np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1)
                sound = sound and pixels.shape == (32, 32, 3) and pixels.dtype == np.float32
            except UnreadableImage as error:
                reason = error.reason
                sound = bool(reason)
            signal.setitimer(signal.ITIMER_PROF, 0)
            cost = (time.process_time() - began, memory("VmHWM") - start)
            print(json.dumps([case.name, reason, sound, *cost]), file=file, flush=True)


def outcomes(found: list[Case], folder: Path) -> list[Outcome]:
    """Load the cases in another process; AssertionError when one of them ends it."""
    source, target = folder / "cases.pickle", folder / "outcomes"
    source.write_bytes(pickle.dumps(found))
    command = [sys.executable, __file__, str(source), str(target)]
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        command, env=path, capture_output=True, text=True, timeout=280, check=False
    )
    told = [Outcome(*json.loads(line)) for line in target.read_text().splitlines()]
    stopped_at = found[len(told)].name if len(told) < len(found) else "the end"
    assert done.returncode == 0, f"{stopped_at}: ended with {done.returncode}: {done.stderr[-500:]}"
    return told


@pytest.fixture(scope="module")
def all_cases() -> list[Case]:
    """Every case; read only."""
    return cases()


@pytest.fixture(scope="module")
def told(all_cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """What became of every case."""
    return outcomes(all_cases, tmp_path_factory.mktemp("malformed"))


def test_there_are_enough_of_them(all_cases: list[Case]) -> None:
    """At least 200 files of different names, the same ones every time."""
    assert len({case.name for case in all_cases}) == len(all_cases) >= 200
    assert [case.contents for case in cases()] == [case.contents for case in all_cases]


def test_each_is_read_or_refused_with_a_reason(all_cases: list[Case], told: list[Outcome]) -> None:
    """No file crashes or hangs the process: a picture in [0,1] or a reason, as is known of it."""
    assert all(outcome.sound for outcome in told)
    wrong = [
        (outcome.name, outcome.reason)
        for case, outcome in zip(all_cases, told, strict=True)
        if case.readable is not None and case.readable != (not outcome.reason)
    ]
    assert wrong == []


def test_no_file_takes_more_than_a_gibibyte(told: list[Outcome]) -> None:
    """The process never grows by more than 1 GiB for one file, and is seen to grow by hundreds."""
    most = max(told, key=lambda outcome: outcome.peak_bytes)
    assert 2**28 < most.peak_bytes <= MOST_BYTES, most


def test_the_watch_sees_what_it_is_there_to_see(tmp_path: Path) -> None:
    """A file that takes too long ends the process, and the message names it."""
    slow = Case("slow one", b"", None)
    program = tmp_path / "slow.py"
    program.write_text(
        f"import pathlib, pickle, test_malformed\n"
        f"import job.images\n"
        f"def forever(contents):\n    while True: pass\n"
        f"job.images.loader = lambda size: forever\n"
        f"test_malformed.MOST_CPU_SECONDS = 0.2\n"
        f"test_malformed.watched(pathlib.Path({str(tmp_path / 'in')!r}), "
        f"pathlib.Path({str(tmp_path / 'out')!r}))\n"
    )
    (tmp_path / "in").write_bytes(pickle.dumps([slow]))
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, program], env=path, check=False, timeout=120)
    assert done.returncode == -signal.SIGPROF
    assert (tmp_path / "out").read_text() == ""


class Elements(HTMLParser):
    """Collects the elements, and the names of all attributes, of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one."""
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_a_data_set_full_of_them_is_trained_on(
    all_cases: list[Case], told: list[Outcome], tmp_path: Path
) -> None:
    """The job publishes; it names what it skipped, and nothing of a file becomes HTML."""
    data = write_colours(tmp_path / "data")
    # One process holds all of it; the costly ones have been watched one by one above.
    chosen = {outcome.name for outcome in told if outcome.peak_bytes < 2**27}
    for case in all_cases:
        if case.name in chosen:
            (data / "cyan" / f"{case.name}.jpg").write_bytes(case.contents)
    refused = {f"cyan/{o.name}.jpg" for o in told if o.name in chosen and o.reason}
    assert len(refused) > 100
    module = write_pooling(tmp_path / "module")
    command = [sys.executable, "-m", "job", "run", "--name", "colours", "--data", str(data)]
    command += ["--models", str(tmp_path / "models"), "--backbone", str(module)]
    command += ["--max-skipped", "100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["status"] == "published"
    assert result["images"]["skipped"] == len(refused)
    version = Path(result["uri"])
    skipped = json.loads((version / "manifest.json").read_text())["inputs"]["data"]["skipped"]
    assert {item["name"] for item in skipped} == refused
    assert all(item["reason"] for item in skipped)
    page = (version / "report/index.html").read_text()
    elements = Elements()
    elements.feed(page)
    assert "img" in elements.found or "svg" in elements.found
    assert "script" not in elements.found
    assert not [name for name in elements.attributes if name.startswith("on")]
    assert HTML.decode() not in page


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watched(Path(sys.argv[1]), Path(sys.argv[2]))
