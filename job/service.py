"""The version in service: what a new one must be compatible with, and is compared to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from job.cache import EmbeddingCache
from job.config import RunConfig
from job.dataset import Example, Index
from job.documents import parse_object
from job.errors import ConfigError, PublishError
from job.gate import Comparison
from job.images import PREPROCESSING_VERSION
from job.labelling import TASKS, Thresholds, task_of, thresholds_of
from job.manifest import inputs_digest
from job.predict import load_model, read_head, score_images
from job.progress import log
from job.publish import Listing, in_service, read_channels
from job.storage import Readable, Store, crc32c


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
        manifest = parse_object(models.read(f"{folder}/manifest.json"))
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


def unchanged_version(
    config: RunConfig,
    data: Readable,
    index: Index,
    serving: InService | None,
    backbone: str,
    cache: EmbeddingCache | None,
) -> int | None:
    """Give the version in service if a run would train it again, or what a person took back.

    None otherwise, and with `--force` or `--resplit`. A file is read only where neither the listing
    nor the cache knows its checksum.
    """
    if (
        config.force
        or config.resplit
        or serving is None
        or not (serving.inputs or serving.rolled_back)
    ):
        return None

    def checksum(example: Example) -> str:
        entry = example.entry
        known = None if entry.crc32c or cache is None else cache.known(entry)
        try:
            return known.checksum if known else entry.crc32c or crc32c(data.read(entry.name, entry))
        except FileNotFoundError:  # an import file names it, or it is changing right now
            return ""

    with ThreadPoolExecutor(config.fetch_threads) as pool:
        sums = list(pool.map(checksum, index.examples))
    named = dict(zip((example.name for example in index.examples), sums, strict=True))
    digest = inputs_digest(config, index, named, backbone)
    if version := serving.rolled_back.get(digest):
        message = f"version {version} of the same inputs was rolled back; --force publishes them"
        log(message, level=logging.WARNING, version=version)
        return serving.version
    return serving.version if digest == serving.inputs else None


@dataclass(frozen=True, slots=True)
class Answered:
    """The test images, n of them, and a new model's answers to them.

    `features` are their embeddings, float32 `[n,d]`, of the backbone with the digest `backbone`;
    `right`, bool `[n]`, is whether the new model takes each for what it is; where images have any
    number of labels it is bool `[n,c]`, whether it is right about each label.
    """

    examples: tuple[Example, ...]
    backbone: str
    features: np.ndarray
    right: np.ndarray


@dataclass(frozen=True, slots=True)
class _Choices:
    """What a version takes some test images for: row i of `chosen` is of test image `rows[i]`.

    `chosen` is as the task's labelling gives it, of `width` labels: those of the new model and
    behind them the version's own others.
    """

    rows: list[int]
    chosen: np.ndarray
    width: int


def _choose(
    task: str,
    labels: tuple[str, ...],
    rows: list[int],
    scores: np.ndarray,
    theirs: Sequence[str],
    thresholds: Thresholds,
) -> _Choices:
    """Choose by a version's scores, float32 `[m,k]`, one for each of `theirs`.

    A label that it does not know has a score that is below all others and any threshold. Raises
    ValueError where there are not as many scores as labels.
    """
    names = [*labels, *(label for label in theirs if label not in labels)]
    known = [names.index(label) for label in theirs]
    arranged = np.full((len(scores), len(names)), -np.inf, np.float32)
    arranged[:, known] = scores
    if thresholds is not None:
        limits = np.zeros(len(names), np.float32)
        limits[known] = thresholds
        thresholds = limits
    return _Choices(rows, TASKS[task].choose(arranged, thresholds), len(names))


def compare_with_service(
    config: RunConfig,
    data: Readable,
    models: Store,
    serving: InService | None,
    labels: tuple[str, ...],
    tested: Answered,
) -> Comparison | None:
    """Compare a new model's answers with those of the version in service.

    None where there is nothing to compare with: no version, `--gate-alpha 0`, or one that this tool
    cannot ask, which is logged.
    """
    if serving is None or config.gate_alpha == 0:
        return None
    try:
        version = models.child(str(serving.version))
        found = _ask_head(config, version, labels, tested) or _ask_model(
            config, version, data, labels, tested
        )
    except ConfigError as error:
        message = f"no comparison with version {serving.version}: {error.message}"
        log(message, level=logging.WARNING)
        return None
    labelling = TASKS[config.task]
    examples = [tested.examples[row] for row in found.rows]
    targets = labelling.targets(examples, found.width)
    return labelling.compare(
        serving.version,
        [example.name for example in examples],
        labels,
        targets,
        found.chosen == targets,
        tested.right[found.rows],
    )


def _ask_head(
    config: RunConfig, version: Store, labels: tuple[str, ...], tested: Answered
) -> _Choices | None:
    """Apply a version's head to the embeddings; None unless they are what its backbone gives."""
    try:
        manifest = parse_object(version.read("manifest.json"))
        inputs, options, names = (manifest[k] for k in ("inputs", "configuration", "labels"))
        same = (
            # A version of before there was fine-tuning names the backbone only.
            manifest.get("features", inputs["backbone"]["digest"]) == tested.backbone
            and inputs["preprocessing"] == PREPROCESSING_VERSION
            and options["image_size"] == config.image_size
            and options["exact_decode"] == config.exact_decode
            and task_of(manifest) == config.task
        )
        if not same:
            return None
        head = replace(read_head(version), activation=TASKS[config.task].activation)
        scores = head.probabilities(tested.features)
        rows = list(range(len(scores)))
        thresholds = thresholds_of(manifest, names)
        return _choose(config.task, labels, rows, scores, names, thresholds)
    except (ConfigError, FileNotFoundError, ValueError, LookupError, TypeError):
        return None  # what is wrong with it is told when the model is loaded


def _ask_model(
    config: RunConfig, version: Store, data: Readable, labels: tuple[str, ...], tested: Answered
) -> _Choices:
    """Load a version and ask it; test images that cannot be read any more are left out."""
    model = load_model(version.uri)
    if model.task != config.task:
        raise ConfigError(f"it was trained with --task {model.task}, not {config.task}")
    scored = score_images(model, data, tested.examples, threads=config.fetch_threads)
    place = {example.name: row for row, example in enumerate(tested.examples)}
    rows = [place[example.name] for example in scored.examples]
    return _choose(config.task, labels, rows, scored.scores, model.labels, model.thresholds)
