"""Two workers that fine-tune together, one of them killed at a random step, and started again.

    python tests/chaos_workers.py [--short] [--seed N] [--kills N]

A worker is a process, `python -m job run`, told of the other by $TF_CONFIG. In each trial one drawn
by lot gets SIGKILL at a random moment of the fit, which the other one has to end by itself with
138; then both are started again, with only the store left, and have to publish what two that nobody
disturbed have published, to the byte. Prints a Markdown table; exit code 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import datetime
import random
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attempts import Attempt, Inputs
from chaos_kill import version_digests
from team import team, write_trainable

from job.storage import open_store

OPTIONS = ("--epochs", "20", "--patience", "20", "--checkpoint-interval", "0.5")
WENT_ON = re.compile(r"fine-tuning goes on after step (.*)")


@dataclass(frozen=True, slots=True)
class Trial:
    """One kill: of which worker, what the other ended with and how long it took, and the rest.

    `step` is the one of how many that the next job went on after, empty where it began anew.
    """

    victim: int
    survivor_code: int | None
    seconds: float
    step: str
    codes: tuple[int | None, ...]
    same: bool

    @property
    def problem(self) -> str:
        """Say what is wrong; empty where nothing is."""
        if self.survivor_code != 138:
            return f"the other worker ended with {self.survivor_code}, expected 138"
        if self.codes != (0, 0):
            return f"the next job ended with {self.codes}"
        return "" if self.same else "the next job has learnt other values"


def run_to_the_end(
    inputs: Inputs, models: str, room: Path
) -> tuple[list[Attempt], list[int | None]]:
    """Run a job of two workers; gives them and their exit codes."""
    with team(2, inputs, models, room, *OPTIONS) as workers:
        return workers, [worker.wait() for worker in workers]


def digests(models: str, attempt: Attempt) -> dict[str, str]:
    """Give what the version that a chief has published has learnt."""
    store = open_store(f"{models}/colours")
    return version_digests(store, attempt.result()["version"])


def step_of(attempt: Attempt) -> str:
    """Give the step that a worker's log says it went on after."""
    said = (WENT_ON.search(str(line.get("message"))) for line in attempt.log())
    return next((found[1] for found in said if found), "")


def strike(
    inputs: Inputs, folder: Path, fit: float, usual: dict[str, str], rng: random.Random
) -> Trial:
    """Kill a worker somewhere in the `fit` seconds that fine-tuning takes, and start both again."""
    models, victim = str(folder / "models"), rng.randrange(2)
    with team(2, inputs, models, folder / "first", *OPTIONS) as workers:
        for worker in workers:
            worker.wait_for("fit")
        workers[victim].wait(rng.uniform(0, fit))
        workers[victim].kill()
        start = time.monotonic()
        code = workers[1 - victim].wait()
        seconds = time.monotonic() - start
    again, codes = run_to_the_end(inputs, models, folder / "second")
    same = codes == [0, 0] and digests(models, again[0]) == usual
    return Trial(victim, code, seconds, step_of(again[0]), tuple(codes), same)


def table(trials: list[Trial], options: argparse.Namespace) -> str:
    """Give the trials as Markdown."""
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"{len(trials)} kills, seed {options.seed}, {today}.", "",
        "| killed | the other ended with | after, s | the next job went on after step "
        "| and ended with | same bytes |",
        "|---|--:|--:|--:|---|---|",
    ]  # fmt: skip
    for t in trials:
        who = "the chief" if t.victim == 0 else "the other worker"
        codes = ", ".join(map(str, t.codes))
        same = "yes" if t.same else "NO"
        cells = (who, t.survivor_code, f"{t.seconds:.1f}", t.step or "none", codes, same)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Run the trials; gives the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="one kill")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)  # noqa: S311 - no secret
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = write_trainable(folder)
        (chief, _), codes = run_to_the_end(inputs, str(folder / "models"), folder / "usual")
        if codes != [0, 0]:
            raise RuntimeError(f"not even an undisturbed run ends well: {chief.last_words()}")
        usual, fit = digests(str(folder / "models"), chief), chief.result()["seconds"]["fit"]
        trials = [
            strike(inputs, folder / str(number), fit, usual, rng)
            for number in range(1 if options.short else options.kills)
        ]
    sys.stdout.write(table(trials, options) + "\n")
    problems = [trial.problem for trial in trials if trial.problem]
    sys.stderr.writelines(f"- {problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
