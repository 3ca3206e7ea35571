"""Everything that tries to break the job, one after the other: `make chaos`.

    python tests/chaos.py [--short]

The long form takes hours and writes docs/chaos.md; the short one, of minutes, only prints. Exit
code 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent / "docs/chaos.md"

INTRO = """\
# Chaos

What is done to break the job, and what came of it. `make chaos` does it again and writes this file.
Everything is real: jobs are processes (`python -m job run`), buckets are fake-gcs-server behind the
real client, and signals, faults and files are what a cluster, a network and people bring about.
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A script with what it does and checks, in plain words; `long` and `short` are its options.

    `read` makes a table of what it says on stderr; without it the table is what it prints.
    """

    title: str
    words: str
    script: str
    long: tuple[str, ...] = ()
    short: tuple[str, ...] = ("--short",)
    read: Callable[[str], str] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a script printed, and whether it found nothing wrong."""

    part: Part
    table: str
    passed: bool
    seconds: float


PARTS = (
    Part(
        "Jobs are killed",
        "A job gets SIGKILL at a random moment, half of the times anywhere in the time that a run "
        "takes, half in a phase drawn by lot. The next one has an empty work folder and an empty "
        "TMPDIR, only the store is left; after one to three kills a job may run to its end. A "
        "watcher polls the model all the time and reads every version that a server could load. "
        "Then: there is exactly one version, its variables and labels have the SHA-256 of an "
        "undisturbed run's, `stable` names it, no embedding that was saved was computed again or "
        "is stored twice, nothing is left over in the models folder.",
        "chaos_kill.py",
    ),
    Part(
        "Jobs are told to stop",
        "A job gets SIGTERM at a random moment of each phase, at any moment from its first "
        "millisecond on, and while TensorFlow embeds a single batch of 1,024 images with the real "
        "backbone, which nothing interrupts. It ends with exit code 143 within the stop budget (20 "
        "s, and one for a busy machine), its result says `preempted` on stdout and in "
        "`--result-file`, no version is partial (on a bucket one may be left without its "
        "`saved_model.pb`, which no server loads), no saved embedding is lost. A second SIGTERM "
        "ends it at once; SIGINT ends it with 130.",
        "chaos_stop.py",
    ),
    Part(
        "Publishers are killed, and meet",
        "The publishing step alone, many times faster than a job: a publisher in a loop is killed "
        "at random moments, and eight publish under one name at once. Every version that the "
        "watcher sees is whole, of one publisher, and stays as it is.",
        "chaos_publish.py",
    ),
    Part(
        "Workers are lost",
        "Two jobs fine-tune together; one of them, drawn by lot, gets SIGKILL at a random moment "
        "of the fit. The other one ends by itself with exit code 138. Both are started again with "
        "only the store left, go on from the chief's last state, and publish what two that nobody "
        "disturbed have published, to the byte.",
        "chaos_workers.py",
    ),
    Part(
        "The storage fails",
        "Whole jobs from bucket to bucket through a proxy that answers a share of the requests "
        "with faults: errors, resets before and after a request was carried out, stalls, truncated "
        "and corrupted bodies, an outage. The version published is the one of a run without "
        "faults; in an outage the job ends with exit code 138 within its deadline.",
        "chaos_storage.py",
    ),
)

FUZZING = (
    "Hostile bytes",
    "Readers of what comes from outside are fed by a coverage-guided fuzzer (atheris). Only their "
    "documented errors may come out.",
)
FUZZ_SECONDS, FUZZ_SECONDS_SHORT = 600, 3


def fuzzing(targets: list[str]) -> Iterator[Part]:
    """Give a part for each target of the fuzzer."""
    for target in targets:
        yield Part(
            *FUZZING, "fuzz.py",
            (target, "--seconds", str(FUZZ_SECONDS // len(targets))),
            (target, "--seconds", str(FUZZ_SECONDS_SHORT)), partial(fuzz_table, target),
        )  # fmt: skip


def fuzz_table(target: str, log: str) -> str:
    """Give a table of the last line that libFuzzer writes of a run which found nothing."""
    done = re.search(r"#(\d+)\s+DONE\s+cov: (\d+).*?corp: (\d+)/", log)
    figures = done.groups() if done else ("found something", "", "")
    return (
        "| reader | inputs | branches of ours covered | inputs kept for new ones |\n"
        f"|---|--:|--:|--:|\n| {' | '.join((target, *figures))} |"
    )


def run(part: Part, *, short: bool) -> Outcome:
    """Run a script; what it says on stderr is passed on, unless it is read and all is well."""
    options = part.short if short else part.long
    sys.stderr.write(f"{part.script} {' '.join(options)}\n")
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, HERE / part.script, *options], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if part.read else None, text=True, errors="replace",
    )  # fmt: skip
    table = part.read(done.stderr) if part.read else done.stdout.strip()
    if part.read and done.returncode != 0:
        sys.stderr.write(done.stderr)
    return Outcome(part, table, done.returncode == 0, time.monotonic() - start)


def machine() -> str:
    """Describe this machine by cores, processor and memory."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores ({model[1] if model else platform.machine()}), "
        f"{memory:.0f} GiB of memory, Python {platform.python_version()}"
    )


def joined(tables: list[str]) -> str:
    """Put tables with one header below each other as one table."""
    header = [line for line in tables[0].splitlines() if line.startswith("|")][:2]
    rest = [line for table in tables[1:] for line in table.splitlines() if line not in header]
    return "\n".join([tables[0], *rest])


def document(outcomes: list[Outcome]) -> str:
    """Write what was done and what came of it as Markdown."""
    today = datetime.datetime.now(datetime.UTC).date()
    seconds = sum(outcome.seconds for outcome in outcomes)
    failed = sum(not outcome.passed for outcome in outcomes)
    summary = f"{today}, {machine()}: {seconds / 60:.0f} minutes, "
    summary += f"**{failed} of {len(outcomes)} parts failed**." if failed else "nothing was wrong."
    sections = [INTRO, summary]
    for title in dict.fromkeys(outcome.part.title for outcome in outcomes):
        same = [outcome for outcome in outcomes if outcome.part.title == title]
        table = joined([outcome.table for outcome in same])
        sections += [f"\n## {title}\n", same[0].part.words, "", table]
    return "\n".join(sections) + "\n"


def main() -> int:
    """Run every part; gives the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="minutes; docs/chaos.md stays")
    options = parser.parse_args()
    from fuzz import TARGETS

    outcomes = [run(part, short=options.short) for part in (*PARTS, *fuzzing(list(TARGETS)))]
    text = document(outcomes)
    sys.stdout.write(text)
    if not options.short:
        DOCUMENT.write_text(text, "utf-8")
    for outcome in outcomes:
        if not outcome.passed:
            sys.stderr.write(f"failed: {outcome.part.script} {' '.join(outcome.part.long)}\n")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
