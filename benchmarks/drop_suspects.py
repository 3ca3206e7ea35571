"""What `--drop-suspects` does to accuracy: good labels, few wrong ones, many.

    python benchmarks/drop_suspects.py [--splits 20]

The sample drawings, split 80/10/10 at random; of the training labels none, one in twenty or one in
seven is swapped at random. Suspects are told from the training images alone, as the job does it,
and dropped from each of several scores on. The test labels are as they are in the samples.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from make_data import SAMPLES
from suspects import Embedded, embed_data, head_and_neighbours, neighbours_of

from job import lbfgs
from job.doctor.findings import Suspect
from job.doctor.folds import cross_validate
from job.doctor.reduce import reduced

SHARES = (0.0, 0.05, 0.15)
SCORES = (0.5, 0.7, 0.8, 0.9, 0.95)


def suspects_of(features: np.ndarray, classes: np.ndarray, count: int) -> tuple[Suspect, ...]:
    """Give the suspects among training images."""
    scores = cross_validate(reduced(features), classes, np.arange(len(classes)), count)
    return head_and_neighbours(scores, neighbours_of(features), classes)


def attempt(data: Embedded, seed: int, share: float) -> list[tuple[float, float, float]]:
    """Give accuracy, images dropped and swaps among them: of all images, then from each score."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(data.classes))
    part = len(order) // 10
    test, validation, train = np.split(order, [part, 2 * part])
    count, given = len(data.labels), data.classes.copy()
    swapped = random.choice(train, round(share * len(train)), replace=False)
    given[swapped] = (given[swapped] + random.integers(1, count, len(swapped))) % count

    def accuracy(rows: np.ndarray) -> float:
        sides = (data.features[rows], given[rows]), (data.features[validation], given[validation])
        head = lbfgs.fit(*sides, count).head
        found = head.logits(data.features[test]).argmax(axis=1)
        return float((found == data.classes[test]).mean())

    suspects = suspects_of(data.features[train], given[train], count)
    tried = [(accuracy(train), 0.0, 0.0)]
    for score in SCORES:
        dropped = train[[suspect.row for suspect in suspects if suspect.score >= score]]
        wrong = len(np.intersect1d(dropped, swapped))
        tried.append((accuracy(np.setdiff1d(train, dropped)), float(len(dropped)), float(wrong)))
    return tried


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--splits", type=int, default=20)
    splits = range(parser.parse_args().splits)
    data = embed_data(SAMPLES)
    print("| swapped | dropped from a score of | images | wrong ones | test accuracy | change |")
    print("|--:|--:|--:|--:|--:|--:|")
    for share in SHARES:
        found = np.array([attempt(data, seed, share) for seed in splits])
        for place, score in enumerate(("none", *SCORES)):
            accuracy, dropped, wrong = found[:, place].mean(axis=0)
            apart = 100 * (found[:, place, 0] - found[:, 0, 0])
            error = apart.std(ddof=1) / np.sqrt(len(apart))
            change = f"{apart.mean():+.1f} ± {error:.1f}" if place else ""
            cells = f"{share:.0%} | {score} | {dropped:.0f} | {wrong:.0f} | {100 * accuracy:.1f} %"
            print(f"| {cells} | {change} |", flush=True)


if __name__ == "__main__":
    main()
