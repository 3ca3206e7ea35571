"""The version in service: what a new one must be compatible with, and is compared to."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from job.config import RunConfig
from job.dataset import Example, Index
from job.errors import ConfigError, PublishError
from job.gate import Comparison, compare
from job.manifest import inputs_digest
from job.predict import load_model, score_images
from job.progress import log
from job.publish import in_service
from job.storage import Store, crc32c


@dataclass(frozen=True, slots=True)
class InService:
    """The version in service and its labels; `manifest` is empty where it has none of ours."""

    version: int
    labels: tuple[str, ...]
    manifest: dict[str, Any]


def read_in_service(models: Store) -> InService | None:
    """Give the version in service; None where there is none."""
    version = in_service(models)
    if version is None:
        return None
    texts = []
    for name in ("labels.txt", "manifest.json"):
        try:
            texts.append(models.read(f"{version}/{name}").decode())
        except FileNotFoundError:
            texts.append("")
    try:
        manifest = json.loads(texts[1] or "{}")
    except ValueError:
        manifest = {}
    return InService(version, tuple(texts[0].splitlines()), manifest)


def arrange_labels(
    found: tuple[str, ...], serving: InService | None, *, allow_change: bool
) -> tuple[str, ...]:
    """Give the labels in class order: those in service keep their indices, new ones follow.

    Raises PublishError when a label of the version in service is gone, unless `allow_change`.
    """
    if serving is None or allow_change:
        return found
    if gone := [label for label in serving.labels if label not in found]:
        raise PublishError(
            f"the version in service, {serving.version}, has labels that the data has not: "
            f"{', '.join(map(repr, gone[:5]))}",
            hint="clients know labels by their index: put the images back, publish under a new "
            "--name, or pass --allow-label-change",
        )
    return serving.labels + tuple(label for label in found if label not in serving.labels)


def is_unchanged(
    config: RunConfig, data: Store, index: Index, serving: InService | None, backbone: str
) -> bool:
    """Tell whether a run would train what is in service already."""
    published = serving.manifest.get("inputs", {}).get("digest") if serving else None
    if published is None:
        return False

    def checksum(example: Example) -> str:
        return example.entry.crc32c or crc32c(data.read(example.name, example.entry))

    with ThreadPoolExecutor(config.fetch_threads) as pool:
        sums = dict(
            zip((e.name for e in index.examples), pool.map(checksum, index.examples), strict=True)
        )
    return bool(inputs_digest(config, index.labels, sums, backbone) == published)


def compare_with_service(
    config: RunConfig,
    data: Store,
    models: Store,
    serving: InService | None,
    examples: tuple[Example, ...],
    labels: tuple[str, ...],
    right: np.ndarray,
) -> Comparison | None:
    """Compare a new model's answers, `right` bool `[n]`, with those of the version in service.

    None where there is nothing to compare with: no version, `--gate-alpha 0`, or one that this tool
    cannot ask, which is logged.
    """
    if serving is None or config.gate_alpha == 0:
        return None
    try:
        model = load_model(f"{models.uri}/{serving.version}")
    except ConfigError as error:
        message = f"no comparison with version {serving.version}: {error.message}"
        log(message, level=logging.WARNING)
        return None
    scored = score_images(model, data, examples, threads=config.fetch_threads)
    place = {example.name: row for row, example in enumerate(examples)}
    rows = [place[example.name] for example in scored.examples]
    guess = [model.labels[index] for index in scored.scores.argmax(axis=1)]
    truth = [labels[example.class_index] for example in scored.examples]
    return compare(
        serving.version,
        [example.name for example in scored.examples],
        labels,
        np.array([example.class_index for example in scored.examples]),
        np.array([a == b for a, b in zip(guess, truth, strict=True)], bool),
        right[rows],
    )
