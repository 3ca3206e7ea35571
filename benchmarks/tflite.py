"""Cross-validated accuracy of every TFLite format beside the classifier it is made of.

    python benchmarks/tflite.py [--data samples/clipart] [--folds 5]

Each fold is the test side once, as in benchmarks/crossvalidate.py, and every image of it is asked
of every format. The head has the temperature that a run gives it, and calibration images are
training images, evenly spread, as many as CALIBRATION_IMAGES says. `agree` is the share of images
for which a format names the label that the classifier in memory names; `off` is the difference of
a probability, on average and the 99th percentile of the largest of each image.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold, train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from job.backbone import Backbone, load_backbone
from job.calibrate import fit_temperature
from job.config import DEFAULT_BACKBONE
from job.embed import embed
from job.evaluate import wilson
from job.export import Classifier
from job.images import loader
from job.index import build_index
from job.lbfgs import fit
from job.sources import folder_rows
from job.storage import open_store
from job.tflite import CALIBRATION_IMAGES, FORMATS, TFLiteModel, convert

COLUMNS = (
    "accuracy",
    "95 % interval",
    "agree",
    "off, mean",
    "off, 99 %",
    "MB",
    "s to convert",
    "ms an image",
)


def main() -> None:
    """Print one row for the classifier in memory and one for each format."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="samples/clipart")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    store = open_store(options.data)
    index = build_index(folder_rows(store), 10, 10)
    with tempfile.TemporaryDirectory() as cache:
        backbone = load_backbone(options.backbone, cache_dir=Path(cache))
        embeddings = embed(store, index, backbone, batch_size=32, threads=8)
    examples = embeddings.index.examples
    load = loader(backbone.image_size)
    pixels = np.stack([load(store.read(example.name)) for example in examples])
    classes = np.array([example.class_index for example in examples])
    scores: dict[str, np.ndarray] = defaultdict(lambda: np.empty((len(classes), len(index.labels))))
    cost: dict[str, list[tuple[float, int, float]]] = defaultdict(list)
    splits = StratifiedKFold(options.folds, shuffle=True, random_state=0)
    for rest, test in splits.split(pixels, classes):
        train, validation = train_test_split(
            rest, test_size=1 / 9, stratify=classes[rest], random_state=0
        )
        classifier = graft(backbone, embeddings.features, classes, train, validation, index.labels)
        scores["in memory"][test] = classifier.head.probabilities(embeddings.features[test])
        spread = np.linspace(0, len(train) - 1, CALIBRATION_IMAGES).astype(int)
        for name in FORMATS:
            start = time.perf_counter()
            data = convert(classifier, name, pixels[train[spread]])
            converted = time.perf_counter()
            scores[name][test] = TFLiteModel(data).probabilities(pixels[test])
            asked = (time.perf_counter() - converted) / len(test)
            cost[name].append((converted - start, len(data), asked))
    print(f"{options.data}: {len(classes)} images, {len(index.labels)} labels")
    print(f"{options.backbone}, {options.folds} folds\n")
    print(f"| {' | '.join(['', *COLUMNS])} |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name in scores:
        print(row(name, scores, classes, cost[name]))


def graft(
    backbone: Backbone,
    features: np.ndarray,
    classes: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    labels: tuple[str, ...],
) -> Classifier:
    """Give the classifier of a fold, its head fitted and tempered as `run` does it."""
    head = fit(
        (features[train], classes[train]), (features[validation], classes[validation]), len(labels)
    ).head
    temperature = fit_temperature(head.logits(features[validation]), classes[validation])
    return Classifier(backbone, head.tempered(temperature), labels)


def row(
    name: str,
    scores: dict[str, np.ndarray],
    classes: np.ndarray,
    cost: list[tuple[float, int, float]],
) -> str:
    """Give a row of the table."""
    found, memory = scores[name], scores["in memory"]
    right = int((found.argmax(axis=1) == classes).sum())
    low, high = wilson(right, len(classes))
    cells = [name, f"{right / len(classes):.3f}", f"{low:.3f} to {high:.3f}"]
    if cost:
        off = np.abs(found - memory)
        seconds, size, asked = np.median(cost, axis=0)
        cells += [
            f"{(found.argmax(axis=1) == memory.argmax(axis=1)).mean():.3f}",
            f"{off.mean():.4f}",
            f"{np.percentile(off.max(axis=1), 99):.3f}",
            f"{size / 1e6:.2f}",
            f"{seconds:.1f}",
            f"{1000 * asked:.0f}",
        ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
