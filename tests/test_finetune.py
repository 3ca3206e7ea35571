"""Fine-tuning falls, stops, goes on and forgets nothing, on a small convolutional module."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import COLOURS, jpeg
from hypothesis import given
from hypothesis import strategies as st
from modules import CONV_FEATURES, CONV_SIZE, write_conv

from job.augment import AUGMENTATIONS, augment
from job.backbone import resolve
from job.descent import Descent
from job.errors import ConfigError, UnavailableError
from job.feed import AHEAD, Feed, FinetuneData, Side, draw, split_evenly
from job.finetune import finetune
from job.guard import Terminated
from job.head import Head
from job.images import loader
from job.microbatch import MicroBatches
from job.recipe import FinetuneOptions
from job.standing import Finetuned, State
from job.trainable import Trainable, load_trainable

# 30 images in 3 steps an epoch, and 12 to validate on.
TRAIN, VALIDATION = 30, 12
OPTIONS = FinetuneOptions(
    epochs=2, train_batch_size=10, learning_rate=1e-2, backbone_learning_rate=1e-2, warmup=0
)
START = Head(np.zeros((CONV_FEATURES, 3), np.float32), np.zeros(3, np.float32))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Trainable:
    """The convolutional module, loaded once: that takes longer than to train it."""
    folder = tmp_path_factory.mktemp("conv")
    found = resolve(str(write_conv(folder / "module")), cache_dir=folder)
    return load_trainable(found, cache_dir=folder, image_size=None)


@pytest.fixture
def tune(loaded: Trainable) -> Callable[..., Finetuned]:
    """A function that trains the module from its first weights each time."""
    first = [variable.numpy() for variable in loaded.variables]

    def run(options: FinetuneOptions = OPTIONS, **rest: Any) -> Finetuned:
        for variable, value in zip(loaded.variables, first, strict=True):
            variable.assign(value)
        return finetune(loaded, rest.pop("head", START), rest.pop("data", DATA), options, **rest)

    yield run
    for variable, value in zip(loaded.variables, first, strict=True):
        variable.assign(value)


def with_(**changes: Any) -> FinetuneOptions:
    """Give OPTIONS with some other settings."""
    return replace(OPTIONS, **changes)


def pictures(count: int, seed: int = 0, wrong: float = 0.0) -> tuple[list[bytes], np.ndarray]:
    """Give squares of the three colours and their classes, some of them wrong."""
    colours = list(COLOURS.values())
    classes = np.arange(count) % 3
    files = [jpeg(colours[k], seed + i, size=20) for i, k in enumerate(classes)]
    changed = np.random.default_rng(seed).random(count) < wrong
    return files, np.where(changed, (classes + 1) % 3, classes)


def make_data(wrong: float = 0.0) -> FinetuneData:
    """Give training images, and after them those to validate on, which have no wrong labels."""
    files, classes = pictures(TRAIN, wrong=wrong)
    more, others = pictures(VALIDATION, seed=1000)
    files += more
    return FinetuneData(
        files.__getitem__,
        Side(np.arange(TRAIN), classes, DECODE),
        Side(np.arange(TRAIN, TRAIN + VALIDATION), others, DECODE),
    )


DECODE = loader((CONV_SIZE, CONV_SIZE))
DATA = make_data()


class Log(list[tuple[str, int, dict[str, float]]]):
    """Keeps what it is told."""

    def __call__(self, side: str, step: int, **values: float) -> None:
        """Take what `observe` takes."""
        self.append((side, step, values))

    def losses(self, side: str) -> list[float]:
        """Give the losses of one side."""
        return [values["loss"] for which, _, values in self if which == side]


class Checkpoints(list[State]):
    """Keeps each state as storage would: bytes of arrays, and JSON."""

    def __call__(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take what `checkpoint` takes."""
        kept = {name: array.copy() for name, array in arrays.items()}
        self.append(State(kept, json.loads(json.dumps(meta))))


def same(one: Finetuned, other: Finetuned) -> bool:
    """Tell whether all weights are the same to the last bit."""
    heads = [head.kernel.tobytes() + head.bias.tobytes() for head in (one.head, other.head)]
    return one.backbone.digest == other.backbone.digest and heads[0] == heads[1]


