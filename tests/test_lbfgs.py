"""The head is the optimum of its objective, whoever solves it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from job.checkpoints import Checkpoints, State
from job.fit import Session
from job.head import Head
from job.lbfgs import L2_PATH, fit
from job.objective import GRADIENT_TOLERANCE
from job.storage import LocalStore

Pair = tuple[np.ndarray, np.ndarray]


def blobs(n: int, *, classes: int = 4, width: int = 20, seed: int = 0, noise: float = 2.0) -> Pair:
    """Draw examples around class centres, shifted to positive values as after a ReLU."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    targets = random.integers(0, classes, n)
    features = centres[targets] + noise * random.normal(size=(n, width)) + 10
    return features.astype(np.float32), targets


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_the_optimum_is_scikit_learns(l2: float) -> None:
    """Kernel and bias to 1e-3 and loss to 1e-6 of LogisticRegression at the same penalty."""
    train = blobs(300)
    found = fit(train, blobs(50, seed=1), 4, l2=l2)
    # Its L-BFGS stops while the bias is still 1e-3 off; its Newton solver goes on.
    peer = LogisticRegression(C=1 / (300 * l2), tol=1e-10, max_iter=20_000, solver="newton-cg")
    peer.fit(train[0].astype(np.float64), train[1])
    assert np.abs(found.head.kernel - peer.coef_.T).max() < 1e-3
    assert np.abs(found.head.bias - peer.intercept_).max() < 1e-3
    theirs = Head(peer.coef_.T, peer.intercept_).log_loss(*train) + l2 / 2 * (peer.coef_**2).sum()
    assert abs(found.loss - theirs) < 1e-6
    assert found.gradient_norm < 1e-5


@pytest.mark.parametrize("prepared_elements", [0, 2**20])
def test_a_second_run_gives_the_same_bytes(prepared_elements: int) -> None:
    """There is no randomness, nor do threads race: kernel and bias are equal to the last bit."""
    train, validation = blobs(6000), blobs(50, seed=1)
    runs = (fit(train, validation, 4, prepared_elements=prepared_elements) for _ in range(2))
    first, second = (run.head for run in runs)
    assert first.kernel.tobytes() == second.kernel.tobytes()
    assert first.bias.tobytes() == second.bias.tobytes()


def embeddings(n: int, *, classes: int = 8, width: int = 100, seed: int = 0) -> Pair:
    """Draw examples like embeddings: not negative, few strong directions and many weak ones."""
    shape = np.random.default_rng(7)
    axes = np.linalg.qr(shape.normal(size=(width, width)))[0] * np.arange(1, width + 1) ** -0.8
    centres = 2 * shape.normal(size=(classes, width))
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, n)
    features = 0.2 + (centres[targets] + 3 * random.normal(size=(n, width))) @ axes.T
    return np.maximum(features, 0).astype(np.float32), targets


@pytest.mark.parametrize("n", [60, 5000])
def test_both_ways_give_the_same_head(n: int, tmp_path: Path) -> None:
    """Features that are prepared, and a read-only file's that are read in blocks, fit alike."""
    features, classes = embeddings(n)
    features.tofile(tmp_path / "features")
    mapped = np.memmap(tmp_path / "features", np.float32, "r", shape=features.shape)
    validation = embeddings(300, seed=1)
    prepared = fit((features, classes), validation, 8, l2=1e-2)
    blocks = fit((mapped, classes), validation, 8, l2=1e-2, prepared_elements=features.size - 1)
    assert np.abs(prepared.head.kernel - blocks.head.kernel).max() < 1e-6
    assert np.abs(prepared.head.bias - blocks.head.bias).max() < 1e-6
    assert prepared.loss == pytest.approx(blocks.loss, abs=1e-9)


