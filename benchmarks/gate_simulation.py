"""How often the gate refuses a model that is as good as the one in service, and one that is worse.

    python benchmarks/gate_simulation.py [--pairs 1000] [--images 500] [--labels 8] [--alpha 0.05]

Each pair of models answers the same test images; the model in service is right on 85 % of them.
"Equal up to noise": on 10 % of the images exactly one of the two is right, either with the same
probability. A worse one has as much noise on top. A refusal by the overall test and by a label's
are counted apart; the last column is how often the bootstrap interval holds the true difference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from job.evaluate import wilson
from job.gate import compare

ACCURACY = 0.85
NOISE = 0.10


@dataclass(frozen=True, slots=True)
class Pair:
    """Whether each of two models is right on each image, bool `[n]`, and the classes, int `[n]`."""

    classes: np.ndarray
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True, slots=True)
class Scenario:
    """A way to draw pairs, and the difference in accuracy that it has in the long run."""

    name: str
    draw: Callable[[np.random.Generator, int, int], Pair]
    difference: float


def noisy(worse: float) -> Callable[[np.random.Generator, int, int], Pair]:
    """Draw pairs of which the second is `worse` (a share of the images) and differs by NOISE."""

    def draw(random: np.random.Generator, images: int, labels: int) -> Pair:
        broken = NOISE / 2 + worse
        shares = [ACCURACY - broken, broken, NOISE / 2, 1 - ACCURACY - NOISE / 2]
        kind = random.choice(4, images, p=shares)  # both right, broken, fixed, both wrong
        classes = random.integers(labels, size=images)
        return Pair(classes, kind <= 1, (kind == 0) | (kind == 2))

    return draw


def swapped(random: np.random.Generator, images: int, labels: int) -> Pair:
    """Draw pairs of equal models, with the names of classes 0 and 1 swapped in the second."""
    pair = noisy(0.0)(random, images, labels)
    touched = pair.classes <= 1
    # A wrong answer is the other one of the two, and so right after the swap, once in labels - 1.
    lucky = random.random(images) < 1 / (labels - 1)
    after = np.where(touched, ~pair.after & lucky, pair.after)
    return Pair(pair.classes, pair.before, after)


def main() -> None:
    """Print one row for each scenario."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--labels", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=0.05)
    options = parser.parse_args()
    lucky = (1 - ACCURACY) / (options.labels - 1)
    scenarios = [
        Scenario("equal up to noise", noisy(0.0), 0.0),
        *(Scenario(f"{p} points worse", noisy(p / 100), -p / 100) for p in (3, 5, 10)),
        Scenario("two classes swapped", swapped, 2 / options.labels * (lucky - ACCURACY)),
    ]
    print(
        f"{options.pairs} pairs each, {options.images} images, {options.labels} labels, "
        f"alpha {options.alpha:g}\n"
    )
    print("| new model | refused | 95 % interval | overall test | a label's test | bootstrap |")
    print("|---|---|---|---|---|---|")
    for scenario in scenarios:
        print(row(scenario, options.pairs, options.images, options.labels, options.alpha))


def row(scenario: Scenario, pairs: int, images: int, labels: int, alpha: float) -> str:
    """Simulate one scenario and give its line of the table."""
    random = np.random.default_rng(0)
    names = [str(image) for image in range(images)]
    label_names = [str(label) for label in range(labels)]
    overall, by_label, covered = (np.zeros(pairs, bool) for _ in range(3))
    for number in range(pairs):
        pair = scenario.draw(random, images, labels)
        found = compare(1, names, label_names, pair.classes, pair.before, pair.after)
        overall[number] = found.p_value <= alpha
        by_label[number] = any(label.p_value <= alpha for label in found.per_label)
        low, high = found.difference_ci95
        covered[number] = low <= scenario.difference <= high
    refused = overall | by_label
    low, high = wilson(int(refused.sum()), pairs)
    return (
        f"| {scenario.name} | {refused.mean():.1%} | {low:.1%} to {high:.1%} | "
        f"{overall.mean():.1%} | {by_label.mean():.1%} | {covered.mean():.1%} |"
    )


if __name__ == "__main__":
    main()