def test_the_loss_falls_and_the_figures_are_those_of_the_result(
    tune: Callable[..., Finetuned],
) -> None:
    """On both sides; the last figures are what the frozen result gives for those images."""
    log, steps = Log(), []
    options = with_(epochs=4, learning_rate=5e-2)
    tuned = tune(options, observe=log, advance=steps.append)
    for side in ("train", "validation"):
        assert log.losses(side)[-1] < 0.8 * log.losses(side)[0]
    assert sum(steps) == tuned.steps == options.steps(TRAIN) == 12
    assert [step for side, step, _ in log if side == "validation"] == [0, 3, 6, 9, 12]
    assert tuned.start_loss == pytest.approx(np.log(3), abs=1e-6)
    images = np.stack([DECODE(DATA.read(row)) for row in DATA.validation.rows])
    features = tuned.backbone.embed(images).numpy()
    found = tuned.head.log_loss(features, DATA.validation.classes)
    assert found == pytest.approx(tuned.validation_loss, abs=2e-3)  # pixels were rounded to 8 bits
    right = tuned.head.logits(features).argmax(axis=1) == DATA.validation.classes
    assert right.mean() == tuned.validation_accuracy


@pytest.mark.parametrize(("unfreeze", "moved"), [(0, 0), (1, 3), (None, 6)])
def test_only_the_last_layers_move(
    unfreeze: int | None,
    moved: int,
    tune: Callable[..., Finetuned],
    loaded: Trainable,
) -> None:
    """All other weights, and the statistics of batch normalisation, stay as they are to the bit."""
    before = {id(v): v.numpy().tobytes() for v in loaded.variables}
    tuned = tune(with_(unfreeze=unfreeze))
    changed = [v for v in loaded.variables if v.numpy().tobytes() != before[id(v)]]
    expected = loaded.last_layers(unfreeze)
    assert {id(v) for v in changed} == {id(v) for v in expected}
    assert len(changed) == moved
    assert tuned.head.kernel.any()


def test_the_same_inputs_give_the_same_bytes(tune: Callable[..., Finetuned]) -> None:
    """Another seed gives others."""
    options = with_(train_batch_size=7, accumulate=3, augment="mixup", ema=0.5)
    assert same(tune(options), tune(options))
    assert not same(tune(options), tune(replace(options, seed=1)))


def test_how_images_are_kept_changes_nothing(tune: Callable[..., Finetuned]) -> None:
    """Those that memory has room for are read once, any others each time they are needed."""
    reads: Counter[int] = Counter()

    def read(row: int) -> bytes:
        reads[row] += 1
        return DATA.read(row)

    data = FinetuneData(read, DATA.train, DATA.validation)
    room = 5 * CONV_SIZE * CONV_SIZE * 3
    roomy, tight = (tune(data=data, memory=memory) for memory in (2**20, room))
    assert same(roomy, tight)
    # Once in the roomy run; in the tight one each epoch, or at each validation.
    assert sorted(Counter(reads.values()))[0] == 2
    assert sum(reads.values()) == 42 + 5 + 2 * TRAIN + 3 * (VALIDATION - 5)


def test_a_run_that_was_killed_ends_with_the_same_bytes(tune: Callable[..., Finetuned]) -> None:
    """After whichever step the checkpoint was made, EMA, augmentation and all."""
    options = with_(augment="mixup", ema=0.5, warmup=0.4, class_weights="balanced")
    kept, log = Checkpoints(), Log()
    whole = tune(options, checkpoint=kept, due=lambda: True, observe=log)
    assert [state.meta["step"] for state in kept] == [1, 2, 3, 4, 5, 6]
    for state in kept:
        steps: list[int] = []
        again = Log()
        resumed = tune(options, resume=state, advance=steps.append, observe=again)
        assert same(whole, resumed)
        assert figures(resumed) == figures(whole)
        assert steps[0] == state.meta["step"]
        assert sum(steps) == 6
        assert again == log[len(log) - len(again) :]


def figures(tuned: Finetuned) -> tuple[float, ...]:
    """Give all but the weights."""
    return (
        tuned.validation_loss,
        tuned.validation_accuracy,
        tuned.start_loss,
        tuned.best_step,
        tuned.steps,
    )


