"""The trained classifier: what fit makes, evaluate scores and export writes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

# Rows that are copied as float64 at once.
ROWS = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """A linear softmax layer: `kernel` float32 `[d,c]`, `bias` float32 `[c]`."""

    kernel: np.ndarray
    bias: np.ndarray

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Give float32 `[n,c]`, each row summing to 1, for embeddings float32 `[n,d]`."""
        logits = self.logits(features)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return scores

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Give float32 `[n,c]`, the scores before the softmax."""
        scores: np.ndarray = features @ self.kernel + self.bias
        return scores

    def tempered(self, temperature: float) -> Head:
        """Give the head with its logits divided by a temperature: other confidence, same order."""
        divisor = np.float32(temperature)
        return Head(self.kernel / divisor, self.bias / divisor)

    def log_loss(
        self, features: np.ndarray, classes: np.ndarray, *, balanced: bool = False
    ) -> float:
        """Give the mean of -log p(true class) in nats, for class indices int `[n]`.

        With `balanced` it is the mean over the classes that occur of the mean over their examples.
        """
        totals = np.zeros(len(self.bias))
        for start in range(0, len(classes), ROWS):
            block = slice(start, start + ROWS)
            logits = features[block].astype(np.float64) @ self.kernel + self.bias
            true = np.arange(len(logits)), classes[block]
            np.subtract.at(totals, classes[block], log_softmax(logits, axis=1)[true])
        if not balanced:
            return float(totals.sum()) / len(classes)
        counts = np.bincount(classes, minlength=len(totals))
        return float((totals[counts > 0] / counts[counts > 0]).mean())
