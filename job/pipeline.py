"""The story of a run, from labelled images to a version that TensorFlow Serving can trust."""

from __future__ import annotations

from contextlib import ExitStack

from job.assess import assess
from job.backbone import resolve
from job.checkup import look_at_data
from job.config import RunConfig
from job.progress import Progress
from job.publish import publish
from job.release import find_unchanged, hand_over, pass_gate, write_bundle
from job.replicas import join_workers
from job.report import Facts
from job.result import Result
from job.stages import (
    is_left_to_others,
    make_plan,
    open_cache,
    open_source,
    read_images,
    settle_split,
)
from job.training import train
from job.verifier import standby
from job.workdir import work_folder


def run(config: RunConfig, progress: Progress, result: Result) -> Facts | None:
    """Retrain and publish; `result` is filled in on the way, so that a failure keeps it.

    None where nothing is to be published: what is in service is the same, or another job goes on.
    Raises the errors of `job.errors`; nothing new is in service then.
    """
    result.seconds = progress.seconds
    with work_folder(config.work_dir) as folder, ExitStack() as stack:
        plan = make_plan(config, progress, result)
        with progress.phase("backbone"):
            found = resolve(config.backbone, cache_dir=config.work_dir or folder)
            cache = open_cache(config, found.digest, result)
            same = find_unchanged(config, plan, found.digest, cache)
            if same is not None:
                result.finish("unchanged", plan.models.uri, same)
                return None
            replicas = stack.enter_context(join_workers(config))
            source = open_source(config, plan, found, cache, folder, replicas)
        if is_left_to_others(config, source, progress, result):
            return None
        embeddings = read_images(config, source, progress, result)
        divided = settle_split(config, plan, embeddings, progress, result)
        divided, checkup = look_at_data(config, source, divided, progress, result)
        size = source.backbone.image_size
        with standby(size, config.exact_decode, config.max_pixels) as verifier:
            trained = train(config, source, divided, progress, result)
            if trained is None:
                return None
            facts = assess(config, plan, trained, checkup, progress, result)
            pass_gate(config, plan, facts, result)
            bundle, goldens = write_bundle(config, source, trained, facts, progress, result)
            with progress.phase("verify"):
                verifier.check(bundle)
        with progress.phase("publish"):
            version = publish(bundle, plan.models)
            trained.checkpoints.clear()
        hand_over(config, plan.models, version, goldens, progress)
    result.finish("published", plan.models.uri, version)
    return facts
