"""Random changes to a training batch that go beyond distortions: Keras' own layers, seeded.

Keras takes seconds to import, so only fine-tuning imports this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# MixUp's share of the second image is Beta(0.2, 0.2), as its paper has it for ImageNet
# (arXiv:1710.09412), and CutMix's uniform, as in arXiv:1905.04899. RandAugment does two operations
# of random strength, the same two to a whole batch (arXiv:1909.13719 draws them for each image).
AUGMENTATIONS: dict[str, Callable[[int], Any] | None] = {
    "none": None,
    "mixup": lambda seed: keras.layers.MixUp(alpha=0.2, seed=seed),
    "cutmix": lambda seed: keras.layers.CutMix(factor=(1.0, 1.0), seed=seed),
    "randaugment": lambda seed: keras.layers.RandAugment(value_range=(0.0, 1.0), seed=seed),
}


def augment(
    kind: str, images: tf.Tensor, targets: tf.Tensor, seed: int, step: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Change a batch in a way that depends on `seed` and `step` alone.

    Args:
        kind: one of `AUGMENTATIONS`.
        images: float32 [n,h,w,3] in [0,1].
        targets: float32 [n,classes], the share that each class has of an image.
        seed: the run's, at least 0.
        step: the number of the step, at least 0.

    Returns: the images and targets, of the same shapes; mixup and cutmix mix the latter too.
    """
    make = AUGMENTATIONS[kind]
    if make is None:
        return images, targets
    # A layer keeps where its random numbers are in variables of its parts. A new one, with a seed
    # of its own, starts where a resumed run's does.
    drawn = int(np.random.SeedSequence([seed, step]).generate_state(1)[0] >> 1)
    mixed = make(drawn)({"images": images, "labels": targets}, training=True)
    return mixed["images"], mixed["labels"]
