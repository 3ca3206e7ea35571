"""The story of a run: fetch, index and split, embed, fit, evaluate, export, publish."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from job.backbone import Backbone, load_backbone
from job.config import RunConfig
from job.dataset import Index, Split, build_index, check_split
from job.embed import Embeddings, Skipped, embed
from job.errors import DataError
from job.evaluate import Report, evaluate
from job.export import EXPORTERS, Classifier, export
from job.fit import L2_PATH, Fit, fit
from job.manifest import write_manifest
from job.progress import Progress, log
from job.publish import next_version, publish, read_listing
from job.result import Result
from job.storage import Store, check_writable, open_store


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run starts from, checked: both stores answer and the data set can be split."""

    data: Store
    models: Store
    index: Index


def run(config: RunConfig, progress: Progress, result: Result) -> Report:
    """Retrain and publish; `result` is filled in on the way, so that a failure keeps it.

    Raises the errors of `job.errors`; nothing has been published then.
    """
    result.seconds = progress.seconds
    with work_folder(config) as folder:
        plan = make_plan(config, progress, result)
        with progress.phase("backbone"):
            backbone = load_backbone(
                config.backbone, cache_dir=folder / "modules", image_size=config.image_size
            )
        embeddings = read_images(config, plan, backbone, progress, result)
        with progress.phase("fit", len(L2_PATH) if config.l2 is None else 1) as advance:
            train, validation = (rows(embeddings, s) for s in (Split.TRAIN, Split.VALIDATION))
            classes = len(plan.index.labels)
            fitted = fit(train, validation, classes, l2=config.l2, advance=advance)
        with progress.phase("evaluate"):
            report = score(embeddings, fitted, result)
        with tempfile.TemporaryDirectory(dir=folder, prefix="export-") as exports:
            bundle = Path(exports) / "bundle"
            with progress.phase("export", len(EXPORTERS)) as advance:
                classifier = Classifier(backbone, fitted.head, plan.index.labels)
                export(classifier, bundle, advance=advance)
                write_manifest(bundle, config, embeddings, backbone.digest, result)
            with progress.phase("publish"):
                result.version = publish(bundle, plan.models)
    result.uri = f"{plan.models.uri}/{result.version}"
    result.status = "published"
    return report


def make_plan(config: RunConfig, progress: Progress, result: Result) -> Plan:
    """Check all that can be checked before a backbone is loaded; `plan` ends here."""
    with progress.phase("index"):
        data = open_store(config.data, connections=config.fetch_threads)
        index = build_index(data, config.validation_percent, config.test_percent)
        models = open_store(config.models).child(config.name)
        check_writable(models)
        next_version(read_listing(models).newest, time.time())
    result.labels = list(index.labels)
    result.images = count_images(index, ())
    return Plan(data, models, index)


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
        log(f"skipped {item.name!r}: {item.reason}", level=30, name=item.name, reason=item.reason)
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


def score(embeddings: Embeddings, fitted: Fit, result: Result) -> Report:
    """Score the head on the test images, which neither fit nor the choice of L2 has seen."""
    features, classes = rows(embeddings, Split.TEST)
    report = evaluate(fitted.head.probabilities(features), classes, embeddings.index.labels)
    result.metrics = report.as_json("test") | {
        "validation_log_loss": round(fitted.validation_loss, 6),
        "train_loss": round(fitted.loss, 6),
        "gradient_norm": fitted.gradient_norm,
        "l2": fitted.l2,
        "test_recall": {s.label: round(s.recall, 4) for s in report.per_label},
    }
    return report


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


@contextlib.contextmanager
def work_folder(config: RunConfig) -> Iterator[Path]:
    """Give `--work-dir`, or a temporary folder that goes away with the run."""
    if config.work_dir is None:
        with tempfile.TemporaryDirectory(prefix="regraft-") as temporary:
            yield Path(temporary)
    else:
        check_writable(open_store(str(config.work_dir)))
        yield config.work_dir
