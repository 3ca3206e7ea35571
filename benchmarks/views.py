"""What distorted views of the training images change, on the sample drawings.

    python benchmarks/views.py [--data samples/clipart] [--splits 5] [--views 0 2 4]

Each split is drawn anew, every label in its proportion: 80 % train, 10 % choose the L2 penalty and
10 % are scored. All rows of the table have the same splits, so the difference to the first row is
taken split by split; behind it is its standard error, which is a little too small, since splits
share images. `--train-percent` leaves out a part of the training images: few of them are where
views are said to help.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from job.backbone import load_backbone
from job.config import DEFAULT_BACKBONE
from job.dataset import Index, Split
from job.distort import Distortion, view_loader
from job.embed import Embeddings, embed
from job.index import build_index
from job.lbfgs import fit
from job.sources import folder_rows
from job.storage import open_store
from job.views import embed_views


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one split, int `[n]` each."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def main() -> None:
    """Print one row for each number of views."""
    options = parse()
    distortion = Distortion(options.flip, options.crop, options.scale, options.brightness)
    features, classes = embed_all(options.data, options.backbone, distortion, max(options.views))
    parts = [split(classes, seed, options.train_percent) for seed in range(options.splits)]
    print(f"{options.data}: {len(classes)} images, {options.splits} splits, {distortion}\n")
    print("| views | rows | accuracy | difference | gained, lost | L2, median | fit, seconds |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    first = None
    for views in options.views:
        start = time.perf_counter()
        right, penalties = score(features[: 1 + views], classes, parts)
        seconds = (time.perf_counter() - start) / len(parts)
        first = right if first is None else first
        gains = right.mean(axis=1) - first.mean(axis=1)
        error = gains.std(ddof=1) / len(gains) ** 0.5
        print(
            f"| {views} | {(1 + views) * len(parts[0].train)} | {right.mean():.4f} "
            f"| {gains.mean():+.4f} ± {error:.4f} | {(right & ~first).sum()}, "
            f"{(first & ~right).sum()} | {np.median(penalties):.2g} | {seconds:.1f} |",
            flush=True,
        )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="samples/clipart")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--views", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--train-percent", type=float, default=80)
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True)
    for name in ("crop", "scale", "brightness"):
        parser.add_argument(f"--{name}", type=float, default=10)
    return parser.parse_args()


def embed_all(
    data: str, handle: str, distortion: Distortion, views: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give features `[1+views,n,d]` of every image and its views, and classes `[n]`.

    Any image may be on the training side of some split, so all have views.
    """
    store = open_store(data)
    listed = build_index(folder_rows(store), 10, 10)
    index = replace(listed, examples=tuple(replace(e, split=Split.TRAIN) for e in listed.examples))
    with tempfile.TemporaryDirectory() as kept:
        backbone = load_backbone(handle, cache_dir=Path(kept))

        def embed_view(index: Index, view: int) -> Embeddings:
            opener = partial(view_loader, backbone.image_size, distortion, view)
            start = time.perf_counter()
            made = embed(store, index, backbone, threads=8, open_decoder=opener)
            print(f"view {view}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
            return made

        embeddings = embed(store, index, backbone, threads=8)
        features, classes = embed_views(embeddings, views, embed_view)
    count = len(embeddings.index.examples)
    return features.reshape(1 + views, count, -1), classes[:count]


def split(classes: np.ndarray, seed: int, train_percent: float) -> Part:
    """Draw one split, stratified, with a tenth of the images each to choose and to score."""
    rows = np.arange(len(classes))
    rest, test = train_test_split(rows, test_size=0.1, stratify=classes, random_state=seed)
    train, validation = train_test_split(
        rest, test_size=1 / 9, stratify=classes[rest], random_state=seed
    )
    if train_percent < 80:
        train, _ = train_test_split(
            train, train_size=train_percent / 80, stratify=classes[train], random_state=seed
        )
    return Part(train, validation, test)


def score(
    features: np.ndarray, classes: np.ndarray, parts: list[Part]
) -> tuple[np.ndarray, list[float]]:
    """Tell of each scored image whether it is right, bool `[parts,n]`, and the L2 of each part."""
    right, penalties = [], []
    for part in parts:
        train = np.concatenate([view[part.train] for view in features])
        fitted = fit(
            (train, np.tile(classes[part.train], len(features))),
            (features[0][part.validation], classes[part.validation]),
            int(classes.max()) + 1,
        )
        guess = fitted.head.probabilities(features[0][part.test]).argmax(axis=1)
        right.append(guess == classes[part.test])
        penalties.append(fitted.l2)
    return np.array(right), penalties


if __name__ == "__main__":
    main()
