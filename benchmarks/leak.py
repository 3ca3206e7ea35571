"""What a split by name alone flatters: test accuracy with copies on both sides, and on one.

    python benchmarks/leak.py [--splits 40] [--plantings 10]

Three data sets: the sample drawings as they are, the same with 40 copies planted among them
(benchmarks/planted.py), and with a copy of every image. Each is split at random many times, 10 %
for validation and 10 % for test, image by image as retrain.py does it, and as the job does it, with
near duplicates on one side. The head is the job's default. Besides, how many of the planted copies
end up on another side than their originals.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from copies import Embedder
from make_data import SAMPLES
from planted import Copy, plant

from job import lbfgs
from job.dataset import Example, Split
from job.near import near_duplicates
from job.split import assign, number_groups
from job.storage import Entry
from job.traits import fingerprints

PERCENTS = (10.0, 10.0)


@dataclass(frozen=True, slots=True)
class Data:
    """One data set: n images as the job knows them after embedding, and the copies planted."""

    names: list[str]
    labels: tuple[str, ...]
    classes: np.ndarray
    features: np.ndarray
    pairs: np.ndarray
    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class Tried:
    """One split: test accuracy, and how many planted copies crossed it."""

    accuracy: float
    crossed: int


def read(embed: Embedder, copies: int, seed: int) -> Data:
    """Plant copies among the samples and embed them."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        truth = plant(SAMPLES, root, copies=copies, swaps=0, seed=seed)
        names = sorted(p.relative_to(root).as_posix() for p in root.glob("*/*"))
        rows = embed([root / name for name in names])
    features = np.stack([row.features for row in rows])
    near = near_duplicates(features, fingerprints(np.stack([row.traits for row in rows])))
    first: dict[str, int] = {}
    same = [(first.setdefault(row.digest, place), place) for place, row in enumerate(rows)]
    labels = tuple(sorted({name.split("/")[0] for name in names}))
    return Data(
        names,
        labels,
        np.array([labels.index(name.split("/")[0]) for name in names]),
        features,
        np.concatenate([np.array(same), near.edges]),
        truth.copies,
    )


def attempt(data: Data, seed: int, *, apart: bool) -> Tried:
    """Split by names that are salted with a seed, fit, and score the test images."""
    keys = [f"{seed}/{name}" for name in data.names]
    groups = number_groups(keys, None, () if apart else data.pairs)
    examples = [
        Example(Entry(key, 1, 1), (int(label),), Split.TRAIN, key)
        for key, label in zip(keys, data.classes, strict=True)
    ]
    known: list[Split | None] = [None] * len(keys)
    sides = np.array(assign(examples, groups, known, data.labels, PERCENTS).splits)
    train, validation, test = (
        (data.features[sides == side], data.classes[sides == side]) for side in Split
    )
    head = lbfgs.fit(train, validation, len(data.labels)).head
    accuracy = float((head.logits(test[0]).argmax(axis=1) == test[1]).mean())
    side_of = dict(zip(data.names, sides, strict=True))
    crossed = sum(side_of[copy.name] != side_of[copy.original] for copy in data.copies)
    return Tried(accuracy, crossed)


def attempts(embed: Embedder, copies: int, splits: int, plantings: int) -> Iterator[list[Tried]]:
    """Give both ways of splitting, the naive one first, for every split."""
    for planting in range(plantings):
        data = read(embed, copies, planting)
        for seed in range(planting, splits, plantings):
            yield [attempt(data, seed, apart=True), attempt(data, seed, apart=False)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--splits", type=int, default=40)
    parser.add_argument("--plantings", type=int, default=10)
    options = parser.parse_args()
    embed = Embedder()
    everything = sum(1 for _ in SAMPLES.glob("*/*"))
    print("| data | split by name alone | copies on one side | difference | copies that cross |")
    print("|---|--:|--:|--:|--:|")
    for name, copies, plantings in (
        ("the samples", 0, 1),
        ("40 copies planted", 40, options.plantings),
        ("every image copied once", everything, 1),
    ):
        found = list(attempts(embed, copies, options.splits, plantings))
        scores = 100 * np.array([[tried.accuracy for tried in pair] for pair in found])
        crossed = np.array([[tried.crossed for tried in pair] for pair in found]).mean(axis=0)
        apart = scores[:, 0] - scores[:, 1]
        error = apart.std(ddof=1) / np.sqrt(len(apart))
        cells = [f"{score:.1f} %" for score in scores.mean(axis=0)]
        cells += [f"{apart.mean():+.1f} points (standard error {error:.1f})"]
        cells += [f"{crossed[0]:.1f} and {crossed[1]:.2f} of {copies}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
