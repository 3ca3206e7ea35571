"""The step from an optimal head to a backbone that was trained with it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from job.checkpoints import Checkpoints
from job.dataset import Split
from job.distort import distort_batch, padded_size
from job.feed import FinetuneData, Side
from job.finetune import finetune
from job.fit import Fit
from job.head import Head
from job.images import loader
from job.recipe import tuning_options
from job.standing import State
from job.task import Solved, Task, distortion_of

STAGE = "finetune"

# The entry of a kept state that has all but its arrays.
META = "meta"


def tune(task: Task, start: Fit) -> Solved:
    """Train the backbone from `start` on.

    Raises ConfigError and UnavailableError as `finetune.finetune` does.
    """
    config, session, trainable = task.config, task.session, task.source.trainable
    assert trainable is not None  # noqa: S101 - the pipeline loads one for this solver
    distortion, size = distortion_of(config), trainable.image_size
    options = replace(tuning_options(config), l2=start.l2)

    def distort(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        return distort_batch(images, distortion, seeds, size)

    replicas = task.source.replicas
    arrays, _ = replicas.from_chief({"kernel": start.head.kernel, "bias": start.head.bias}, {})
    head = Head(arrays["kernel"], arrays["bias"])  # on other processors its last bits may differ
    checkpoints = session.checkpoints
    saved = checkpoints.load(STAGE)
    found = finetune(
        trainable,
        head,
        _data(task),
        options,
        threads=config.fetch_threads,
        distort=distort if distortion.is_any else None,
        observe=session.observe,
        advance=session.advance,
        due=checkpoints.due,
        checkpoint=lambda arrays, meta: _keep(checkpoints, arrays, meta),
        watch=lambda step, head, backbone: task.watch.reached(
            step, head, backbone, options.steps(len(task.train[1]))
        ),
        resume=None if saved is None else _state(saved),
        replicas=replicas,
    )
    fit = Fit(found.head, start.l2, None, found.validation_loss, None, found.steps)
    return Solved(fit, found.backbone)


def _data(task: Task) -> FinetuneData:
    """Give the images as files; those of the training side larger, where parts are cut out."""
    config, embeddings, store = task.config, task.embeddings, task.source.plan.data
    size, examples = task.source.backbone.image_size, embeddings.index.examples
    sizes = {Split.TRAIN: padded_size(size, distortion_of(config)), Split.VALIDATION: size}

    def side(split: Split) -> Side:
        rows = embeddings.index.rows(split)
        decode = loader(sizes[split], exact=config.exact_decode, max_pixels=config.max_pixels)
        return Side(np.arange(rows.start, rows.stop), embeddings.side(split)[1], decode)

    return FinetuneData(
        lambda row: store.read(examples[row].name, examples[row].entry),
        side(Split.TRAIN),
        side(Split.VALIDATION),
    )


def _keep(checkpoints: Checkpoints, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    checkpoints.save(STAGE, lambda: arrays | {META: np.array(json.dumps(meta))})


def _state(saved: dict[str, np.ndarray]) -> State:
    return State({k: v for k, v in saved.items() if k != META}, json.loads(str(saved[META])))
