"""Fine-tuning: from the best head on a frozen backbone, both are trained on by gradient descent.

The head starts at its optimum, so that the backbone's first gradients mean something
(arXiv:2202.10054). The weights that validate best are kept, those of the start among them: what
comes out is never worse on the validation images than what went in.

A run depends on its seed and inputs alone. On a CPU it gives the same bytes each time, however
often it was stopped after a checkpoint and went on from there; workers that train together do so
for their number.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import numpy as np
import tensorflow as tf

from job.augment import AUGMENTATIONS, augment
from job.backbone import Backbone
from job.descent import Descent, precision
from job.errors import ConfigError
from job.feed import Feed, FinetuneData, draw, split_evenly
from job.fit import Observe
from job.guard import beat
from job.head import Head
from job.microbatch import MicroBatches
from job.progress import log
from job.recipe import CLASS_WEIGHTS, FinetuneOptions
from job.replicas import SOLO, Replicas
from job.standing import Checkpoint, Finetuned, Standing, State, origin_of
from job.trainable import Trainable

# Bytes of decoded images that are kept: 7,000 of 224 x 224 pixels.
KEPT = 2**30

# Images that are scored together; rounding aside it changes nothing.
SCORED = 128

# Maps images float32 `[n,h,w,3]` and seeds int32 `[n,2]` to images of the same shape.
Distort = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Watch = Callable[[int, Callable[[], Head], Callable[[], Backbone]], None]


def finetune(
    trainable: Trainable,
    head: Head,
    data: FinetuneData,
    options: FinetuneOptions,
    *,
    threads: int = 8,
    memory: int = KEPT,
    distort: Distort | None = None,
    observe: Observe = lambda side, step, **values: None,
    advance: Callable[[int], None] = lambda steps: None,
    due: Callable[[], bool] = lambda: False,
    checkpoint: Checkpoint = lambda arrays, meta: None,
    watch: Watch = lambda step, head, backbone: None,
    resume: State | None = None,
    replicas: Replicas = SOLO,
) -> Finetuned:
    """Train the head and the last layers of a backbone; `trainable` has the best weights after it.

    `threads` images are read at once, `memory` bytes of them kept. `observe` is told of figures,
    `advance` how many of `options.steps(n)` are done, `watch` after each how many, and what gives
    head and backbone by then. Where `due` says so, or an error or signal ends it, `checkpoint` is
    given the parts of a `State`, with which as `resume` (the chief's) a run of the same goes on.

    Raises ConfigError for an unknown setting, one that is not for this machine, a loss that is not
    finite, or too little memory; UnavailableError for a lost image or worker.
    """
    feed = Feed(data, threads=threads, memory=memory)
    batches = MicroBatches(options.train_batch_size, options.accumulate)
    with contextlib.closing(batches), precision(options):
        loop = _Loop(trainable, head, data, options, batches, feed, distort, observe, replicas)
        advance(loop.restore(resume))
        with loop.saving(checkpoint):
            for _ in loop.steps():
                advance(1)
                watch(loop.standing.step, loop.head, loop.backbone)
                if due():
                    loop.save(checkpoint)
    return loop.finish()


class _Loop:
    def __init__(
        self,
        trainable: Trainable,
        head: Head,
        data: FinetuneData,
        options: FinetuneOptions,
        batches: MicroBatches,
        feed: Feed,
        distort: Distort | None,
        observe: Observe,
        replicas: Replicas,
    ) -> None:
        _check(options)
        self.standing = Standing()
        self._trainable, self._data, self._options = trainable, data, options
        self._batches, self._feed, self._distort, self._observe = batches, feed, distort, observe
        self._replicas, self._mixes = replicas, options.augment != "none"
        self._piece = batches.size
        self._classes = head.bias.size
        self._per_epoch = options.steps_per_epoch(len(data.train.rows))
        self._last = options.steps(len(data.train.rows))
        self._origin = origin_of(trainable, head, data, options)
        self._descent = Descent(trainable, head, options, self._last, replicas)
        self._best = self._descent.weights()
        self._whole = -1

    def steps(self) -> Iterator[None]:
        """Train; yields after each step, when `state` is that of a run to go on from."""
        if self.standing.step == 0:
            loss, accuracy = self._validate()
            self.standing = Standing(0, loss, loss, accuracy)
        first = self.standing.step
        rows = (self._data.train.rows[self._seen(places)] for places in self._plan(first))
        with contextlib.closing(self._feed.batches(self._data.train, rows)) as pictures:
            for places, images in zip(self._plan(first), pictures, strict=True):
                if self._options.patience and self.standing.stale >= self._options.patience:
                    break
                self._train(images, places)
                if self.standing.step % self._per_epoch == 0:
                    self._judge()
                self._whole = self.standing.step
                yield

    def state(self) -> State:
        """Give all that `restore` needs."""
        best = {f"best/{i}": value for i, value in enumerate(self._best)}
        meta = {
            **asdict(self.standing),
            "micro_batch": self._batches.size,
            "loss_scale": self._descent.loss_scale,
            "origin": self._origin,
        }
        return State(self._descent.arrays() | best, meta)

    @contextlib.contextmanager
    def saving(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Hand out what an error would lose, where the last step has all that belongs to it.

        A signal mostly comes while gradients are computed, so it has.
        """
        try:
            yield
        except BaseException:
            if self._whole == self.standing.step == self._descent.steps:
                self.save(checkpoint)
            raise

    def save(self, checkpoint: Checkpoint) -> None:
        """Hand out the state."""
        self._whole = -1  # once is enough
        state = self.state()
        checkpoint(state.arrays, state.meta)

    def restore(self, state: State | None) -> int:
        """Go on from a state, or from that of the chief, and give the steps that are done.

        One of another run is left alone, and the log says so.
        """
        now = self.state()
        if state is not None and self._is_ours(state, now):
            self._take(state)
            now = state
        if self._replicas.count > 1:
            self._take(State(*self._replicas.from_chief(now.arrays, now.meta)))
        if self.standing.step:
            log(f"fine-tuning goes on after step {self.standing.step} of {self._last}")
        return self.standing.step

    def _is_ours(self, state: State, now: State) -> bool:
        if state.meta.get("origin") != self._origin or state.shapes() != now.shapes():
            message = "the checkpoint is of other settings or images: fine-tuning starts over"
            log(message, level=logging.WARNING)
            return False
        return True

    def _take(self, state: State) -> None:
        self.standing = Standing(**{name: state.meta[name] for name in asdict(self.standing)})
        self._batches.size = state.meta["micro_batch"]
        self._descent.loss_scale = state.meta["loss_scale"]
        self._best = [state.arrays[f"best/{i}"] for i in range(len(self._best))]
        self._descent.load(state.arrays)

    def head(self) -> Head:
        """Give the head as it is now."""
        kernel, bias, *_ = self._descent.weights()
        return Head(kernel, bias)

    def backbone(self) -> Backbone:
        """Freeze the backbone as it is now."""
        return self._trainable.frozen()

    def finish(self) -> Finetuned:
        """Put the best weights into the variables and freeze them."""
        self._descent.assign(self._best)
        at = self.standing
        return Finetuned(
            backbone=self._trainable.frozen(),
            head=Head(self._best[0], self._best[1]),
            validation_loss=at.best_loss,
            validation_accuracy=at.best_accuracy,
            start_loss=at.start_loss,
            best_step=at.best_step,
            steps=at.step,
        )

    def _plan(self, first: int) -> Iterator[np.ndarray]:
        """Give the places among the training images of each step from `first` on."""
        options = self._options
        balanced = options.class_weights == "balanced"
        for epoch in range(first // self._per_epoch, options.epochs):
            places = draw(options.seed, epoch, self._data.train.classes, balanced=balanced)
            batches = split_evenly(places, options.train_batch_size)
            yield from batches[max(0, first - epoch * self._per_epoch) :]

    def _seen(self, places: np.ndarray) -> np.ndarray:
        """Give those of a step's places whose images this worker has to see: its share.

        Augmentations mix the images of a step, so that all of them are needed.
        """
        return places if self._mixes else places[self._cut(len(places))]

    def _cut(self, count: int) -> slice:
        return self._replicas.cut(count, self._piece)

    def _train(self, images: np.ndarray, places: np.ndarray) -> None:
        options, step = self._options, self.standing.step
        classes = self._data.train.classes[self._seen(places)]
        pixels = _as_float(images)
        if self._distort:
            random = np.random.default_rng([options.seed, step, 1])
            seeds = random.integers(2**31, size=(len(places), 2), dtype=np.int32)
            pixels = self._distort(pixels, tf.constant(self._seen(seeds)))
        smoothing = options.label_smoothing
        targets = self._one_hot(classes) * (1 - smoothing) + smoothing / self._classes
        pixels, targets = augment(options.augment, pixels, targets, options.seed, step)
        if self._mixes:
            mine = self._cut(len(places))
            pixels, targets = pixels[mine], targets[mine]
        values = self._descent.step(pixels, targets, self._batches, len(places))
        beat()
        self.standing = replace(self.standing, step=step + 1)
        self._observe("train", step + 1, **values)

    def _judge(self) -> None:
        """Validate after an epoch, and keep the weights if they are the best so far."""
        with self._descent.averaged():
            loss, accuracy = self._validate()
            if loss < self.standing.best_loss:
                self._best = self._descent.weights()
                step = self.standing.step
                self.standing = replace(
                    self.standing, best_loss=loss, best_accuracy=accuracy, best_step=step, stale=0
                )
            else:
                self.standing = replace(self.standing, stale=self.standing.stale + 1)

    def _validate(self) -> tuple[float, float]:
        """Give the mean log loss in nats and the accuracy on the validation images."""
        side = self._data.validation
        whole = split_evenly(np.arange(len(side.rows)), SCORED)
        parts = [part[self._cut(len(part))] for part in whole]
        sums = np.zeros(2)
        rows = (side.rows[part] for part in parts)
        with contextlib.closing(self._feed.batches(side, rows)) as pictures:
            for part, all_of_it, images in zip(parts, whole, pictures, strict=True):
                pixels, targets = _as_float(images), self._one_hot(side.classes[part])
                sums += self._descent.score(pixels, targets, self._batches, len(all_of_it))
        loss, accuracy = (sums / len(side.rows)).tolist()
        self._observe("validation", self.standing.step, loss=loss, accuracy=accuracy)
        return loss, accuracy

    def _one_hot(self, classes: np.ndarray) -> tf.Tensor:
        return tf.one_hot(classes, self._classes)


def _as_float(images: np.ndarray) -> tf.Tensor:
    return tf.constant(images.astype(np.float32) / np.float32(255))


def _check(options: FinetuneOptions) -> None:
    known = {"augment": tuple(AUGMENTATIONS), "class_weights": CLASS_WEIGHTS}
    for name, choices in known.items():
        if (value := getattr(options, name)) not in choices:
            raise ConfigError(f"no such {name}: {value}", hint=f"use {', '.join(choices)}")
