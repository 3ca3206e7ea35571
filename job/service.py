"""The version in service: what a new one must be compatible with, and is compared to."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from job.config import RunConfig
from job.dataset import Example, Index
from job.errors import ConfigError, PublishError
from job.gate import Comparison, compare
from job.manifest import inputs_digest
from job.predict import load_model, score_images
from job.progress import log
from job.publish import Listing, in_service, read_channels
from job.storage import Store, crc32c


@dataclass(frozen=True, slots=True)
class InService:
    """The version in service and its labels.

    `inputs` is the digest of what it was trained from, empty where it has no manifest of ours.
    `rolled_back` maps such digests of versions that a person took back to those versions.
    """

    version: int
    labels: tuple[str, ...]
    inputs: str
    rolled_back: dict[str, int]


def read_in_service(models: Store, listing: Listing) -> InService | None:
    """Give the version in service by a listing of the model's store; None where there is none."""
    version = in_service(listing, read_channels(models))
    if version is None:
        return None
    try:
        labels = models.read(f"{version}/labels.txt").decode().splitlines()
    except FileNotFoundError:
        labels = []
    return InService(
        version,
        tuple(labels),
        _inputs(models, str(version)),
        {_inputs(models, f".withdrawn/{v}"): v for v in listing.rolled_back},
    )


def _inputs(models: Store, folder: str) -> str:
    try:
        manifest = json.loads(models.read(f"{folder}/manifest.json"))
        return str(manifest["inputs"]["digest"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


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
    config: RunConfig, data: Store, index: Index, serving: InService, backbone: str
) -> bool:
    """Tell whether a run would train what is in service already, or what a person took back."""
    if not serving.inputs and not serving.rolled_back:
        return False

    def checksum(example: Example) -> str:
        return example.entry.crc32c or crc32c(data.read(example.name, example.entry))

    try:
        with ThreadPoolExecutor(config.fetch_threads) as pool:
            sums = list(pool.map(checksum, index.examples))
    except FileNotFoundError:  # it is changing right now
        return False
    named = dict(zip((example.name for example in index.examples), sums, strict=True))
    digest = inputs_digest(config, index.labels, named, backbone)
    if version := serving.rolled_back.get(digest):
        message = f"version {version} of the same inputs was rolled back; --force publishes them"
        log(message, level=logging.WARNING, version=version)
        return True
    return digest == serving.inputs


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