def test_a_signal_ends_training_at_once(tune: Callable[..., Finetuned]) -> None:
    """Nothing on the way takes it for a failure of its own."""

    def stop(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        raise Terminated

    with pytest.raises(Terminated):
        tune(checkpoint=stop, due=lambda: True)


@pytest.mark.parametrize("call", [0, 1, 3, 5])
def test_a_signal_between_checkpoints_saves_the_last_whole_step(
    call: int, tune: Callable[..., Finetuned]
) -> None:
    """It comes while a batch is worked on; what was done before is not done again."""
    options, calls, kept = with_(ema=0.5), iter(range(100)), Checkpoints()

    def stop(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        if next(calls) == call:
            raise Terminated
        return images

    def keep(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        return images

    with pytest.raises(Terminated):
        tune(options, distort=stop, checkpoint=kept)
    assert [state.meta["step"] for state in kept] == ([call] if call else [])
    resume = kept[0] if kept else None
    assert same(tune(options, distort=keep, resume=resume), tune(options, distort=keep))


def test_a_signal_before_an_epoch_is_judged_saves_nothing(tune: Callable[..., Finetuned]) -> None:
    """The weights are there, and the validation that belongs to them is not."""
    kept = Checkpoints()

    def stop(side: str, step: int, **values: float) -> None:
        if (side, step) == ("train", 3):
            raise Terminated

    with pytest.raises(Terminated):
        tune(observe=stop, checkpoint=kept)
    assert kept == []


def test_a_checkpoint_of_another_run_is_left_alone(
    tune: Callable[..., Finetuned], caplog: pytest.LogCaptureFixture
) -> None:
    """The run starts over and the log says so."""
    kept = Checkpoints()
    tune(with_(seed=1), checkpoint=kept, due=lambda: True)
    with caplog.at_level(logging.WARNING, "regraft"):
        assert same(tune(resume=kept[2]), tune())
    assert "starts over" in caplog.text


def test_patience_returns_the_best_weights(tune: Callable[..., Finetuned]) -> None:
    """Learning wrong labels makes it worse; the weights before that come back, and it stops."""
    log = Log()
    options = with_(epochs=15, learning_rate=0.1, backbone_learning_rate=0.03, patience=3)
    tuned = tune(options, observe=log, data=make_data(wrong=0.3))
    losses = log.losses("validation")
    best = int(np.argmin(losses))
    assert 0 < best < len(losses) - 1
    assert len(losses) == best + 1 + 3 < 16
    assert (tuned.best_step, tuned.steps) == (3 * best, 3 * (len(losses) - 1))
    assert tuned.validation_loss == min(losses)
    images = np.stack([DECODE(DATA.read(row)) for row in DATA.validation.rows])
    found = tuned.head.log_loss(tuned.backbone.embed(images).numpy(), DATA.validation.classes)
    assert found == pytest.approx(min(losses), abs=0.01)
    assert abs(losses[-1] - min(losses)) > 0.02


def test_a_start_that_nothing_beats_is_returned(
    tune: Callable[..., Finetuned], loaded: Trainable
) -> None:
    """Training on labels that are all wrong changes nothing of what went in."""
    before = loaded.digest()
    tuned = tune(data=make_data(wrong=1.0))
    assert (tuned.best_step, tuned.steps) == (0, 6)
    assert tuned.backbone.digest == before
    assert tuned.head.kernel.tobytes() == START.kernel.tobytes()


def test_pieces_of_a_batch_add_up_to_it(tune: Callable[..., Finetuned]) -> None:
    """The weights are the same to 1e-5, in one piece, in five, and in uneven ones."""
    whole, *others = (
        tune(with_(accumulate=k, train_batch_size=TRAIN, learning_rate=1e-3)) for k in (1, 5, 7)
    )
    for other in others:
        assert np.abs(whole.head.kernel - other.head.kernel).max() < 1e-5
        assert whole.validation_loss == pytest.approx(other.validation_loss, abs=1e-5)
    assert np.abs(whole.head.kernel).max() > 1e-3


def test_what_does_not_fit_into_memory_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    """The sums stay the same; not even one example is an error."""

    def function(room: int) -> Callable[[tf.Tensor], list[tf.Tensor]]:
        def add(part: tf.Tensor) -> list[tf.Tensor]:
            if len(part) > room:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            return [tf.reduce_sum(part), tf.constant(len(part))]

        return add

    batches = MicroBatches(16, accumulate=1)
    with caplog.at_level(logging.WARNING, "regraft"):
        total, count = batches.total(function(5), tf.range(16))
    assert (int(total), int(count), batches.size) == (120, 16, 4)
    assert "going on with 4" in caplog.text
    with pytest.raises(ConfigError, match="one image does not fit"):
        batches.total(function(0), tf.range(16))
    batches.close()


def test_a_loss_scale_that_overflows_is_halved(loaded: Trainable) -> None:
    """Until the gradients are finite; powers of two leave the step as it is without any."""
    images = tf.random.stateless_uniform([9, CONV_SIZE, CONV_SIZE, 3], [1, 2])
    targets = tf.one_hot([0, 1, 2] * 3, 3)
    batches = MicroBatches(9, accumulate=None)
    steps = []
    for scale in (1.0, 2.0**127):
        options = with_(unfreeze=0, mixed_precision=scale != 1)
        descent = Descent(loaded, START, options, 5)
        assert (descent.loss_scale == 1) == (scale == 1)
        descent.loss_scale = scale
        descent.step(images, targets, batches, len(images))
        steps.append(descent.weights())
    batches.close()
    assert 1 < descent.loss_scale < 2.0**127
    assert [w.tobytes() for w in steps[0]] == [w.tobytes() for w in steps[1]]
    assert steps[0][0].any()


def test_few_images_are_read_ahead() -> None:
    """Of a data set of any size, what a step takes and the next two."""
    reads: list[int] = []

    def read(row: int) -> bytes:
        reads.append(row)
        return DATA.read(row)

    data = FinetuneData(read, DATA.train, DATA.validation)
    feed = Feed(data, threads=4, memory=0).batches(DATA.train, iter(DATA.train.rows.reshape(-1, 3)))
    first = next(feed)
    assert first.shape == (3, CONV_SIZE, CONV_SIZE, 3)
    assert first.dtype == np.uint8
    assert 3 <= len(reads) <= 3 * (AHEAD + 1) < TRAIN
    feed.close()


@given(st.integers(1, 500), st.integers(1, 60))
def test_steps_are_even_and_miss_no_image(count: int, batch_size: int) -> None:
    """Each image is in one step of an epoch, and steps differ by one image at most."""
    places = draw(3, 0, np.zeros(count), balanced=False)
    steps = split_evenly(places, batch_size)
    assert sorted(np.concatenate(steps)) == list(range(count))
    sizes = [len(step) for step in steps]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    options = FinetuneOptions(train_batch_size=batch_size)
    assert len(steps) == options.steps_per_epoch(count)


def test_balanced_sampling_draws_labels_uniformly() -> None:
    """However few images one has, and each of its images as often as another."""
    classes = np.repeat([0, 1, 2], [1000, 180, 20])
    drawn = np.concatenate([draw(0, epoch, classes, balanced=True) for epoch in range(25)])
    n = len(drawn)
    counts = np.bincount(classes[drawn])
    assert np.abs(counts - n / 3).max() < 5 * np.sqrt(n * 2 / 9)
    rare = np.bincount(drawn[drawn >= 1180] - 1180, minlength=20)
    assert np.abs(rare - n / 60).max() < 5 * np.sqrt(n / 60)


def test_the_loss_is_that_of_smoothed_labels(
    tune: Callable[..., Finetuned], loaded: Trainable
) -> None:
    """The cross-entropy with 0.9 + 0.1/3 for the label and 0.1/3 for any other class."""
    random = np.random.default_rng(0)
    head = Head(random.normal(size=(CONV_FEATURES, 3)).astype(np.float32), START.bias)
    images = np.stack([DECODE(DATA.read(row)) for row in DATA.train.rows])
    logits = head.logits(loaded.features(np.round(images * 255) / np.float32(255)).numpy())
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    shares = np.where(np.arange(3) == DATA.train.classes[:, None], 0.9 + 0.1 / 3, 0.1 / 3)
    log = Log()
    tune(with_(label_smoothing=0.1, train_batch_size=TRAIN), head=head, observe=log)
    assert log.losses("train")[0] == pytest.approx(-(shares * logs).sum(axis=1).mean(), abs=1e-5)


def test_the_average_of_the_weights_is_what_is_kept(tune: Callable[..., Finetuned]) -> None:
    """It begins with the first step's weights, and each later step's have a share of 1 - decay."""
    kept = Checkpoints()
    tuned = tune(with_(ema=0.75), checkpoint=kept, due=lambda: True)
    kernels = [state.arrays["trained/0"] for state in kept]
    average = kernels[0]
    for kernel in kernels[1:]:
        average = 0.75 * average + 0.25 * kernel
    assert tuned.best_step == 6
    assert tuned.head.kernel == pytest.approx(average, abs=1e-6)
    assert np.abs(tuned.head.kernel - kernels[-1]).max() > 1e-3


def test_the_penalty_of_the_head_pulls_at_it(tune: Callable[..., Finetuned]) -> None:
    """As in `fit`: with a strong one the kernel shrinks and the bias, which is free, does not."""
    head = Head(np.ones((CONV_FEATURES, 3), np.float32), np.ones(3, np.float32))
    kept = Checkpoints()
    for l2 in (0.0, 10.0):
        tune(with_(l2=l2), head=head, checkpoint=kept, due=lambda: True)
    weak, strong = kept[5].arrays, kept[11].arrays
    assert np.linalg.norm(strong["trained/0"]) < 0.97 * np.linalg.norm(weak["trained/0"])
    assert strong["trained/1"] == pytest.approx(weak["trained/1"], abs=0.02)


@pytest.mark.parametrize("kind", [kind for kind in AUGMENTATIONS if kind != "none"])
def test_augmentation_depends_on_seed_and_step_alone(kind: str) -> None:
    """The same for the same step, another for another; targets stay shares of one image."""
    images = tf.random.stateless_uniform([6, CONV_SIZE, CONV_SIZE, 3], [1, 2])
    targets = tf.one_hot([0, 1, 2, 0, 1, 2], 3)
    first, again, *others = (
        [part.numpy() for part in augment(kind, images, targets, seed, step)]
        for seed, step in ((1, 4), (1, 4), (1, 5), (2, 4))
    )
    assert [part.tobytes() for part in first] == [part.tobytes() for part in again]
    for other in others:
        assert other[0].tobytes() != first[0].tobytes()
    assert first[0].shape == images.shape
    assert first[1].sum(axis=1) == pytest.approx(np.ones(6), abs=1e-6)
    assert first[0].min() >= 0
    assert first[0].max() <= 1


def test_distortions_are_seeded_by_the_step(tune: Callable[..., Finetuned]) -> None:
    """Each image of a step has a seed of its own, and a second run the same ones."""
    seen: list[np.ndarray] = []

    def darken(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        seen.append(seeds.numpy())
        return images * tf.cast(seeds[:, :1, tf.newaxis, tf.newaxis], tf.float32) / 2.0**31

    first, again = tune(distort=darken), tune(distort=darken)
    assert same(first, again)
    assert not same(first, tune())
    seeds = np.concatenate(seen[:6])
    assert len(np.unique(seeds, axis=0)) == len(seeds) == 2 * TRAIN
    assert np.array_equal(seeds, np.concatenate(seen[6:]))


def test_the_learning_rate_rises_and_falls_to_nothing(tune: Callable[..., Finetuned]) -> None:
    """Over the first 40 % of the steps, then along a half cosine."""
    log = Log()
    tune(with_(epochs=5, warmup=0.4), observe=log)
    rates = [values["learning_rate"] for side, _, values in log if side == "train"]
    assert rates[0] == pytest.approx(1e-2 / 6)
    assert rates[6] == pytest.approx(1e-2)
    assert rates[:7] == sorted(rates[:7])
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[-1] == pytest.approx(1e-2 * (1 + np.cos(np.pi * 8 / 9)) / 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"augment": "blur"}, "no such augment: blur"),
        ({"class_weights": "even"}, "no such class_weights: even"),
        ({"mixed_precision": True}, "needs a GPU"),
        ({"learning_rate": 1e38, "backbone_learning_rate": 1e38}, "training loss is"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    changes: dict[str, Any], reason: str, tune: Callable[..., Finetuned]
) -> None:
    """With what to do instead."""
    with pytest.raises(ConfigError, match=reason) as caught:
        tune(with_(**changes))
    assert caught.value.hint


def test_an_image_that_went_away_is_worth_another_try(tune: Callable[..., Finetuned]) -> None:
    """It could be read when it was embedded, so someone changes the data set meanwhile."""

    def read(row: int) -> bytes:
        if row == 3:
            raise FileNotFoundError("cyan/001.jpg")
        return DATA.read(row)

    with pytest.raises(UnavailableError, match=r"cyan/001\.jpg"):
        tune(data=FinetuneData(read, DATA.train, DATA.validation))
