"""Whole jobs that are told to stop, in every phase and at the worst moment.

    python tests/chaos_stop.py [--short] [--times N] [--seed N]

A job is a process, `python -m job run`, and a signal goes to that process alone, as Kubernetes
sends it to process 1 of a container. It comes at a random moment of a phase, or right after the
process starts. Then the exit code, the seconds until the process is gone, the result and what is
in the store are looked at. Prints a Markdown table; exit code 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chaos_publish
from attempts import LONGEST, NAME, PHASES, Attempt, Inputs, saved_embeddings, upload, write_inputs
from chaos_kill import undisturbed
from conftest import ROOT
from gcs_server import fake_gcs_server, new_bucket

from job.errors import ConfigError
from job.publish import Listing, read_listing
from job.storage import open_store

# The default of --stop-timeout, and a second for a busy machine.
BUDGET = 20.0 + 1.0
# Seconds in which a second signal ends the process, on a busy machine too.
AT_ONCE = 5.0
# Seconds over which moments are spread before the first phase, and in the worst case.
STARTING, EMBEDDING = 4.0, 30.0
PREEMPTED, INTERRUPTED = 143, 130
EXEC, START, ANY = "exec", "start", "any"


@dataclass(frozen=True, slots=True)
class Case:
    """What is done to a job: where it is struck, and with how many signals.

    `worst` is a job whose only batch has room for 1,024 images: nothing interrupts TensorFlow while
    it embeds that. One of 4,096 would need 20 GB.
    """

    phase: str
    store: str = "local"
    number: signal.Signals = signal.SIGTERM
    twice: bool = False
    worst: bool = False

    @property
    def words(self) -> str:
        """Give the case as the table has it."""
        name = {EXEC: "the first 100 ms", START: "start, once it can hear"}.get(self.phase)
        name = name or ("any" if self.phase == ANY else self.phase)
        name += ", one batch of 1,024" if self.worst else ""
        return f"{name}, {'2nd SIGTERM' if self.twice else self.number.name}"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended after a signal: what it printed and wrote, and what is in the store.

    `seconds` go from the last signal to the end; `before` and `after` are the embeddings saved;
    `violations` are what a watcher of the model has seen.
    """

    code: int
    seconds: float
    result: dict[str, Any]
    file: str
    listing: Listing
    before: int
    after: int
    moment: str
    words: str
    violations: tuple[str, ...] = ()


@dataclass(slots=True)
class Tally:
    """What happened in one case."""

    case: Case
    ended: list[Ended] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Place:
    """Where jobs find their inputs and their models, with the times of an undisturbed run."""

    inputs: Inputs
    root: str
    folder: Path
    phases: dict[str, float]


def find_problems(case: Case, ended: Ended) -> Iterator[str]:
    """Give a sentence for all that is wrong with how a job ended."""
    status, versions = ended.result.get("status"), ended.listing.versions
    budget = AT_ONCE if case.twice else BUDGET
    if ended.seconds > budget:
        yield f"{ended.seconds:.1f} s from the signal to the end, expected at most {budget:g}"
    yield from ended.violations
    # A bucket has no folders to rename: a version may be left without its `saved_model.pb`.
    if ended.listing.partial and case.store == "local":
        yield f"versions {list(ended.listing.partial)} are partial"
    if ended.after < ended.before:
        yield f"{ended.before} embeddings were saved, {ended.after} are left"
    if ended.code == 0:
        if status not in ("published", "unchanged") or not versions:
            yield f"exit code 0 with {status} and versions {list(versions)}"
        if ended.seconds > AT_ONCE:
            yield f"it went on for {ended.seconds:.1f} s as if it had not been told to stop"
        return
    if ended.code == -case.number and case.phase == EXEC:
        return  # nobody listened yet; process 1 of a container would not even be ended by it
    expected = INTERRUPTED if case.number == signal.SIGINT else PREEMPTED
    if ended.code != expected:
        yield f"exit code {ended.code} in {ended.moment}, expected {expected}: {ended.words}"
    # Before the first phase there may be no result yet, and after a second signal no time for it.
    if not ended.result and (ended.moment == "start" or case.twice):
        return
    if expected == PREEMPTED and status != "preempted":
        yield f"the result in {ended.moment} says {status}, expected preempted"
    if ended.file != json.dumps(ended.result, separators=(",", ":")) + "\n":
        yield f"--result-file has {ended.file[:200]!r}, not the last line of stdout"


