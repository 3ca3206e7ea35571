"""The training side with views: its images as they are, and distorted ones for the head to learn.

Only training images have views. Validation and test images are what will be asked about, so they
stay as they are; nor may a view of one be learned from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from job.dataset import Example, Index, Split
from job.embed import BLOCK, Embeddings, allocate_rows
from job.progress import log
from job.targets import Targets, class_indices


def embed_views(
    embeddings: Embeddings,
    views: int,
    embed_view: Callable[[Index, int], Embeddings],
    *,
    scratch: Path | None = None,
    targets: Targets = class_indices,
) -> tuple[np.ndarray, np.ndarray]:
    """Give the training side with `views` views of each image: features and classes for `fit`.

    `embed_view` embeds an index, the readable training images, as their view of a number, 1 to
    `views`: `embed` with `distort.view_loader` and a cache of that view's own.

    Features are float32 `[(1+views)*n,d]`, first those in `embeddings`, then view 1's in the same
    order, and so on; classes are what `targets` gives. Of a file that is not what `embeddings` has
    of it any more, or not there, that view is left out, and the log says so.

    Features lie in an unnamed file in the folder `scratch`, 4*(1+views)*n*d bytes, of which the
    kernel keeps in memory what there is room for; on the way one view's file of 4*n*d is beside it.
    Without views they are a part of `embeddings`. Raises what `embed_view` raises, and ConfigError
    when there is no room.
    """
    features, classes = embeddings.side(Split.TRAIN, targets)
    if not views:
        return features, classes
    rows = embeddings.index.rows(Split.TRAIN)
    training = replace(embeddings.index, examples=embeddings.index.examples[rows])
    names = (example.name for example in training.examples)
    known = dict(zip(names, embeddings.digests[rows], strict=True))
    count, width = features.shape
    table = allocate_rows((1 + views) * count, width, scratch)
    _copy(features, range(count), table)
    parts = [classes]
    filled = count
    for view in range(1, views + 1):
        kept = _add(view, embed_view(training, view), known, table[filled:])
        parts.append(targets(kept, len(training.labels)))
        filled += len(kept)
    return table[:filled], np.concatenate(parts)


def _add(number: int, view: Embeddings, known: dict[str, str], out: np.ndarray) -> list[Example]:
    """Copy a view's rows to the first of `out`, those of the content in `known`; tell of what."""
    examples = view.index.examples
    pairs = enumerate(zip(examples, view.digests, strict=True))
    rows = [row for row, (example, digest) in pairs if known[example.name] == digest]
    if len(rows) < len(known):
        message = f"{len(known) - len(rows)} images changed since they were read"
        log(f"{message}: view {number} is without them", level=logging.WARNING, view=number)
    _copy(view.features, rows, out)
    return [examples[row] for row in rows]


def _copy(features: np.ndarray, rows: list[int] | range, out: np.ndarray) -> None:
    """Copy rows of `features` to the first of `out`, a block in memory at a time."""
    for start in range(0, len(rows), BLOCK):
        block = list(rows[start : start + BLOCK])
        out[start : start + len(block)] = features[block]
