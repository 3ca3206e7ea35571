"""The steps of a run that take more than a call: what `pipeline.run` is made of."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from job.backbone import Backbone, Resolved, load_backbone
from job.cache import EmbeddingCache, space_name
from job.config import VERSION, ReadOptions, RunConfig
from job.dataset import Index, Split
from job.divide import Divided, divide
from job.embed import Embeddings, embed
from job.errors import DataError
from job.export import Classifier
from job.head import Head
from job.images import PREPROCESSING_VERSION
from job.intake import index_of, open_data, open_place
from job.labelling import TASKS, Thresholds
from job.ledger import Ledger, read_ledger
from job.memory import check_memory, memory_limit
from job.progress import Progress, log
from job.publish import next_version, read_listing
from job.replicas import SOLO, Replicas
from job.result import Result
from job.service import (
    InService,
    arrange_labels,
    read_in_service,
)
from job.storage import Readable, Store, check_writable
from job.stream import Decode, Skipped
from job.trainable import Trainable, load_trainable
from job.traits import TRAITS_VERSION
from job.unknown import Threshold, check_rate
from job.workers import find_place, share, wait_for_others


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run starts from, checked: the stores answer and the data set can be split.

    `index` is split by name; that is settled once the images are embedded. `newest` is the newest
    whole version.
    """

    data: Readable
    models: Store
    index: Index
    serving: InService | None
    newest: int | None


@dataclass(frozen=True, slots=True)
class Reader:
    """Where embeddings come from: images, what embeds them, a cache (None: off), room for rows."""

    data: Readable
    backbone: Backbone
    cache: EmbeddingCache | None
    scratch: Path


@dataclass(frozen=True, slots=True)
class Source(Reader):
    """Where a run's embeddings come from.

    `trainable` is the backbone with its weights in variables, where those are to be trained, and
    `replicas` are who trains them together.
    """

    plan: Plan
    trainable: Trainable | None = None
    replicas: Replicas = SOLO


def make_plan(config: RunConfig, progress: Progress, result: Result) -> Plan:
    """Check all that can be checked before a backbone is loaded; `plan` ends here."""
    with progress.phase("index"):
        check_memory(memory_limit())
        find_place(config)
        found = open_data(config, several=TASKS[config.task].several)
        index = index_of(config, found)
        if config.unknown_rate is not None:
            check_rate(config.unknown_rate, len(index.labels), index.count(Split.VALIDATION))
        models = open_place(config, config.models).child(config.name)
        check_writable(models)
        if config.cache_uri and config.cache:  # the default is a part of the same store
            check_writable(open_place(config, config.cache_uri))
        if config.summaries:
            check_writable(open_place(config, config.summaries))
        if config.deliver:
            check_writable(open_place(config, config.deliver.replace(VERSION, "")))
        listing = read_listing(models)
        next_version(listing.newest, time.time())
        serving = read_in_service(models, listing)
        labels = arrange_labels(index.labels, serving, allow_change=config.allow_label_change)
        index = index.arranged(labels)
    result.labels = list(index.labels)
    result.images = count_images(index, ())
    newest = max(listing.versions, default=None)
    return Plan(found.store, models, index, serving, newest)


def open_cache(
    config: ReadOptions, backbone: str, result: Result, view: str = "whole image"
) -> EmbeddingCache | None:
    """Open the part of the cache that fits the configuration, a view and the backbone's digest.

    None where there is to be no cache. One that cannot be used is a warning in the log. `result`
    counts what is saved.
    """
    if config.cache_uri is None:
        return None
    space = space_name(
        backbone=backbone,
        image_size=config.image_size,
        preprocessing=PREPROCESSING_VERSION,
        exact_decode=config.exact_decode,
        max_pixels=config.max_pixels,
        view=view,
        traits=TRAITS_VERSION,
        dtype=config.cache_dtype,
    )
    cache = EmbeddingCache(
        open_place(config, config.cache_uri),
        space,
        config.cache_dtype,
        threads=config.fetch_threads,
        interval=config.checkpoint_interval,
        saved=result.count_saved,
    )
    cache.refresh()
    return cache


def load_resolved(config: ReadOptions, found: Resolved, kept: Path) -> Backbone:
    """Load a backbone; compiled ones are kept beside the embeddings, or in the folder `kept`."""
    uri = config.cache_uri
    shelf = open_place(config, uri).child("backbones") if uri else None
    return load_backbone(found, cache_dir=kept, image_size=config.image_size, shelf=shelf)


