"""One step down the gradient: the loss of backbone and head, and the optimizers of both.

Optimizers and their schedules are Keras'; those of Keras 3 take TensorFlow's variables as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from job.errors import ConfigError
from job.head import Head
from job.microbatch import MicroBatches
from job.recipe import FinetuneOptions
from job.replicas import SOLO, Replicas
from job.trainable import Trainable

# In float16 gradients below 6e-8 are lost, so the loss is multiplied by this first; a factor that
# makes one overflow is halved (arXiv:1710.03740). Powers of two round nothing.
LOSS_SCALE = 2.0**15

# Keras names its state by numbers; so are the weights here.
Arrays = Mapping[str, np.ndarray]


class Descent:
    """The trained variables (`variables`: kernel, bias, then the backbone's) and what moves them.

    `loss_scale` is 1 unless products are in float16.
    """

    def __init__(
        self,
        trainable: Trainable,
        head: Head,
        options: FinetuneOptions,
        steps: int,
        replicas: Replicas = SOLO,
    ) -> None:
        """Set up for `steps` steps from the weights of `head` and those that `trainable` has."""
        self._trainable, self._replicas = trainable, replicas
        self._l2 = options.l2
        top = [tf.Variable(head.kernel, name="kernel"), tf.Variable(head.bias, name="bias")]
        layers = trainable.last_layers(options.unfreeze)
        self.variables = [*top, *layers]
        self.loss_scale = LOSS_SCALE if options.mixed_precision else 1.0
        rates = (options.learning_rate, options.backbone_learning_rate)
        decays = (0.0, options.weight_decay)
        self._optimizers = [
            (_optimizer(variables, rate, decay, options, steps), variables)
            for variables, rate, decay in zip((top, layers), rates, decays, strict=True)
            if variables
        ]
        self._averages = options.ema > 0
        images = tf.TensorSpec([None, *trainable.image_size, 3], tf.float32)
        targets = tf.TensorSpec([None, head.bias.size], tf.float32)
        scalar = tf.TensorSpec([], tf.float32)
        gradients = [tf.TensorSpec(v.shape, v.dtype) for v in self.variables]
        self._slope = _compiled(replicas.spread(self._slope_of_piece), images, targets, scalar)
        self._score = _compiled(replicas.spread(self._score_of_piece), images, targets)
        self._apply = _compiled(self._move, gradients, scalar)

    def step(
        self, images: tf.Tensor, targets: tf.Tensor, batches: MicroBatches, count: int
    ) -> dict[str, float]:
        """Take one step on images float32 `[n,h,w,3]` and targets float32 `[n,classes]`.

        They are this worker's share of the step's `count` images.
        Gives `loss` (mean cross-entropy in nats), `accuracy` and the head's `learning_rate`.
        Raises ConfigError where the loss or its gradient is not finite.
        """
        rate = float(self._optimizers[0][0].learning_rate)
        while True:
            scale = tf.constant(self.loss_scale, tf.float32)
            sums = batches.total(
                lambda images, targets: self._slope(images, targets, scale),  # noqa: B023
                images,
                targets,
            )
            loss, hits, *slopes = self._replicas.total(sums, count)
            if np.isfinite(float(loss)) and np.isfinite(float(tf.linalg.global_norm(slopes))):
                break
            if self.loss_scale == 1:
                raise ConfigError(
                    f"the training loss is {float(loss):g} or has no finite gradient",
                    hint="lower --learning-rate and --backbone-learning-rate",
                )
            self.loss_scale /= 2
        self._apply(slopes, tf.constant(count * self.loss_scale, tf.float32))
        return {
            "loss": float(loss) / count,
            "accuracy": float(hits) / count,
            "learning_rate": rate,
        }

    def score(
        self, images: tf.Tensor, targets: tf.Tensor, batches: MicroBatches, count: int
    ) -> tuple[float, float]:
        """Give the sum of the cross-entropies in nats, and how many answers are right.

        Both are over all workers, of whose `count` images these are a share.
        """
        loss, hits = self._replicas.total(batches.total(self._score, images, targets), count)
        return float(loss), float(hits)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the variables hold their averages while the block runs; themselves without EMA."""
        begun = self._optimizers[0][0].iterations.numpy() > 0  # before a step they are all 0
        if not (self._averages and begun):
            yield
            return
        live = self.weights()
        for optimizer, variables in self._optimizers:
            optimizer.finalize_variable_values(variables)
        try:
            yield
        finally:
            self.assign(live)

    @property
    def steps(self) -> int:
        """Give how many steps the variables have taken."""
        return int(self._optimizers[0][0].iterations)

    def weights(self) -> list[np.ndarray]:
        """Give the values of `variables`."""
        return [variable.numpy() for variable in self.variables]

    def assign(self, weights: Sequence[np.ndarray]) -> None:
        """Give the variables other values."""
        for variable, value in zip(self.variables, weights, strict=True):
            variable.assign(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """Give all that the next step depends on, `loss_scale` aside."""
        found = {f"trained/{i}": value for i, value in enumerate(self.weights())}
        for number, (optimizer, _) in enumerate(self._optimizers):
            slots: dict[str, Any] = {}
            optimizer.save_own_variables(slots)
            found |= {f"optimizer{number}/{k}": np.asarray(v) for k, v in slots.items()}
        return found

    def load(self, arrays: Arrays) -> None:
        """Go on from what `arrays` gave."""
        self.assign([arrays[f"trained/{i}"] for i in range(len(self.variables))])
        for number, (optimizer, _) in enumerate(self._optimizers):
            prefix = f"optimizer{number}/"
            optimizer.load_own_variables(
                {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
            )

    def _logits(self, images: tf.Tensor) -> tf.Tensor:
        return self._trainable.features(images) @ self.variables[0] + self.variables[1]

    def _slope_of_piece(
        self, images: tf.Tensor, targets: tf.Tensor, scale: tf.Tensor
    ) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.variables)
            loss, hits = _judge(self._logits(images), targets)
            scaled = loss * scale
        zero = tf.UnconnectedGradients.ZERO
        slopes = tape.gradient(scaled, self.variables, unconnected_gradients=zero)
        return [loss, hits, *(tf.convert_to_tensor(slope) for slope in slopes)]

    def _score_of_piece(self, images: tf.Tensor, targets: tf.Tensor) -> list[tf.Tensor]:
        return list(_judge(self._logits(images), targets))

    def _move(self, slopes: Sequence[tf.Tensor], divisor: tf.Tensor) -> None:
        kernel, *others = [slope / divisor for slope in slopes]
        kernel += self._l2 * self.variables[0]
        left = iter([kernel, *others])
        for optimizer, variables in self._optimizers:
            optimizer.apply([next(left) for _ in variables], variables)


@contextlib.contextmanager
def precision(options: FinetuneOptions) -> Iterator[None]:
    """Have TensorFlow rewrite graphs to float16 where that is safe, if the options say so.

    A loaded module has its types in its graph, so no policy of Keras reaches it. Raises ConfigError
    on a machine without a GPU, where float16 is slower than float32.
    """
    if not options.mixed_precision:
        yield
        return
    if not tf.config.list_physical_devices("GPU"):
        raise ConfigError("mixed precision needs a GPU", hint="leave --mixed-precision out")
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision": False})


def _judge(logits: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Give the sum of the cross-entropies, and how often the likeliest class is the target's."""
    loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
    right = tf.equal(tf.argmax(logits, axis=1), tf.argmax(targets, axis=1))
    return loss, tf.reduce_sum(tf.cast(right, tf.float32))


def _optimizer(
    variables: Sequence[Any], rate: float, decay: float, options: FinetuneOptions, steps: int
) -> Any:
    warmup = round(options.warmup * steps)
    # The first step is not to be for nothing, so the rise begins one step above 0.
    start = {"warmup_target": rate, "warmup_steps": warmup} if warmup > 1 else {}
    schedule = keras.optimizers.schedules.CosineDecay(
        rate / warmup if start else rate, max(1, steps - (warmup if start else 0)), **start
    )
    average = {"use_ema": True, "ema_momentum": options.ema} if options.ema else {}
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=decay, **average)
    flat = [variable for variable in variables if len(variable.shape) < 2]
    optimizer.exclude_from_weight_decay(var_list=flat)
    optimizer.build(variables)
    return optimizer


def _compiled(function: Any, *specs: Any) -> Any:
    return tf.function(function, autograph=False).get_concrete_function(*specs)
