"""The trained classifier: what fit makes, evaluate scores and export writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, log_softmax

# Rows that are copied as float64 at once.
ROWS = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer: `kernel` float32 `[d,c]`, `bias` float32 `[c]`, then an activation.

    `activation` is one of ACTIVATIONS. softmax: of c labels an image has one, and targets are class
    indices int `[n]`. sigmoid: it has each of them or not, and targets are bool `[n,c]`.
    """

    kernel: np.ndarray
    bias: np.ndarray
    activation: str = "softmax"

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Give float32 `[n,c]` in [0,1] for embeddings float32 `[n,d]`.

        A row sums to 1 after a softmax. After a sigmoid its values are each for themselves.
        """
        return ACTIVATIONS[self.activation].probabilities(self.logits(features))

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Give float32 `[n,c]`, the scores before the activation."""
        scores: np.ndarray = features @ self.kernel + self.bias
        return scores

    def tempered(self, temperature: float) -> Head:
        """Give the head with its logits divided by a temperature: other confidence, same order."""
        divisor = np.float32(temperature)
        return replace(self, kernel=self.kernel / divisor, bias=self.bias / divisor)

    def log_loss(
        self, features: np.ndarray, targets: np.ndarray, *, balanced: bool = False
    ) -> float:
        """Give the mean over images of -log p(its labels) in nats.

        After a softmax that is -log p(true class), and with `balanced` the mean over the classes
        that occur of the mean over their examples. After a sigmoid it is the sum over the labels of
        the binary log loss, and with `balanced` each label's is the mean of that of the images with
        it and of that of those without, where both occur.
        """
        return ACTIVATIONS[self.activation].log_loss(self, features, targets, balanced)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return scores


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    scores: np.ndarray = expit(logits)
    return scores


def _softmax_loss(head: Head, features: np.ndarray, classes: np.ndarray, balanced: bool) -> float:
    totals = np.zeros(len(head.bias))
    for logits, block in _blocks(head, features, classes):
        true = np.arange(len(logits)), block
        np.subtract.at(totals, block, log_softmax(logits, axis=1)[true])
    if not balanced:
        return float(totals.sum()) / len(classes)
    counts = np.bincount(classes, minlength=len(totals))
    return float((totals[counts > 0] / counts[counts > 0]).mean())


def _sigmoid_loss(head: Head, features: np.ndarray, targets: np.ndarray, balanced: bool) -> float:
    totals = np.zeros((2, len(head.bias)))  # of images without a label, and with it
    for logits, block in _blocks(head, features, targets):
        losses = np.logaddexp(0, np.where(block, -logits, logits))
        totals += (losses * ~block).sum(axis=0), (losses * block).sum(axis=0)
    if not balanced:
        return float(totals.sum()) / len(targets)
    counts = np.array([(~targets).sum(axis=0), targets.sum(axis=0)])
    sides = np.maximum((counts > 0).sum(axis=0), 1)
    return float((totals / np.maximum(counts, 1)).sum(axis=0) @ (1 / sides))


def _blocks(
    head: Head, features: np.ndarray, targets: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give float64 logits and their targets, ROWS rows at a time."""
    for start in range(0, len(targets), ROWS):
        block = slice(start, start + ROWS)
        yield features[block].astype(np.float64) @ head.kernel + head.bias, targets[block]


@dataclass(frozen=True, slots=True)
class Activation:
    """What logits float `[n,c]` become, and the loss of a head that ends in it."""

    probabilities: Callable[[np.ndarray], np.ndarray]
    log_loss: Callable[[Head, np.ndarray, np.ndarray, bool], float]


ACTIVATIONS: dict[str, Activation] = {
    "softmax": Activation(_softmax, _softmax_loss),
    "sigmoid": Activation(_sigmoid, _sigmoid_loss),
}
