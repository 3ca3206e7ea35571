"""Gradient descent takes retrain.py's steps, whoever interrupts it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from test_lbfgs import blobs

from job import lbfgs
from job.checkpoints import Checkpoints
from job.fit import Session
from job.head import Head
from job.sgd import SgdOptions, _rate, _sampler, fit
from job.storage import LocalStore

TRAIN, VALIDATION = blobs(300), blobs(60, seed=1)


def test_steps_are_those_of_the_formula() -> None:
    """Momentum, penalty and cosine: NumPy's float64 arrives at the same head."""
    options = SgdOptions(
        steps=25, learning_rate=0.02, momentum=0.9, cosine=True, batch_size=16, l2=0.1
    )
    kernel, bias = np.zeros((20, 4)), np.zeros(4)
    speed: list[Any] = [0.0, 0.0]
    draw = _sampler(TRAIN[1], 4, options)
    for step in range(25):
        rows = draw(step).numpy()
        x, y = TRAIN[0][rows].astype(np.float64), TRAIN[1][rows]
        powers = np.exp(x @ kernel + bias)
        errors = powers / powers.sum(axis=1, keepdims=True) - np.eye(4)[y]
        slopes = x.T @ errors / 16 + 0.1 * kernel, errors.mean(axis=0)
        speed = [0.9 * v + g for v, g in zip(speed, slopes, strict=True)]
        rate = 0.02 * (1 + np.cos(np.pi * step / 25)) / 2
        kernel, bias = kernel - rate * speed[0], bias - rate * speed[1]
    found = fit(TRAIN, VALIDATION, 4, options).head
    assert found.kernel == pytest.approx(kernel, abs=1e-4)
    assert found.bias == pytest.approx(bias, abs=1e-4)


def test_long_enough_it_comes_to_the_optimum() -> None:
    """With all examples in every step, the loss is that of the exact solver; so is its gradient."""
    centred = TRAIN[0] - TRAIN[0].mean(axis=0), TRAIN[1]
    options = SgdOptions(steps=4000, learning_rate=0.1, cosine=True, batch_size=512, l2=0.1)
    found = fit(centred, VALIDATION, 4, options)
    best = lbfgs.fit(centred, VALIDATION, 4, l2=0.1)
    assert best.loss < found.loss < best.loss + 1e-3
    assert best.gradient_norm < found.gradient_norm < 0.02


@pytest.mark.parametrize("balanced", [False, True])
def test_the_result_tells_the_gradient_of_the_objective(balanced: bool) -> None:
    """`loss` and `gradient_norm` are those of all training examples, as differences show."""
    classes = np.where(np.arange(300) < 250, 0, TRAIN[1])
    train = TRAIN[0], classes
    found = fit(train, VALIDATION, 4, SgdOptions(steps=20, l2=0.05, balanced=balanced))

    def loss(kernel: np.ndarray) -> float:
        head = Head(kernel, found.head.bias.astype(np.float64))
        return head.log_loss(*train, balanced=balanced) + 0.05 / 2 * float((kernel**2).sum())

    kernel = found.head.kernel.astype(np.float64)
    slopes = []
    for place in np.ndindex(*kernel.shape):
        step = np.zeros_like(kernel)
        step[place] = 1e-5
        slopes.append((loss(kernel + step) - loss(kernel - step)) / 2e-5)
    assert found.loss == pytest.approx(loss(kernel))
    assert found.gradient_norm == pytest.approx(np.abs(slopes).max(), rel=1e-3)


@pytest.mark.parametrize("interval", [1, 7, 100])
def test_a_run_that_is_interrupted_gives_the_same_bytes(interval: int, tmp_path: Path) -> None:
    """Whatever the checkpoint it goes on from, and however often it looks at its scores."""
    options = SgdOptions(steps=60, momentum=0.5, balanced=True, eval_interval=interval)
    whole = fit(TRAIN, VALIDATION, 4, SgdOptions(steps=60, momentum=0.5, balanced=True)).head
    stops = {0} if interval > 60 else {1, 20 // interval}
    for stop in stops:
        store = LocalStore(tmp_path / str(stop))
        seen: list[int] = []

        def stopped(step: int, head: object, seen: list[int] = seen, stop: int = stop) -> None:
            seen.append(step)
            if len(seen) > stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), Checkpoints(store, "x", 0.0) as states:
            fit(TRAIN, VALIDATION, 4, options, session=Session(checkpoints=states), watch=stopped)
        told: list[int] = []
        with Checkpoints(store, "x", 0.0) as states:
            session = Session(told.append, checkpoints=states)
            again = fit(TRAIN, VALIDATION, 4, options, session=session)
        assert told[0] == stop * interval if stop else told == [60]
        assert sum(told) == 60
        assert again.head.kernel.tobytes() == whole.kernel.tobytes()
        assert again.head.bias.tobytes() == whole.bias.tobytes()


def test_scores_are_told_on_the_way() -> None:
    """After every interval and at the end: the last batch's, and those of validation examples."""
    seen: dict[str, list[Any]] = {"train": [], "validation": []}

    def observe(side: str, step: int, **values: float) -> None:
        seen[side].append((step, values))

    options = SgdOptions(steps=25, eval_interval=10, validation_batch_size=None)
    heads = {}
    fit(TRAIN, VALIDATION, 4, options, session=Session(observe=observe),
        watch=lambda step, head: heads.update({step: head()}))  # fmt: skip
    assert [step for step, _ in seen["train"]] == [10, 20, 25] == list(heads)
    assert {tuple(values) for _, values in seen["train"]} == {("loss", "accuracy", "learning_rate")}
    for step, values in seen["validation"]:
        assert values["loss"] == pytest.approx(heads[step].log_loss(*VALIDATION), abs=1e-5)
        right = heads[step].logits(VALIDATION[0]).argmax(axis=1) == VALIDATION[1]
        assert values["accuracy"] == pytest.approx(right.mean())


def test_a_validation_batch_is_drawn_anew() -> None:
    """`validation_batch_size` examples at each look, not always the same."""
    losses = []
    options = SgdOptions(steps=40, learning_rate=1e-9, validation_batch_size=5)
    session = Session(observe=lambda side, step, **v: losses.append((side, v["loss"])))
    fit(TRAIN, VALIDATION, 4, options, session=session)
    assert len({loss for side, loss in losses if side == "validation"}) == 4


def test_batches_draw_examples_alike_or_labels_alike() -> None:
    """Of uneven labels, without balance one in nine is rare; with it, one in three of each."""
    targets = np.repeat([0, 1, 3], [10, 70, 10])
    for balanced in (False, True):
        draw = _sampler(targets, 4, SgdOptions(batch_size=9000, balanced=balanced))
        rows = draw(5).numpy()
        assert rows.tolist() != draw(6).numpy().tolist()
        shares = Counter(targets[rows].tolist())
        expected = {0: 1 / 3, 1: 1 / 3, 3: 1 / 3} if balanced else {0: 1 / 9, 1: 7 / 9, 3: 1 / 9}
        assert {k: n / 9000 for k, n in shares.items()} == pytest.approx(expected, abs=0.02)
        assert len(set(rows.tolist())) == 90


def test_the_cosine_ends_at_nothing() -> None:
    """The rate is whole in the first step, half in the middle, and 0 after the last."""
    options = SgdOptions(steps=10, learning_rate=0.3, cosine=True)
    rates = [float(_rate(options, tf.constant(step))) for step in (0, 5, 10)]
    assert rates == pytest.approx([0.3, 0.15, 0.0], abs=1e-6)