def test_both_ways_choose_the_same_penalty() -> None:
    """Whether features are prepared or read in blocks."""
    train, validation = embeddings(400), embeddings(60, seed=1)
    prepared, blocks = (fit(train, validation, 8, prepared_elements=e) for e in (40_000, 39_999))
    assert prepared.l2 == blocks.l2
    assert prepared.validation_loss == pytest.approx(blocks.validation_loss, abs=1e-5)


@pytest.mark.parametrize("prepared_elements", [0, 2**20])
def test_the_gradient_at_the_head_is_nothing(prepared_elements: int) -> None:
    """On the features as they came no component is above the tolerance, float32's error aside."""
    features, classes = embeddings(1000)
    found = fit(
        (features, classes), embeddings(200, seed=1), 8, prepared_elements=prepared_elements
    )
    scores = found.head.probabilities(features.astype(np.float64))
    error = (scores - np.eye(8)[classes]) / len(classes)
    slope = features.T @ error + found.l2 * found.head.kernel
    assert max(np.abs(slope).max(), np.abs(error.sum(axis=0)).max()) < 1.5 * GRADIENT_TOLERANCE
    assert found.gradient_norm <= GRADIENT_TOLERANCE


def test_features_are_not_copied_above_the_limit() -> None:
    """What fit allocates on the way is a small part of the features."""
    features, classes = embeddings(100_000, classes=3, width=64)
    tracemalloc.start()
    try:
        fit((features, classes), (features[:10], classes[:10]), 3, l2=1e-2, prepared_elements=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < features.nbytes / 2


def test_biases_sum_to_zero() -> None:
    """Of all biases with the same scores these are taken, however uneven the classes are."""
    features, classes = embeddings(600)
    kept = (classes < 2) | (np.arange(600) % 5 == 0)
    train = features[kept], classes[kept]
    assert fit(train, train, 8, l2=1e-3).head.bias.sum() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_penalty_is_the_one_whose_optimum_validates_best(seed: int) -> None:
    """Solving the path loosely changes nothing of the choice."""
    train, validation = embeddings(400, seed=seed), embeddings(60, seed=seed + 10)
    chosen = fit(train, validation, 8)
    alone = [fit(train, validation, 8, l2=l2) for l2 in L2_PATH]
    best = min(alone, key=lambda candidate: candidate.validation_loss)
    assert chosen.l2 == best.l2
    assert chosen.validation_loss == pytest.approx(best.validation_loss, abs=1e-5)


def test_the_path_picks_the_penalty_that_validates_best() -> None:
    """Noisy data asks for a stronger penalty than clean data, and no penalty alone does better."""
    noisy = blobs(60, noise=5), blobs(400, seed=1, noise=5)
    clean = blobs(400, noise=0.5), blobs(400, seed=1, noise=0.5)
    assert fit(*noisy, 4).l2 > fit(*clean, 4).l2
    chosen = fit(*noisy, 4)
    alone = [fit(*noisy, 4, l2=l2).validation_loss for l2 in L2_PATH[:9]]
    assert chosen.validation_loss == pytest.approx(min(alone), abs=1e-4)


def test_log_loss_is_scikit_learns() -> None:
    """Over more rows than are taken at once, the last block not being full."""
    features, classes = blobs(10_000, width=4)
    head = Head(np.eye(4, dtype=np.float32), np.arange(4, dtype=np.float32))
    expected = log_loss(classes, head.probabilities(features.astype(np.float64)))
    assert head.log_loss(features, classes) == pytest.approx(expected, abs=1e-9)


def test_log_loss_copies_few_rows() -> None:
    """A large validation side is not in memory twice."""
    features, classes = blobs(50_000, width=64)
    head = Head(np.ones((64, 4), np.float32), np.zeros(4, np.float32))
    tracemalloc.start()
    try:
        head.log_loss(features, classes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < features.nbytes / 2


def test_probabilities_are_a_softmax() -> None:
    """Rows sum to one, and logits of a thousand do not overflow."""
    head = Head(np.eye(3, dtype=np.float32) * 1000, np.zeros(3, np.float32))
    scores = head.probabilities(np.eye(3, dtype=np.float32))
    assert scores == pytest.approx(np.eye(3), abs=1e-6)
    assert scores.dtype == np.float32


def test_balanced_classes_are_scikit_learns() -> None:
    """With `class_weight="balanced"` it has the same optimum, whatever the sizes of the classes."""
    features, classes = blobs(400)
    kept = (classes < 2) | (np.arange(400) % 4 == 0)
    train = features[kept], classes[kept]
    found = fit(train, blobs(60, seed=1), 4, l2=1e-2, balanced=True)
    peer = LogisticRegression(
        C=1 / (len(train[1]) * 1e-2), tol=1e-10, max_iter=20_000, solver="newton-cg",
        class_weight="balanced",
    )  # fmt: skip
    peer.fit(train[0].astype(np.float64), train[1])
    assert np.abs(found.head.kernel - peer.coef_.T).max() < 1e-3
    assert np.abs(found.head.bias - peer.intercept_).max() < 1e-3
    plain = fit(train, blobs(60, seed=1), 4, l2=1e-2)
    assert np.abs(found.head.kernel - plain.head.kernel).max() > 1e-2


def test_a_balanced_log_loss_is_the_mean_over_classes() -> None:
    """Each class that occurs counts as much, and one that does not occur counts nothing."""
    features, classes = blobs(200)
    head = Head(np.random.default_rng(3).normal(size=(20, 5)), np.zeros(5))
    each = [head.log_loss(features[classes == c], classes[classes == c]) for c in range(4)]
    found = head.log_loss(features, classes, balanced=True)
    assert found == pytest.approx(np.mean(each))


@pytest.mark.parametrize("kept", range(1, 9))
def test_a_run_that_is_interrupted_gives_the_same_bytes(kept: int, tmp_path: Path) -> None:
    """After any penalty of the path and any of the exact solutions it goes on from there."""
    train, validation = embeddings(200), embeddings(60, seed=1)
    store = LocalStore(tmp_path)

    class Interrupted(Checkpoints):
        """Ends the run after so many states."""

        left = kept

        def reached(self, stage: str, state: Callable[[], State]) -> None:
            super().reached(stage, state)
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    whole = fit(train, validation, 8)
    with pytest.raises(KeyboardInterrupt):
        fit(train, validation, 8, session=Session(checkpoints=Interrupted(store, "x", 0.0)))
    told: list[int] = []
    session = Session(told.append, checkpoints=Checkpoints(store, "x", 0.0))
    again = fit(train, validation, 8, session=session)
    assert told[0] == min(kept, sum(told))
    assert again.head.kernel.tobytes() == whole.head.kernel.tobytes()
    assert again.head.bias.tobytes() == whole.head.bias.tobytes()
    assert (again.l2, again.loss, again.iterations) == (whole.l2, whole.loss, whole.iterations)


@pytest.mark.parametrize("prepared_elements", [0, 2**20])
def test_examples_that_do_not_differ_teach_their_shares(prepared_elements: int) -> None:
    """Whatever the features, the scores are then how common each class is."""
    classes = np.array([0] * 12 + [1] * 6 + [2] * 2)
    same = np.full((20, 50), 3.0, np.float32), classes
    found = fit(same, same, 3, l2=0.1, prepared_elements=prepared_elements)
    assert found.head.probabilities(same[0])[0] == pytest.approx([0.6, 0.3, 0.1], abs=1e-5)


def test_copies_of_examples_change_nothing() -> None:
    """Fewer different examples than there are rows: the optimum is that of the different ones."""
    features, classes = embeddings(40)
    twice = np.concatenate([features, features]), np.concatenate([classes, classes])
    validation = embeddings(60, seed=1)
    one, other = (fit(train, validation, 8, l2=1e-2) for train in ((features, classes), twice))
    assert np.abs(one.head.kernel - other.head.kernel).max() < 1e-6
    assert one.loss == pytest.approx(other.loss, abs=1e-9)
