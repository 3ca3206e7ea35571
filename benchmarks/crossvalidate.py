"""Cross-validated accuracy of the default run on the sample drawings, beside plain pixels.

    python benchmarks/crossvalidate.py [--data samples/clipart] [--folds 5] [--seeds 5]

Each fold is the test side once. Of the rest a ninth chooses the L2 penalty and the others train,
as `run` does it with its default shares, so nothing is fitted to what is scored. The second row is
what `--cache-dtype float16` does to it. The pixel row is
the same head on the 16x16 image, flattened: what the labels give away without a backbone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold, train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from job.backbone import load_backbone
from job.config import DEFAULT_BACKBONE
from job.embed import embed
from job.evaluate import wilson
from job.images import loader
from job.index import build_index
from job.lbfgs import fit
from job.sources import folder_rows
from job.storage import open_store


def main() -> None:
    """Print one row for each kind of feature."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="samples/clipart")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    store = open_store(options.data)
    index = build_index(folder_rows(store), 10, 10)
    with tempfile.TemporaryDirectory() as cache:
        backbone = load_backbone(options.backbone, cache_dir=Path(cache))
        embeddings = embed(store, index, backbone, batch_size=32, threads=8)
    pixels = loader((16, 16))
    rows = {
        options.backbone: embeddings.features,
        "the same in a float16 cache": embeddings.features.astype(np.float16).astype(np.float32),
        "16x16 pixels": np.stack(
            [pixels(store.read(e.name)).ravel() for e in embeddings.index.examples]
        ),
    }
    classes = np.array([example.class_index for example in embeddings.index.examples])
    print(f"{options.data}: {len(classes)} images, {len(index.labels)} labels")
    print(f"{options.folds} folds, {options.seeds} shuffles\n")
    print("| features | accuracy | 95 % interval of one shuffle |")
    print("|---|---|---|")
    for name, features in rows.items():
        hits = [score(features, classes, options.folds, seed) for seed in range(options.seeds)]
        low, high = wilson(round(float(np.mean(hits))), len(classes))
        print(f"| {name} | {np.mean(hits) / len(classes):.3f} | {low:.3f} to {high:.3f} |")


def score(features: np.ndarray, classes: np.ndarray, folds: int, seed: int) -> int:
    """Give how many examples are right when each is scored by a head that has not seen it."""
    hits = 0
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, classes)
    for rest, test in splits:
        train, validation = train_test_split(
            rest, test_size=1 / 9, stratify=classes[rest], random_state=seed
        )
        fitted = fit(
            (features[train], classes[train]),
            (features[validation], classes[validation]),
            int(classes.max()) + 1,
        )
        guess = fitted.head.probabilities(features[test]).argmax(axis=1)
        hits += int((guess == classes[test]).sum())
    return hits


if __name__ == "__main__":
    main()