def options_of(case: Case, place: Place) -> list[str]:
    """Give the options of a job: cold where embedding is what is struck, else with a full cache."""
    if case.worst:
        return ["--batch-size", "1024"]
    options = ["--backbone", str(place.inputs.backbone), "--batch-size", "2"]
    if case.phase in ("embed", ANY):
        return options
    return [*options, "--cache", f"{place.root}/undisturbed/.embeddings"]


def inputs_of(case: Case, place: Place) -> Inputs:
    """Give what a job is to train on."""
    if case.worst:
        return Inputs(str(ROOT / "samples/clipart"), place.inputs.backbone)
    return place.inputs


def hears(process: int, number: int) -> bool:
    """Tell whether a process has a handler of its own for a signal."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = re.search(r"^SigCgt:\t([0-9a-f]+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def await_moment(case: Case, attempt: Attempt, place: Place, rng: random.Random) -> None:
    """Wait until a job is where it is to be struck; it may have ended by then."""
    if case.phase == EXEC:
        time.sleep(rng.uniform(0, 0.1))
    elif case.phase == START:
        while attempt.process.poll() is None and not hears(attempt.process.pid, case.number):
            time.sleep(0.001)
        attempt.wait(rng.uniform(0, STARTING))
    else:
        phase = rng.choice(PHASES) if case.phase == ANY else case.phase
        attempt.wait_for(phase)
        attempt.wait(rng.uniform(0, EMBEDDING if case.worst else place.phases[phase]))


def stop(case: Case, place: Place, number: int, rng: random.Random) -> Ended | None:
    """Start a job and stop it; None where it came to its end before the moment did."""
    name = re.sub(r"[^a-z0-9]+", "-", case.words.lower()) + str(number)
    models, room = f"{place.root}/{name}", place.folder / name
    attempt = Attempt(inputs_of(case, place), models, room, *options_of(case, place))
    watchdog = threading.Timer(LONGEST, attempt.kill)
    watchdog.start()
    try:
        with watch(case, f"{models}/{NAME}", room) as watched:
            await_moment(case, attempt, place, rng)
            before = len(saved_embeddings(models))
            if attempt.process.poll() is not None:
                return None
            seconds = send(case, attempt, rng)
    finally:
        watchdog.cancel()
        attempt.kill()  # what it started goes with a container
    written = room / "result.json"
    ended = Ended(
        attempt.process.returncode, seconds, attempt.result(),
        written.read_text() if written.exists() else "", listing_of(f"{models}/{NAME}"),
        before, len(saved_embeddings(models)), attempt.moment(), attempt.last_words(),
        tuple(p for p in watched.problems if "saw nothing" not in p),
    )  # fmt: skip
    shutil.rmtree(room)
    return ended


def send(case: Case, attempt: Attempt, rng: random.Random) -> float:
    """Send the signals of a case; gives the seconds from the last one to the end of the process."""
    start = time.monotonic()
    attempt.process.send_signal(case.number)
    if case.twice:
        attempt.wait(rng.uniform(0.02, 0.5))
        start = time.monotonic()
        attempt.process.send_signal(case.number)
    attempt.process.wait()
    return time.monotonic() - start


@contextlib.contextmanager
def watch(case: Case, uri: str, room: Path) -> Iterator[chaos_publish.Tally]:
    """Have a watcher look at the model where a version may be about to appear."""
    seen = chaos_publish.Tally(case.store, "")
    if case.phase != "publish":
        yield seen
        return
    (room / "acks").touch()
    with chaos_publish.watching(uri, seen, room / "acks"):
        yield seen


def listing_of(uri: str) -> Listing:
    """List a model's store, which may not be there yet."""
    try:
        return read_listing(open_store(uri))
    except ConfigError:
        return Listing((), (), (), (), ())


