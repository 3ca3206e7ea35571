"""Whole jobs on a storage that fails: right results or a clear end, and nothing between them.

    python tests/chaos_storage.py [--short] [--seed N]

`python -m job run` from bucket to bucket, fake-gcs-server behind `fault_proxy.py`, which does every
kind of fault to a share of the requests, or to all of them from some moment on. A job must publish
the same weights and labels as one without faults, or end with exit code 138, a result that says so,
no version, and soon; the same command then publishes once storage is back. Prints a Markdown table;
exit code 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from conftest import ROOT, write_colours
from fault_proxy import Faults, fault_proxy
from gcs_server import fake_gcs_server, new_bucket
from modules import write_pooling

from job.errors import UnavailableError
from job.publish import read_listing
from job.storage import Store, open_store

NAME = "colours"
IMAGES = 40  # of each of three labels
# Seconds: a job that takes as much longer than the one without faults hangs.
HANGS = 600.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """How storage fails: at which rate, from which read on, and what the job may end with."""

    title: str
    rate: float
    times: int
    deadline: float
    exits: tuple[int, ...]
    reads: int = 0


UNAVAILABLE = UnavailableError.exit_code
LONG = (
    Scenario("1 % of requests", 0.01, 5, 60, (0,)),
    Scenario("10 % of requests", 0.10, 10, 60, (0,)),
    Scenario("30 % of requests", 0.30, 10, 60, (0, UNAVAILABLE)),
    Scenario("all, from the start", 1.0, 5, 10, (UNAVAILABLE,)),
    Scenario("all, from the middle of embedding", 1.0, 5, 10, (UNAVAILABLE,), reads=60),
)
SHORT = (
    Scenario("10 % of requests", 0.10, 1, 20, (0,)),
    Scenario("all, from the middle of embedding", 1.0, 1, 3, (UNAVAILABLE,), reads=60),
)


@dataclass(frozen=True, slots=True)
class Run:
    """How a job ended."""

    exit_code: int
    result: dict[str, Any]
    seconds: float
    log: str


@dataclass(slots=True)
class Tally:
    """What happened in one scenario."""

    title: str
    deadline: float
    exits: Counter[int] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    right: int = 0
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where jobs run: their data and backbone, the proxy before their buckets, a folder."""

    data: str
    backbone: Path
    faults: Faults
    work: Path

    def run(self, models: str, deadline: float) -> Run:
        """Run a job to its end; it starts with an empty work folder."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            options = {
                "data": self.data,
                "models": models,
                "name": NAME,
                "backbone": self.backbone,
                "work-dir": f"{folder}/work",
                "result-file": f"{folder}/result.json",
                "storage-deadline": deadline,
                "log-format": "json",
            }
            command = [sys.executable, "-m", "job", "run"]
            command += [part for k, v in options.items() for part in (f"--{k}", str(v))]
            log = Path(folder) / "log"
            start = time.monotonic()
            with log.open("wb") as stderr:
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT, timeout=HANGS
                )
            seconds = time.monotonic() - start
            lines = done.stdout.decode().splitlines()
            result = json.loads(lines[-1]) if lines else {}
            return Run(done.returncode, result, seconds, log.read_text())


def digest_of(models: Store, version: int) -> str:
    """Give one SHA-256 of the weights and the labels of a version."""
    whole = hashlib.sha256()
    names = [entry.name for entry in models.list(f"{version}/variables/variables.data")]
    for name in [*names, f"{version}/labels.txt"]:
        whole.update(models.read(name))
    return whole.hexdigest()


def judge(run: Run, scenario: Scenario, models: Store, wanted: str, usual: float) -> list[str]:
    """Give what is wrong about how a job ended."""
    wrong = []
    if run.exit_code not in scenario.exits:
        wrong.append(f"exit code {run.exit_code}: {run.result.get('error')}\n{run.log[-2000:]}")
    listing = read_listing(models)
    if run.exit_code == 0:
        wrong += judge_version(run, models, wanted)
    else:
        error = run.result.get("error") or {}
        if run.result.get("status") != "failed" or "later" not in error.get("hint", ""):
            wrong.append(f"the result does not tell of an outage: {run.result}")
        if listing.versions or listing.partial:
            wrong.append(f"it failed, and left versions {listing.versions + listing.partial}")
        # A request, and what is left to do on the way out; at 30 % some time goes by before.
        if scenario.rate == 1 and run.seconds > usual + 2 * scenario.deadline + 15:
            wrong.append(f"it took {run.seconds:.0f} s to say so")
    return wrong


def judge_version(run: Run, models: Store, wanted: str) -> list[str]:
    """Give what is wrong about what a job published."""
    wrong = []
    if list(read_listing(models).versions) != [run.result["version"]]:
        wrong.append(f"versions {read_listing(models)}, expected {run.result['version']}")
    if digest_of(models, run.result["version"]) != wanted:
        wrong.append("other weights or labels than without faults")
    if run.result["images"].get("skipped"):
        wrong.append(f"images were skipped: {run.result['images']}")
    return wrong


def try_out(scenario: Scenario, bench: Bench, wanted: str, usual: float, seed: int) -> Tally:
    """Run a scenario as often as it says; a job that failed is started again without faults."""
    tally = Tally(scenario.title, scenario.deadline)
    for number in range(scenario.times):
        uri = f"gs://{new_bucket()}/models"
        models = open_store(f"{uri}/{NAME}")
        before, asked = bench.faults.injected(), bench.faults.requests().total()
        bench.faults.set(rate=scenario.rate, reads=scenario.reads, seed=seed + number)
        run = bench.run(uri, scenario.deadline)
        bench.faults.set(rate=0)
        tally.injected += bench.faults.injected() - before
        tally.requests += bench.faults.requests().total() - asked
        tally.exits[run.exit_code] += 1
        tally.seconds.append(run.seconds)
        wrong = judge(run, scenario, models, wanted, usual)
        if run.exit_code != 0:
            run = bench.run(uri, scenario.deadline)
            wrong += [] if run.exit_code == 0 else [f"later: exit code {run.exit_code}"]
            wrong += judge_version(run, models, wanted) if run.exit_code == 0 else []
        tally.right += not wrong
        tally.problems += [f"{scenario.title}, seed {seed + number}: {what}" for what in wrong]
    if not tally.injected and scenario.rate * tally.requests > 20:
        tally.problems.append(f"{scenario.title}: no fault was injected")
    return tally


def table(tallies: list[Tally], usual: float, seed: int) -> str:
    """Write the outcome as Markdown."""
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"{3 * IMAGES} images, seed {seed}, {today}; a job without faults took {usual:.0f} s.",
        "",
        "| faults | --storage-deadline | jobs | exit codes | as without faults, in the end "
        "| requests | faults | seconds: median, longest |",
        "|---|--:|--:|---|--:|--:|--:|--:|",
    ]
    for t in tallies:
        exits = ", ".join(f"{code}: {count}" for code, count in sorted(t.exits.items()))
        middle = sorted(t.seconds)[len(t.seconds) // 2]
        lines.append(
            f"| {t.title} | {t.deadline:g} s | {len(t.seconds)} | {exits} "
            f"| {t.right} | {t.requests} | {t.injected.total()} "
            f"| {middle:.0f}, {max(t.seconds):.0f} |"
        )
    kinds = sum((t.injected for t in tallies), Counter[str]())
    told = ", ".join(f"{name} {count}" for name, count in sorted(kinds.items()))
    return "\n".join([*lines, "", f"Faults by kind: {told}."])


def run(scenarios: tuple[Scenario, ...], seed: int, work: Path) -> tuple[list[Tally], str]:
    """Run everything; gives what happened, and the table."""
    backbone = write_pooling(work / "pooling")
    images = write_colours(work / "images", IMAGES)
    (work / "server").mkdir()
    with (
        fake_gcs_server(work / "server") as url,
        fault_proxy(url, work / "proxy.log", seed=seed) as faults,
    ):
        data = f"gs://{new_bucket()}/data"
        store = open_store(data)
        for path in sorted(images.rglob("*.jpg")):
            store.write(path.relative_to(images).as_posix(), path)
        bench = Bench(data, backbone, faults, work)
        uri = f"gs://{new_bucket()}/models"
        reference = bench.run(uri, 60)
        if reference.exit_code != 0:
            raise RuntimeError(f"the job fails without faults: {reference.log[-3000:]}")
        wanted = digest_of(open_store(f"{uri}/{NAME}"), reference.result["version"])
        tallies = []
        for scenario in scenarios:
            tallies.append(try_out(scenario, bench, wanted, reference.seconds, seed))
            sys.stderr.write(f"{tallies[-1]}\n")
    return tallies, table(tallies, reference.seconds, seed)


def main() -> int:
    """Run everything; gives the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="one job at 10 %, one outage")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        scenarios = SHORT if options.short else LONG
        tallies, told = run(scenarios, options.seed, Path(folder))
    sys.stdout.write(told + "\n")
    problems = [problem for tally in tallies for problem in tally.problems]
    sys.stderr.writelines(f"- {problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
