"""The steps of a run that take more than a call: what `pipeline.run` is made of."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np

from job.backbone import Backbone
from job.calibrate import fit_temperature
from job.config import RunConfig
from job.dataset import Index, Split, build_index, check_split
from job.embed import Embeddings, Skipped, embed
from job.errors import DataError, RegraftError
from job.evaluate import Report, evaluate
from job.fit import L2_PATH, Fit, fit
from job.gate import Comparison, Verdict, judge
from job.head import Head
from job.manifest import packages
from job.progress import Progress, log
from job.publish import next_version, read_listing
from job.report import Facts
from job.result import Result
from job.service import InService, arrange_labels, compare_with_service, read_in_service
from job.storage import Store, check_writable, open_store


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run starts from, checked: both stores answer and the data set can be split."""

    data: Store
    models: Store
    index: Index
    serving: InService | None


@dataclass(frozen=True, slots=True)
class Trained:
    """What fit made: `head` is the one to export, its logits divided by the temperature."""

    fit: Fit
    head: Head
    temperature: float


def make_plan(config: RunConfig, progress: Progress, result: Result) -> Plan:
    """Check all that can be checked before a backbone is loaded; `plan` ends here."""
    with progress.phase("index"):
        data = open_store(config.data, connections=config.fetch_threads)
        index = build_index(data, config.validation_percent, config.test_percent)
        models = open_store(config.models).child(config.name)
        check_writable(models)
        listing = read_listing(models)
        next_version(listing.newest, time.time())
        serving = read_in_service(models, listing)
        labels = arrange_labels(index.labels, serving, allow_change=config.allow_label_change)
        index = index.arranged(labels)
    result.labels = list(index.labels)
    result.images = count_images(index, ())
    return Plan(data, models, index, serving)


def read_images(
    config: RunConfig, plan: Plan, backbone: Backbone, progress: Progress, result: Result
) -> Embeddings:
    """Embed the data set and see to it that enough of it could be read.

    Raises DataError when more than `max_skipped` percent could not, or when a side of the split
    has lost a label's last image.
    """
    with progress.phase("embed", len(plan.index.examples)) as advance:
        embeddings = embed(
            plan.data,
            plan.index,
            backbone,
            batch_size=config.batch_size,
            threads=config.fetch_threads,
            advance=advance,
        )
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
    check_split(embeddings.index)
    return embeddings


def train(config: RunConfig, embeddings: Embeddings, progress: Progress) -> Trained:
    """Fit the head, and on the validation images its temperature."""
    with progress.phase("fit", len(L2_PATH) if config.l2 is None else 1) as advance:
        training, validation = (rows(embeddings, s) for s in (Split.TRAIN, Split.VALIDATION))
        classes = len(embeddings.index.labels)
        fitted = fit(training, validation, classes, l2=config.l2, advance=advance)
        temperature = fit_temperature(fitted.head.logits(validation[0]), validation[1])
    return Trained(fitted, fitted.head.tempered(temperature), temperature)


def assess(
    config: RunConfig, plan: Plan, backbone: Backbone, embeddings: Embeddings, trained: Trained,
    progress: Progress, result: Result,
) -> Facts:  # fmt: skip
    """Score the head on the test images, which neither fit nor the choice of L2 has seen."""
    features, classes = rows(embeddings, Split.TEST)
    examples = tuple(e for e in embeddings.index.examples if e.split is Split.TEST)
    labels = embeddings.index.labels
    with progress.phase("evaluate"):
        scores = trained.head.probabilities(features)
        report = evaluate(scores, classes, labels)
        result.metrics = figures(report, trained)
    with progress.phase("gate"):
        right = scores.argmax(axis=1) == classes
        comparison = compare_with_service(
            config, plan.data, plan.models, plan.serving, examples, labels, right
        )
    return Facts(
        name=config.name,
        labels=labels,
        names=tuple(example.name for example in examples),
        classes=classes,
        scores=scores,
        uncalibrated=trained.fit.head.probabilities(features),
        temperature=trained.temperature,
        report=report,
        comparison=comparison,
        verdict=pass_judgement(config, report, comparison),
        images=result.images,
        seconds=result.seconds,
        provenance=provenance(config, backbone, trained),
        read_image=lambda name: read_quietly(plan.data, name),
    )


def figures(report: Report, trained: Trained) -> dict[str, object]:
    """Give the `metrics` of a result: those of the test images, and how the head was found."""
    return report.as_json("test") | {
        "validation_log_loss": round(trained.fit.validation_loss, 6),
        "train_loss": round(trained.fit.loss, 6),
        "gradient_norm": trained.fit.gradient_norm,
        "l2": trained.fit.l2,
        "temperature": round(trained.temperature, 6),
        "test_recall": {s.label: round(s.recall, 4) for s in report.per_label},
    }


def pass_judgement(config: RunConfig, report: Report, comparison: Comparison | None) -> Verdict:
    """Ask the gate with the minima and the significance of the configuration."""
    return judge(
        report,
        comparison,
        min_accuracy=config.min_accuracy,
        min_recall_per_class=config.min_recall_per_class,
        alpha=config.gate_alpha,
    )


def provenance(config: RunConfig, backbone: Backbone, trained: Trained) -> dict[str, str]:
    """Give what the report shows of where a model comes from."""
    return {
        "data": config.data,
        "backbone": backbone.handle,
        "backbone digest": backbone.digest,
        "L2 penalty": f"{trained.fit.l2:.3g}",
        "split": f"{config.validation_percent:g} % validation, {config.test_percent:g} % test",
        **packages(),
    }


def read_quietly(store: Store, name: str) -> bytes | None:
    """Give an image's bytes for its thumbnail; None when it cannot be had any more."""
    try:
        return store.read(name)
    except (RegraftError, OSError):
        return None


def rows(embeddings: Embeddings, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Give one side of the split: features float32 `[n,d]` and class indices int64 `[n]`."""
    examples = embeddings.index.examples
    chosen = [row for row, example in enumerate(examples) if example.split is split]
    classes = np.array([examples[row].class_index for row in chosen], np.int64)
    return embeddings.features[chosen], classes


def count_images(index: Index, skipped: tuple[Skipped, ...]) -> dict[str, object]:
    """Give the `images` of a result."""
    return {
        "total": len(index.examples) + len(skipped),
        "skipped": len(skipped),
        **{split.value: index.count(split) for split in Split},
        "skipped_names": [f"{item.name}: {item.reason}" for item in skipped],
    }
