"""The story of a run, from labelled images to a version that TensorFlow Serving can trust."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from job.backbone import load_backbone
from job.config import RunConfig
from job.progress import Progress
from job.publish import publish
from job.release import choose_goldens, confirm_serving, leave_summaries, reject, write_bundle
from job.report import Facts
from job.result import Result
from job.service import is_unchanged
from job.stages import assess, make_plan, read_images, train
from job.storage import check_writable, open_store
from job.verify import verify_fresh


def run(config: RunConfig, progress: Progress, result: Result) -> Facts | None:
    """Retrain and publish; `result` is filled in on the way, so that a failure keeps it.

    None when inputs and configuration are those of the version in service already.

    Raises the errors of `job.errors`; nothing new is in service then.
    """
    result.seconds = progress.seconds
    with work_folder(config) as folder:
        plan = make_plan(config, progress, result)
        with progress.phase("backbone"):
            cache = config.work_dir or folder
            backbone = load_backbone(config.backbone, cache_dir=cache, image_size=config.image_size)
            serving = None if config.force else plan.serving
            if serving and is_unchanged(config, plan.data, plan.index, serving, backbone.digest):
                result.finish("unchanged", plan.models.uri, serving.version)
                return None
        embeddings = read_images(config, plan, backbone, progress, result)
        trained = train(config, embeddings, progress)
        facts = assess(config, plan, backbone, embeddings, trained, progress, result)
        leave_summaries(config, facts)
        if not facts.verdict.passed:
            reject(plan, facts, result)
        goldens = choose_goldens(plan, embeddings, facts)
        bundle = folder / "bundle"
        write_bundle(
            bundle, config, backbone, embeddings, trained, facts, goldens, progress, result
        )
        with progress.phase("verify"):
            verify_fresh(bundle)
        with progress.phase("publish"):
            version = publish(bundle, plan.models)
        confirm_serving(config, plan.models, version, goldens, progress)
    result.finish("published", plan.models.uri, version)
    return facts


@contextlib.contextmanager
def work_folder(config: RunConfig) -> Iterator[Path]:
    """Give a folder of this run's own, in `--work-dir` if there is one; it goes with the run."""
    if config.work_dir is not None:
        check_writable(open_store(str(config.work_dir)))
    with tempfile.TemporaryDirectory(prefix="regraft-", dir=config.work_dir) as temporary:
        yield Path(temporary)
