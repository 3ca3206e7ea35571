"""Scores are what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from job.evaluate import METRICS, evaluate, wilson

LABELS = ("a", "b", "c")


def drawn(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Draw probabilities that are right about half the time, for three uneven classes."""
    random = np.random.default_rng(3)
    classes = random.choice(3, n, p=[0.6, 0.3, 0.1])
    logits = random.normal(size=(n, 3)) + 1.0 * np.eye(3)[classes]
    powers = np.exp(logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), classes


def test_metrics_agree_with_scikit_learn() -> None:
    """Each entry of METRICS, and precision and recall by label, computed another way."""
    scores, classes = drawn()
    report = evaluate(scores, classes, LABELS)
    guess = scores.argmax(axis=1)
    peers = {
        "accuracy": metrics.accuracy_score(classes, guess),
        "balanced_accuracy": metrics.balanced_accuracy_score(classes, guess),
        "log_loss": -np.log(scores[np.arange(len(classes)), classes].astype(float)).mean(),
    }
    assert set(peers) == set(METRICS)
    assert report.metrics == pytest.approx(peers, abs=1e-6)
    precision, recall, _, count = metrics.precision_recall_fscore_support(classes, guess)
    assert [s.precision for s in report.per_label] == pytest.approx(precision)
    assert [s.recall for s in report.per_label] == pytest.approx(recall)
    assert [s.count for s in report.per_label] == list(count)
    assert (report.confusion == metrics.confusion_matrix(classes, guess)).all()


def test_wilson_interval_of_published_cases() -> None:
    """Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    cases = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605),
             (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}  # fmt: skip
    for (hits, n), bounds in cases.items():
        assert wilson(hits, n) == pytest.approx(bounds, abs=5e-5)


def test_a_label_without_test_images_counts_zero() -> None:
    """A class that does not occur has no precision to divide by, and no part in the means."""
    report = evaluate(np.array([[0.9, 0.1, 0.0]] * 4), np.array([0, 0, 0, 1]), LABELS)
    assert [s.recall for s in report.per_label] == [1.0, 0.0, 0.0]
    assert report.metrics["balanced_accuracy"] == 0.5
