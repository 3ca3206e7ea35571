"""Embeddings to a head by gradient descent: retrain.py's loop, inside one TensorFlow graph.

The steps of a round, `eval_interval` of them, are one call, the look at the scores after them
included: batches are drawn and gathered from embeddings in memory by the graph itself, so that
Python is asked 400 times for 4,000 steps. Batch i depends on i and on nothing else, so a run that
goes on from step i draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from job.checkpoints import State
from job.fit import Fit, Pair, Session, class_weights
from job.guard import beat
from job.head import Head

# Of the two numbers that a stateless draw takes; the other one is the step.
TRAIN_SEED, VALIDATION_SEED = 1, 2

# Rows of embeddings that the last look multiplies at once.
ROWS = 4096


@dataclass(frozen=True, slots=True)
class SgdOptions:
    """What the loop is told; the defaults are retrain.py's.

    `validation_batch_size` is None for all of them. With `balanced` a label is drawn first, each as
    likely, then one of its images, as retrain.py did; without it an image, each as likely.
    """

    steps: int = 4000
    learning_rate: float = 0.01
    momentum: float = 0.0
    cosine: bool = False
    batch_size: int = 100
    eval_interval: int = 10
    validation_batch_size: int | None = 100
    l2: float = 0.0
    balanced: bool = False


def fit(
    train: Pair,
    validation: Pair,
    classes: int,
    options: SgdOptions,
    *,
    session: Session | None = None,
    watch: Callable[[int, Callable[[], Head]], None] = lambda step, head: None,
) -> Fit:
    """Run `options.steps` steps from a head of zeros and give the last one's head.

    A step takes `batch_size` examples with replacement and goes down the gradient g of their mean
    log loss + l2/2 * |kernel|^2: v <- momentum * v + g, w <- w - rate * v. The rate is constant, or
    goes from `learning_rate` to 0 by half a cosine. `train` is held in memory, float32. After every
    `eval_interval` steps the session is told of the last batch's scores and of those of a
    validation batch; `watch` gets the number of steps, and what gives the head.
    """
    loop = _Loop(train, validation, classes, options, session or Session())
    loop.run(watch)
    return loop.result()


class _Loop:
    """The four weights that go round, and the number of the steps that they have gone."""

    def __init__(
        self, train: Pair, validation: Pair, classes: int, options: SgdOptions, session: Session
    ) -> None:
        self._train, self._validation, self._options = train, validation, options
        self._session = session
        self._classes = classes
        shapes = [[train[0].shape[1], classes], [classes]]
        zeros = [tf.zeros(shape) for shape in shapes]
        self._weights: list[tf.Tensor] = [*zeros, *zeros]  # kernel, bias, and their velocities
        self._step = 0
        self._go_round = _round(train, validation, classes, options)

    def run(self, watch: Callable[[int, Callable[[], Head]], None]) -> None:
        """Go round until all steps are done."""
        options, checkpoints = self._options, self._session.checkpoints
        if (saved := checkpoints.load("sgd")) is not None:
            self._step = int(saved["step"])
            self._weights = [tf.constant(saved[str(place)]) for place in range(4)]
            self._session.advance(self._step)
        while self._step < options.steps:
            end = min(self._step + options.eval_interval, options.steps)
            bounds = tf.constant(self._step), tf.constant(end)
            *self._weights, scores = self._go_round(*bounds, *self._weights)
            self._session.advance(end - self._step)
            self._step = end
            beat()
            self._tell(*(float(score) for score in scores.numpy()))
            watch(end, self._head)
            checkpoints.reached("sgd", self._state)

    def _tell(self, loss: float, accuracy: float, other_loss: float, other: float) -> None:
        rate, observe = float(_rate(self._options, self._step - 1)), self._session.observe
        observe("train", self._step, loss=loss, accuracy=accuracy, learning_rate=rate)
        observe("validation", self._step, loss=other_loss, accuracy=other)

    def _state(self) -> State:
        weights = {str(place): value.numpy() for place, value in enumerate(self._weights)}
        return {"step": np.array(self._step), **weights}

    def _head(self) -> Head:
        return Head(self._weights[0].numpy(), self._weights[1].numpy())

    def result(self) -> Fit:
        """Give the head with its losses and its gradient on all training examples."""
        head, l2, balanced = self._head(), self._options.l2, self._options.balanced
        loss = head.log_loss(*self._train, balanced=balanced) + l2 / 2 * float(
            (head.kernel**2).sum()
        )
        return Fit(
            head,
            l2,
            loss,
            head.log_loss(*self._validation, balanced=balanced),
            _gradient_norm(head, self._train, self._classes, l2, balanced),
            self._step,
        )


def _round(train: Pair, validation: Pair, classes: int, options: SgdOptions) -> Any:
    """Trace a round: (first step, end, 4 weights) to (4 weights, 4 scores)."""
    features, targets = tf.constant(train[0]), tf.constant(train[1])
    draw, draw_validation = _sampler(train[1], classes, options), _validation(validation, options)

    def step(number: Any, kernel: Any, bias: Any, *rest: Any) -> tuple[Any, ...]:
        rows = draw(number)
        x, y = tf.gather(features, rows), tf.gather(targets, rows)
        logits = x @ kernel + bias
        errors = tf.nn.softmax(logits) - tf.one_hot(y, classes)
        slope = tf.matmul(x, errors, transpose_a=True) / options.batch_size + options.l2 * kernel
        slopes = slope, tf.reduce_mean(errors, axis=0)
        velocities = [options.momentum * v + g for v, g in zip(rest[:2], slopes, strict=True)]
        rate = _rate(options, number)
        kernel, bias = kernel - rate * velocities[0], bias - rate * velocities[1]
        return number + 1, kernel, bias, *velocities, _scores(logits, y)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def go_round(first: Any, end: Any, *weights: Any) -> Any:
        state = (first, *weights, tf.zeros([2]))
        *_, scores = found = tf.while_loop(lambda number, *_: number < end, step, state)
        x, y = draw_validation(end)
        return *found[1:-1], tf.concat([scores, _scores(x @ found[1] + found[2], y)], axis=0)

    return go_round


def _scores(logits: Any, targets: Any) -> Any:
    """Give the mean log loss and the accuracy, float32 `[2]`."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    right = tf.cast(tf.equal(tf.argmax(logits, axis=1), targets), tf.float32)
    return tf.stack([tf.reduce_mean(losses), tf.reduce_mean(right)])


