"""Fine-tunes the sample drawings with one worker and with several, and compares the steps' losses.

    python benchmarks/workers.py [--workers 1 2] [--epochs N] [--unfreeze N] [--data URI]

Whole jobs as processes on this machine, told of one another by $TF_CONFIG, with the default
backbone. They share its cores, so the seconds say what working together costs, not what it saves.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from attempts import Attempt, Inputs
from conftest import ROOT
from team import losses_in, team

from job.config import DEFAULT_BACKBONE
from job.recipe import FinetuneOptions

# In place of those that suit the tests' small module.
OWN = FinetuneOptions()
DEFAULTS = (
    "--train-batch-size", str(OWN.train_batch_size), "--learning-rate", str(OWN.learning_rate),
    "--backbone-learning-rate", str(OWN.backbone_learning_rate),
)  # fmt: skip


def run(count: int, folder: Path, options: argparse.Namespace) -> tuple[dict, list[Attempt]]:
    """Run a job of so many workers to its end; gives its losses and them, the chief first."""
    asked = ["--epochs", str(options.epochs), "--summaries", str(folder / "summaries"), *DEFAULTS]
    if options.unfreeze is not None:
        asked += ["--unfreeze", str(options.unfreeze)]
    inputs = Inputs(options.data, DEFAULT_BACKBONE)
    with team(count, inputs, str(folder / "models"), folder / "rooms", *asked) as workers:
        codes = [worker.wait(3600) for worker in workers]
    if codes != [0] * count:
        raise RuntimeError(f"exit codes {codes}: {workers[0].last_words()}")
    return losses_in(folder / "summaries"), workers


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--unfreeze", type=int)
    parser.add_argument("--data", default=str(ROOT / "samples/clipart"))
    options = parser.parse_args()
    print(
        "| workers | steps | first loss | last loss | largest difference | test accuracy | fit, s |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|")
    usual: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as name:
        for count in options.workers:
            losses, workers = run(count, Path(name) / str(count), options)
            usual = usual or losses
            worst = max(abs(losses[key] - usual[key]) for key in usual)
            steps = [losses[key] for key in sorted(losses) if key[0] == "train"]
            result = json.loads(workers[0].stdout.read_text().splitlines()[-1])
            accuracy, fit = result["metrics"]["test_accuracy"], result["seconds"]["fit"]
            figures = (len(steps), f"{steps[0]:.4f}", f"{steps[-1]:.4f}", f"{worst:.1e}")
            print(f"| {count} | {' | '.join(map(str, figures))} | {accuracy:.3f} | {fit:.0f} |")


if __name__ == "__main__":
    main()
