"""Test accuracy of fine-tuned backbones on the sample drawings, beside the head alone.

    python benchmarks/finetune.py [--data samples/clipart] [--splits 2] [--only NAME ...]

Each split is random and stratified: 80 % train, 10 % validation, 10 % test. The head's L2 penalty
and the epoch that is kept are chosen on the validation images; the test images are only scored.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# As the job does it: one thread an operation, and TensorFlow Hub's Keras beside Keras 3.
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_USE_LEGACY_KERAS": "1"}

from sklearn.model_selection import train_test_split

from job.backbone import load_backbone, resolve
from job.config import DEFAULT_BACKBONE
from job.dataset import Index
from job.embed import embed
from job.evaluate import wilson
from job.feed import FinetuneData, Side
from job.finetune import finetune
from job.fit import Fit
from job.forward import Forward
from job.images import loader
from job.index import build_index
from job.lbfgs import fit
from job.recipe import FinetuneOptions
from job.sources import folder_rows
from job.storage import Store, open_store
from job.trainable import load_trainable

DEFAULTS = FinetuneOptions()
RECIPES = {
    "all layers": DEFAULTS,
    "last 13 layers": replace(DEFAULTS, unfreeze=13),
    "all layers, slower": replace(DEFAULTS, backbone_learning_rate=3e-5),
    "all layers, faster": replace(DEFAULTS, backbone_learning_rate=3e-4),
    "last 4 layers": replace(DEFAULTS, unfreeze=4),
    "all layers, mixup": replace(DEFAULTS, augment="mixup"),
    "all layers, cutmix": replace(DEFAULTS, augment="cutmix"),
    "all layers, label smoothing 0.1": replace(DEFAULTS, label_smoothing=0.1),
    "all layers, EMA 0.95": replace(DEFAULTS, ema=0.95),
    "all layers, balanced": replace(DEFAULTS, class_weights="balanced"),
}


def main() -> None:
    """Print one row for each recipe: means over the splits, and how many test images there were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="samples/clipart")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    store = open_store(options.data)
    index = build_index(folder_rows(store), 10, 10)
    classes = np.array([example.class_index for example in index.examples])
    print(f"{options.data}: {len(classes)} images, {len(index.labels)} labels")
    print(f"{options.splits} splits\n")
    print("| trained | test accuracy | 95 % interval | validation loss | best epoch | s |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(store, index, classes, options.backbone, Path(folder))
        splits = [bench.split(seed) for seed in range(options.splits)]
        show("head alone", [bench.head_alone(split) for split in splits])
        for name in options.only:
            show(name, [bench.run(split, RECIPES[name]) for split in splits])


# Right answers, test images, validation loss, best epoch and seconds.
Row = tuple[int, int, float, float, float]


class Bench:
    """The embeddings of the frozen backbone, and what is trained from them."""

    def __init__(
        self, store: Store, index: Index, classes: np.ndarray, handle: str, cache: Path
    ) -> None:
        self._store, self._index, self._classes, self._cache = store, index, classes, cache
        self._resolved = resolve(handle, cache_dir=cache)
        backbone = load_backbone(self._resolved, cache_dir=cache)
        self._features = embed(store, index, backbone, batch_size=32, threads=8).features
        self._decode = loader(backbone.image_size)

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give the rows of train, validation and test."""
        rows = np.arange(len(self._classes))
        rest, test = train_test_split(
            rows, test_size=0.1, stratify=self._classes, random_state=seed
        )
        train, validation = train_test_split(
            rest, test_size=1 / 9, stratify=self._classes[rest], random_state=seed
        )
        return train, validation, test

    def fit(self, train: np.ndarray, validation: np.ndarray) -> Fit:
        """Give the best head on the frozen embeddings."""
        features, classes = self._features, self._classes
        pairs = [(features[rows], classes[rows]) for rows in (train, validation)]
        return fit(*pairs, len(self._index.labels))

    def head_alone(self, split: tuple[np.ndarray, ...]) -> Row:
        """Score the head on the frozen embeddings."""
        start = time.perf_counter()
        train, validation, test = split
        found = self.fit(train, validation)
        guess = found.head.logits(self._features[test]).argmax(axis=1)
        right = int((guess == self._classes[test]).sum())
        return right, len(test), found.validation_loss, 0, time.perf_counter() - start

    def run(self, split: tuple[np.ndarray, ...], options: FinetuneOptions) -> Row:
        """Fine-tune from the head and score on the test images, with the frozen result."""
        train, validation, test = split
        found = self.fit(train, validation)
        trainable = load_trainable(self._resolved, cache_dir=self._cache, image_size=None)
        data = FinetuneData(
            lambda row: self._store.read(self._index.examples[row].name),
            Side(train, self._classes[train], self._decode),
            Side(validation, self._classes[validation], self._decode),
        )
        start = time.perf_counter()
        tuned = finetune(trainable, found.head, data, replace(options, l2=found.l2), observe=tell)
        seconds = time.perf_counter() - start
        images = [self._decode(data.read(row)) for row in test]
        guess = tuned.head.logits(Forward(tuned.backbone, 32)(images)).argmax(axis=1)
        right = int((guess == self._classes[test]).sum())
        epoch = tuned.best_step / options.steps_per_epoch(len(train))
        return right, len(test), tuned.validation_loss, epoch, seconds


def tell(side: str, step: int, **values: float) -> None:
    """Write each validation to stderr."""
    if side == "validation":
        said = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"step {step}: {said}", file=sys.stderr, flush=True)


def show(name: str, rows: list[Row]) -> None:
    """Print a row; the interval is Wilson's over the test images of all splits together."""
    right, count, loss, epoch, seconds = np.array(rows).T
    low, high = wilson(int(right.sum()), int(count.sum()))
    shares = ", ".join(f"{share:.3f}" for share in right / count)
    print(
        f"| {name} | {right.sum() / count.sum():.3f} ({shares}) | {low:.3f} to {high:.3f} "
        f"| {loss.mean():.3f} | {epoch.mean():.1f} | {seconds.mean():.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