def _rate(options: SgdOptions, step: Any) -> Any:
    """Give the learning rate of a step, a Python integer or a tensor, from 0 on."""
    if not options.cosine:
        return options.learning_rate
    turn = tf.cast(step, tf.float32) * (np.pi / options.steps)
    return options.learning_rate * (1.0 + tf.cos(turn)) / 2.0


def _sampler(targets: np.ndarray, classes: int, options: SgdOptions) -> Callable[[Any], Any]:
    """Give the function from a step's number to the rows of its batch, int64 `[batch_size]`."""
    size = options.batch_size
    counts = np.bincount(targets, minlength=classes)
    present = np.flatnonzero(counts)
    order = tf.constant(np.argsort(targets, kind="stable"))
    firsts = tf.constant((np.cumsum(counts) - counts)[present])
    lengths = tf.constant(counts[present])

    def uniform(step: Any) -> Any:
        return _draw(TRAIN_SEED, step, [size], len(targets))

    def balanced(step: Any) -> Any:
        draws = _draw(TRAIN_SEED, step, [2, size], 2**62)
        label = draws[0] % len(present)
        return tf.gather(order, tf.gather(firsts, label) + draws[1] % tf.gather(lengths, label))

    return balanced if options.balanced else uniform


def _validation(validation: Pair, options: SgdOptions) -> Callable[[Any], tuple[Any, Any]]:
    """Give the function from a step's number to the validation examples that are looked at."""
    features, targets = map(tf.constant, validation)
    count = len(validation[1])
    size = options.validation_batch_size or count

    def draw(step: Any) -> tuple[Any, Any]:
        rows = _draw(VALIDATION_SEED, step, [size], count)
        return tf.gather(features, rows), tf.gather(targets, rows)

    return (lambda step: (features, targets)) if size >= count else draw


def _draw(seed: int, step: Any, shape: list[int], limit: int) -> Any:
    """Give int64 numbers from 0 to `limit` - 1 that depend on the seed and the step alone."""
    return tf.random.stateless_uniform(shape, [seed, step], 0, limit, dtype=tf.int64)


def _gradient_norm(head: Head, train: Pair, classes: int, l2: float, balanced: bool) -> float:
    """Give the largest absolute component of the objective's gradient on all of `train`."""
    features, targets = train
    weights = class_weights(targets, classes) if balanced else np.ones(classes)
    slope, shift = l2 * len(targets) * head.kernel.astype(np.float64), np.zeros(classes)
    for start in range(0, len(targets), ROWS):
        block = slice(start, start + ROWS)
        errors = head.probabilities(features[block]).astype(np.float64)
        errors[np.arange(len(errors)), targets[block]] -= 1
        errors *= weights[targets[block], None]
        slope += features[block].T @ errors
        shift += errors.sum(axis=0)
    return float(max(np.abs(slope).max(), np.abs(shift).max()) / len(targets))
