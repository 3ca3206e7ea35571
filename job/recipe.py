"""How fine-tuning goes: every setting with its default. TensorFlow is not imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from job.config import RunConfig

CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneOptions:
    """The settings of `finetune.finetune`; defaults as measured by benchmarks/finetune.py.

    `unfreeze`: how many layers are trained, from the last one; None: all. `epochs`: how often each
    image is seen, at most. `train_batch_size`: images a step, at most.

    `learning_rate` (the head's) and `backbone_learning_rate` are AdamW's (arXiv:1711.05101); both
    rise from 0 for the fraction `warmup` of all steps and fall to 0 along a cosine.
    `weight_decay` is AdamW's, for the backbone's kernels; the head's kernel keeps the penalty
    `l2`/2 * |kernel|^2 that `fit` found it with, and neither biases nor scales have any.

    `label_smoothing`: the share of a label that goes to all classes alike. `augment`: one of
    `augment.AUGMENTATIONS`. `class_weights`: `balanced` draws each label as often as any other.
    `ema`: decay a step of the average of the weights, which is then what is validated and kept;
    0: off. `patience`: epochs without a lower validation loss after which training stops; None:
    never. `mixed_precision`: on a GPU products are in float16. `accumulate`: pieces that a batch
    is cut into; None: 1 on a GPU, and on a CPU pieces of `microbatch.CPU_PIECE` images.
    """

    unfreeze: int | None = None
    epochs: int = 5
    train_batch_size: int = 32
    learning_rate: float = 1e-3
    backbone_learning_rate: float = 1e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    l2: float = 0.0
    label_smoothing: float = 0.0
    augment: str = "none"
    class_weights: str = "none"
    ema: float = 0.0
    patience: int | None = 3
    mixed_precision: bool = False
    accumulate: int | None = None
    seed: int = 0

    def steps_per_epoch(self, images: int) -> int:
        """Give how many steps it takes to see so many training images once."""
        return math.ceil(images / self.train_batch_size)

    def steps(self, images: int) -> int:
        """Give the steps of a run that no patience ends, for so many training images."""
        return self.epochs * self.steps_per_epoch(images)


def tuning_options(config: RunConfig) -> FinetuneOptions:
    """Give the settings that a configuration asks for; the penalty is not known yet."""
    given = {
        spec.name: getattr(config, spec.name)
        for spec in fields(FinetuneOptions)
        if spec.name not in ("seed", "l2")
    }
    own = FinetuneOptions()
    given["learning_rate"] = config.learning_rate or own.learning_rate
    given["train_batch_size"] = config.train_batch_size or own.train_batch_size
    return FinetuneOptions(**given)
