"""The head is the optimum of its objective, whoever solves it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from job.fit import L2_PATH, fit
from job.head import Head

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


def test_a_second_run_gives_the_same_bytes() -> None:
    """There is no randomness: kernel and bias are equal to the last bit."""
    first, second = (fit(blobs(200), blobs(50, seed=1), 4).head for _ in range(2))
    assert first.kernel.tobytes() == second.kernel.tobytes()
    assert first.bias.tobytes() == second.bias.tobytes()


def test_the_path_picks_the_penalty_that_validates_best() -> None:
    """Noisy data asks for a stronger penalty than clean data, and no penalty alone does better."""
    noisy = blobs(60, noise=5), blobs(400, seed=1, noise=5)
    clean = blobs(400, noise=0.5), blobs(400, seed=1, noise=0.5)
    assert fit(*noisy, 4).l2 > fit(*clean, 4).l2
    chosen = fit(*noisy, 4)
    alone = [fit(*noisy, 4, l2=l2).validation_loss for l2 in L2_PATH[:9]]
    assert chosen.validation_loss == pytest.approx(min(alone), abs=1e-4)


def test_probabilities_are_a_softmax() -> None:
    """Rows sum to one, and logits of a thousand do not overflow."""
    head = Head(np.eye(3, dtype=np.float32) * 1000, np.zeros(3, np.float32))
    scores = head.probabilities(np.eye(3, dtype=np.float32))
    assert scores == pytest.approx(np.eye(3), abs=1e-6)
    assert scores.dtype == np.float32
