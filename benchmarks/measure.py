"""Whole processes timed from outside, and what is worth knowing of the machine they ran on."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Timed:
    """One process from its start to its end, the processes that it started included.

    `seconds` is wall time, `cpu_seconds` user and system time on all cores, `peak_mb` the largest
    resident size of any one process.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Output:
    """A process that ended well: its times and what it printed."""

    timed: Timed
    text: str

    def last_json(self) -> Any:
        """Parse the last line of stdout."""
        return json.loads(self.text.strip().splitlines()[-1])


@dataclass(frozen=True, slots=True)
class Bench:
    """What every step is given: where it may write, how much it is to do, the figures so far."""

    work: Path
    quick: bool
    rounds: int

    @property
    def photos(self) -> Path:
        """Give the folder of the 500x375 set."""
        return self.work / "data/photos"

    @property
    def module(self) -> Path:
        """Give the folder of the backbone as a TF2 Hub module."""
        return self.work / "module"

    def environment(self, name: str) -> Path:
        """Give the `bin` of a foreign tool's own virtual environment; SystemExit if there is none.

        They do not depend on the work folder: `make bench` builds them once.
        """
        folder = ROOT / "build/bench-venvs" / name / "bin"
        if not (folder / "python").exists():
            sys.exit(
                f"{folder.parent} is missing: `make bench` builds it from benchmarks/{name}.txt"
            )
        return folder

    def run(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> Output:
        """Run a process and time it; its output goes to `<work>/logs/<name>.*`.

        SystemExit with the end of its log when it fails.
        """
        logs = self.work / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        out, err = logs / f"{name}.out", logs / f"{name}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            start = time.monotonic()
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdout=stdout,
                stderr=stderr,
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - start
        process.returncode = code = os.waitstatus_to_exitcode(status)
        if code:
            end = "\n".join(err.read_text(errors="replace").splitlines()[-20:])
            sys.exit(f"{name}: exit code {code}; the end of {err}:\n{end}")
        timed = Timed(
            seconds=round(seconds, 3),
            cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
            peak_mb=round(usage.ru_maxrss / 1024, 1),
        )
        print(f"  {name}: {timed.seconds:.1f} s, {timed.cpu_seconds:.1f} s of CPU", flush=True)
        return Output(timed, out.read_text(errors="replace"))

    def script(self, name: str, script: str, *arguments: str | Path) -> Output:
        """Run a script of this folder in the job's own environment."""
        return self.run(name, [sys.executable, ROOT / "benchmarks" / script, *arguments])


@dataclass(frozen=True, slots=True)
class Clock:
    """A moment, in seconds: of wall time, of CPU time used by all, and by this benchmark."""

    wall: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> Clock:
        """Read the clocks; processes of ours count once they have been waited for."""
        user, nice, system, _, _, irq, soft, steal = map(
            int, Path("/proc/stat").read_text().split()[1:9]
        )
        busy = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        own = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        return cls(time.monotonic(), busy, own)

    def others_since(self, start: Clock) -> float:
        """Give the share of all cores, in percent, that was used by others than this benchmark.

        A few percent are the kernel's own; much more says that figures are not of a quiet machine.
        """
        others = (self.busy - start.busy) - (self.own - start.own)
        return 100 * max(0.0, others) / ((self.wall - start.wall) * (os.cpu_count() or 1))


def machine() -> dict[str, Any]:
    """Give the facts without which a figure says nothing."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("tensorflow", "keras", "numpy")},
    }