def run_case(case: Case, place: Place, options: argparse.Namespace) -> Tally:
    """Stop so many jobs at random moments of a case."""
    rng = random.Random(f"{options.seed} {case}")  # noqa: S311  (no secret)
    tally = Tally(case)
    # A batch of 1,024 images takes two cores most of a minute, and the buckets' jobs are slow too.
    share = 4 if case.worst else 1 if case.store == "local" else 2
    times = -(-options.times // share)
    for number in range(4 * times):
        if (ended := stop(case, place, number, rng)) is not None:
            tally.ended.append(ended)
            tally.problems += [f"{case.words}: {p}" for p in find_problems(case, ended)]
        if len(tally.ended) == times:
            return tally
    tally.problems.append(f"{case.words}: {len(tally.ended)} of {times} jobs were struck")
    return tally


def cases(options: argparse.Namespace) -> list[Case]:
    """List what is done; the longest first, so that both lanes have work to the end."""
    phases = [Case(phase) for phase in (*reversed(PHASES), START)]
    special = [Case("embed", twice=True, worst=True), Case(ANY, number=signal.SIGINT)]
    if options.short:
        return [*special, *phases]
    buckets = [Case(phase, "fake-gcs-server") for phase in ("embed", "publish")]
    return [Case("embed", worst=True), *special, *phases, Case(EXEC), *buckets]


def prepare(root: str, inputs: Inputs, folder: Path) -> Place:
    """Run a job to its end, for its times and a full cache."""
    usual = undisturbed(inputs, f"{root}/undisturbed", folder / "undisturbed")
    return Place(inputs, root, folder, usual.phases)


def table(tallies: list[Tally], options: argparse.Namespace) -> str:
    """Write the outcome as Markdown."""
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"{options.times} signals a line, half as many on buckets, a quarter where a batch has "
        f"1,024 images; seed {options.seed}, {today}.",
        "",
        "| moment, signal | store | it struck in | signals | exit 143 | exit 130 "
        "| exit 0, published before | killed by the signal (no handler yet) | without a result "
        "| embeddings saved by the stop, median | seconds to the end: min | median | max "
        "| problems |",
        f"|---|---|---|{'--:|' * 11}",
    ]
    return "\n".join([*lines, *(row(tally) for tally in tallies)])


def row(tally: Tally) -> str:
    """Write the line of a case."""
    ended = tally.ended
    codes = Counter(one.code for one in ended)
    moments = Counter(one.moment for one in ended)
    seconds = [one.seconds for one in ended] or [0.0]
    saved = statistics.median([one.after - one.before for one in ended] or [0])
    figures = [
        len(ended), codes[PREEMPTED], codes[INTERRUPTED], codes[0], codes[-tally.case.number],
        sum(not one.result for one in ended), f"{saved:.0f}", f"{min(seconds):.2f}",
        f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}", len(tally.problems),
    ]  # fmt: skip
    struck = ", ".join(f"{moment} {count}" for moment, count in moments.most_common())
    cells = [tally.case.words, tally.case.store, struck, *map(str, figures)]
    return f"| {' | '.join(cells)} |"


def lanes() -> ThreadPoolExecutor:
    """Give room for as many jobs at a time as there are cores."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)))


def main() -> int:
    """Run all cases, a job a core at a time; gives the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="once a phase, on the local store")
    parser.add_argument("--times", type=int, default=20, help="signals a phase")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.times = 1 if options.short else options.times
    # Where a shell has put this into the background the jobs would be deaf to SIGINT as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary, lanes() as pool:
        folder = Path(temporary)
        (folder / "server").mkdir()
        inputs = write_inputs(folder)
        places = {"local": prepare(str(folder / "models"), inputs, folder)}
        with fake_gcs_server(folder / "server"):
            if not options.short:
                bucket = f"gs://{new_bucket()}"
                uploaded = Inputs(upload(Path(inputs.data), bucket), inputs.backbone)
                places["fake-gcs-server"] = prepare(f"{bucket}/models", uploaded, folder / "gcs")
            tallies = list(
                pool.map(lambda case: run_case(case, places[case.store], options), cases(options))
            )
    # A stop while there is something to save is rare: embedding takes a tenth of its phase.
    if options.times >= 20 and not any(e.after > e.before for t in tallies for e in t.ended):
        tallies[0].problems.append("no stop has saved an embedding")
    sys.stdout.write(table(tallies, options) + "\n")
    problems = [problem for tally in tallies for problem in tally.problems]
    sys.stderr.writelines(f"- {problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
