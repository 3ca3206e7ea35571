"""The solvers of a head beside each other: test accuracy and time on the sample drawings.

    python benchmarks/solvers.py [--data samples/clipart] [--splits 5]

Each split is drawn anew, every label in its proportion: 80 % train, 10 % validation, 10 % test.
`lbfgs` follows its path of penalties and chooses one on the validation images; `sgd` takes
retrain.py's 4,000 steps of 100 images at a rate of 0.01. `fed from Python` is the same loop as
retrain.py had it: NumPy draws a batch, one call of a compiled step takes it. Times are of one
process, in turns, TensorFlow imported before; tracing counts. The last table is the loop alone on
2,000 made-up embeddings of 1,280.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# As the job does it: one thread an operation.
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_USE_LEGACY_KERAS": "1"}

import tensorflow as tf

from job import lbfgs, sgd
from job.backbone import load_backbone
from job.config import DEFAULT_BACKBONE
from job.embed import embed
from job.fit import Pair
from job.head import Head
from job.index import build_index
from job.sgd import SgdOptions
from job.sources import folder_rows
from job.storage import open_store

STEPS, BATCH, RATE, INTERVAL = 4000, 100, 0.01, 10

Solver = Callable[[Pair, Pair, int], Head]


def solve_lbfgs(train: Pair, validation: Pair, classes: int) -> Head:
    """Give the best of the optima along the path."""
    return lbfgs.fit(train, validation, classes).head


def solve_lbfgs_once(train: Pair, validation: Pair, classes: int) -> Head:
    """Give the optimum at one penalty."""
    return lbfgs.fit(train, validation, classes, l2=1e-2).head


def solve_sgd(train: Pair, validation: Pair, classes: int) -> Head:
    """Take 4,000 steps inside the graph."""
    options = SgdOptions(STEPS, RATE, batch_size=BATCH, eval_interval=INTERVAL)
    return sgd.fit(train, validation, classes, options).head


def solve_fed(train: Pair, validation: Pair, classes: int) -> Head:
    """Take 4,000 steps, each batch drawn and handed over by Python."""
    kernel = tf.Variable(tf.zeros([train[0].shape[1], classes]))
    bias = tf.Variable(tf.zeros([classes]))

    def scores(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = x @ kernel + bias
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        right = tf.cast(tf.equal(tf.argmax(logits, axis=1), y), tf.float32)
        return tf.reduce_mean(losses), tf.reduce_mean(right)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss, _ = scores(x, y)
        for weights, slope in zip((kernel, bias), tape.gradient(loss, (kernel, bias)), strict=True):
            weights.assign_sub(RATE * slope)

    look = tf.function(scores)
    random = np.random.default_rng(0)
    for number in range(STEPS):
        rows = random.integers(0, len(train[1]), BATCH)
        batch = tf.constant(train[0][rows]), tf.constant(train[1][rows])
        step(*batch)
        if number % INTERVAL == 0:
            some = random.integers(0, len(validation[1]), BATCH)
            for side in (batch, (validation[0][some], validation[1][some])):
                [float(value) for value in look(*map(tf.constant, side))]
    return Head(kernel.numpy(), bias.numpy())


SOLVERS: dict[str, Solver] = {
    "lbfgs": solve_lbfgs,
    "lbfgs at one penalty": solve_lbfgs_once,
    "sgd": solve_sgd,
    "sgd fed from Python": solve_fed,
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="samples/clipart")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--splits", type=int, default=5)
    options = parser.parse_args()
    store = open_store(options.data)
    index = build_index(folder_rows(store), 10, 10)
    with tempfile.TemporaryDirectory() as cache:
        backbone = load_backbone(options.backbone, cache_dir=Path(cache))
        features = np.array(embed(store, index, backbone, threads=8).features)
    classes = np.array([example.class_index for example in index.examples])
    print(f"{options.data}: {len(classes)} images, {len(index.labels)} labels, ", end="")
    print(f"{options.splits} splits\n")
    compare(features, classes, options.splits)
    print("\n2,000 embeddings of 1,280, 8 labels, 4,000 steps of 100:\n")
    race()


def compare(features: np.ndarray, classes: np.ndarray, splits: int) -> None:
    """Print the mean test accuracy and the median time of each solver."""
    accuracies: dict[str, list[float]] = {name: [] for name in SOLVERS}
    seconds: dict[str, list[float]] = {name: [] for name in SOLVERS}
    count = int(classes.max()) + 1
    for seed in range(splits):
        rest, test = train_test_split(
            np.arange(len(classes)), test_size=0.1, stratify=classes, random_state=seed
        )
        train, validation = train_test_split(
            rest, test_size=1 / 9, stratify=classes[rest], random_state=seed
        )
        sides = [(features[rows], classes[rows]) for rows in (train, validation, test)]
        for name, solve in SOLVERS.items():
            start = time.perf_counter()
            head = solve(sides[0], sides[1], count)
            seconds[name].append(time.perf_counter() - start)
            right = head.logits(sides[2][0]).argmax(axis=1) == sides[2][1]
            accuracies[name].append(float(right.mean()))
    usual = float(np.median(seconds["sgd"]))
    print("| solver | mean test accuracy | by split | seconds, median | of sgd's time |")
    print("|---|--:|---|--:|--:|")
    for name in SOLVERS:
        each = ", ".join(f"{accuracy:.3f}" for accuracy in accuracies[name])
        middle = float(np.median(seconds[name]))
        mean = np.mean(accuracies[name])
        print(f"| {name} | {mean:.4f} | {each} | {middle:.2f} | {middle / usual:.2f} |")


def race() -> None:
    """Print the time of the loop in the graph and of the one that Python feeds, in turns."""
    random = np.random.default_rng(0)
    features = np.maximum(random.normal(size=(2000, 1280)), 0).astype(np.float32)
    train = features, random.integers(0, 8, 2000)
    validation = features[:200], train[1][:200]
    seconds: dict[str, list[float]] = {"sgd": [], "sgd fed from Python": []}
    for _ in range(3):
        for name, times in seconds.items():
            start = time.perf_counter()
            SOLVERS[name](train, validation, 8)
            times.append(time.perf_counter() - start)
    print("| loop | seconds: least | median | most |")
    print("|---|--:|--:|--:|")
    for name, times in seconds.items():
        print(f"| {name} | {min(times):.2f} | {np.median(times):.2f} | {max(times):.2f} |")
    medians = [float(np.median(times)) for times in seconds.values()]
    print(f"\nFed from Python it takes {medians[1] / medians[0]:.1f} times as long.")


if __name__ == "__main__":
    main()