def open_source(
    config: RunConfig,
    plan: Plan,
    found: Resolved,
    cache: EmbeddingCache | None,
    scratch: Path,
    replicas: Replicas,
) -> Source:
    """Load the backbone, and its weights where the solver trains them; as `load_trainable` raises.

    That is done before the images are embedded, so that a module which cannot be trained is told
    of at once.
    """
    kept = config.work_dir or scratch
    backbone = load_resolved(config, found, kept)
    trainable = None
    if config.solver == "finetune":
        trainable = load_trainable(found, cache_dir=kept, image_size=config.image_size)
    return Source(plan.data, backbone, cache, scratch, plan, trainable, replicas)


def as_classifier(
    config: RunConfig,
    backbone: Backbone,
    head: Head,
    labels: tuple[str, ...],
    *,
    thresholds: Thresholds = None,
    unknown: Threshold | None = None,
) -> Classifier:
    """Give what is exported of a backbone and a head: it decodes as the configuration says."""
    return Classifier(
        backbone, head, labels,
        exact=config.exact_decode, max_pixels=config.max_pixels,
        thresholds=thresholds, unknown=None if unknown is None else unknown.value,
    )  # fmt: skip


def embed_images(
    config: ReadOptions,
    source: Reader,
    index: Index,
    progress: Progress,
    phase: str,
    open_decoder: Callable[[], Decode] | None = None,
) -> Embeddings:
    """Embed an index, the data set's or a part of it, as the configuration says.

    `open_decoder` is that of `embed`.
    """
    with progress.phase(phase, len(index.examples)) as advance:
        return embed(
            source.data,
            index,
            source.backbone,
            threads=config.fetch_threads,
            batch_size=config.batch_size,
            exact=config.exact_decode,
            max_pixels=config.max_pixels,
            dtype=config.cache_dtype,
            cache=source.cache,
            scratch=source.scratch,
            open_decoder=open_decoder,
            advance=advance,
        )


def is_left_to_others(
    config: RunConfig, source: Source, progress: Progress, result: Result
) -> bool:
    """Embed this job's share where several work together; tell whether another one goes on."""
    worker, count = find_place(config)
    if count == 1 or source.cache is None:
        return False
    index = source.plan.index
    mine = share(index, worker, count)
    embedded = embed_images(config, source, mine, progress, "share")
    result.cache |= {"hits": embedded.hits, "misses": embedded.misses}
    if worker > 0 and source.replicas.count == 1:
        result.status = "embedded"
        return True
    others = index.without(example.name for example in mine.examples)
    with progress.phase("wait", len(others.examples)) as advance:
        wait_for_others(source.cache, others, config.workers_timeout, advance)
    return False


def read_images(
    config: RunConfig, source: Source, progress: Progress, result: Result
) -> Embeddings:
    """Embed the data set and see to it that enough of it could be read.

    Raises DataError when more than `max_skipped` percent could not.
    """
    plan = source.plan
    embeddings = embed_images(config, source, plan.index, progress, "embed")
    # Of several jobs, this one's share is in the cache by now, and was not before.
    misses = result.cache["misses"] + embeddings.misses
    result.cache |= {"hits": len(embeddings.index.examples) - misses, "misses": misses}
    result.images = count_images(embeddings.index, embeddings.skipped)
    for item in embeddings.skipped:
        message = f"skipped {item.name!r}: {item.reason}"
        log(message, level=logging.WARNING, name=item.name, reason=item.reason)
    share = 100 * len(embeddings.skipped) / len(plan.index.examples)
    if share > config.max_skipped:
        first = embeddings.skipped[0]
        raise DataError(
            f"{len(embeddings.skipped)} of {len(plan.index.examples)} images ({share:.1f} %) could "
            f"not be read, the first being {first.name!r}: {first.reason}",
            hint=f"mend or remove them, or raise --max-skipped above {config.max_skipped:g}",
        )
    return embeddings


def settle_split(
    config: RunConfig, plan: Plan, embeddings: Embeddings, progress: Progress, result: Result
) -> Divided:
    """Split the embedded images for good: copies on one side, and nobody where it was not before.

    Raises DataError when a side of the split has no image of a label.
    """
    with progress.phase("split"):
        before = Ledger() if config.resplit else read_ledger(plan.models, plan.newest)
        divided = divide(config, embeddings, before)
    left_out = len(divided.ledger.left_out)
    skipped = divided.embeddings.skipped
    result.images = count_images(divided.embeddings.index, skipped, left_out)
    return divided


def count_images(
    index: Index, skipped: tuple[Skipped, ...], left_out: int = 0
) -> dict[str, object]:
    """Give the `images` of a result; those `left_out` are copies that may not change sides."""
    return {
        "total": len(index.examples) + len(skipped) + left_out,
        "skipped": len(skipped),
        "left_out": left_out,
        **{split.value: index.count(split) for split in Split},
        "skipped_names": [f"{item.name}: {item.reason}" for item in skipped],
    }
