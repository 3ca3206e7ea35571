"""The objective of logistic regression, in coordinates in which L-BFGS has an easy time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax

from job.fit import Pair, class_weights, label_weights
from job.guard import beat
from job.head import Head

# Rows that the mean, the axes and the curvature are measured on: these steer, none is the optimum.
SAMPLE = 8192

GRADIENT_TOLERANCE = 1e-6
MAX_ITERATIONS = 2000

# Axes with so little of the largest variance are left out: float32 features have only noise there.
LEAST_VARIANCE = 1e-12

# A parameter that nothing depends on is scaled by this curvature, not by 1/0.
LEAST_CURVATURE = 1e-9

# Rows that stay in a core's cache from one product with them to the next. Where few of them make a
# product of so few multiplications, OpenBLAS does not repack its operands: that is twice as fast.
BLOCK = 256
PIECE = 32
SMALL_PRODUCT = 10**6

# The most spans of rows for threads to take: as many on every machine, so that sums are the same.
SPANS = 16


@dataclass(frozen=True, slots=True)
class Solution:
    """Where a solve ended: `flat` has kernel and bias, `gradient_norm` is the largest component."""

    flat: np.ndarray
    l2: float
    loss: float
    gradient_norm: float
    iterations: int


class Problem:
    """The objective, in coordinates in which L-BFGS has an easy time.

    Centring moves only the bias, which carries no penalty. A rotation to the principal axes leaves
    the kernel's norm alone. Scaling each parameter by the root of its curvature then gives the
    Hessian a diagonal of ones. None of the three moves the optimum, so those of a sample do;
    together they take a path over embeddings from thousands of iterations to a few hundred.
    """

    def __init__(
        self,
        train: Pair,
        count: int,
        limit: int,
        pool: ThreadPoolExecutor,
        *,
        activation: str = "softmax",
        balanced: bool = False,
    ) -> None:
        """Prepare features of at most `limit` elements; `activation` is a key of LOSSES."""
        features, self._targets = train
        self._loss = LOSSES[activation]
        self._activation = activation
        self._weights = self._loss.weights(self._targets, count) if balanced else None
        n, width = features.shape
        step = -(-n // max(SAMPLE, width))
        sample = features[::step]
        self._mean = sample.mean(axis=0, dtype=np.float64)
        self._axes = _principal_axes(sample - self._mean)
        self._prepared = features.size <= limit
        self._rows = self._turned(features) if self._prepared else features
        self._rough = self._rows.astype(np.float32, copy=False)
        sample = self._rough[::step] if self._prepared else self._turned(sample)
        self._sample = sample.astype(np.float32, copy=False)
        self._sample_targets = self._targets[::step]
        blocks = -(-n // BLOCK)
        spans = max(1, min(SPANS, blocks // 8))
        self._bounds = np.minimum(np.linspace(0, blocks, spans + 1).astype(int) * BLOCK, n)
        self._pool = pool
        self._shape = (self._axes.shape[1], count)
        self.start = np.zeros((self._shape[0] + 1) * count)

    def solve(self, start: np.ndarray, l2: float, dtype: Any, error: float) -> Solution:
        """Minimise with L-BFGS-B from `start`; features are multiplied in `dtype`."""
        scale = self._scale(start, l2)
        tolerance = error / scale.max()
        if dtype == np.float64:
            tolerance = min(tolerance, GRADIENT_TOLERANCE * scale.min())

        def objective(scaled: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.objective(scaled * scale, l2, dtype)
            return value, gradient * scale

        options = {
            "maxiter": MAX_ITERATIONS,
            "maxfun": 2 * MAX_ITERATIONS,
            "gtol": tolerance,
            # Of less, float32 has only noise.
            "ftol": 1e-9 if dtype == np.float32 else 0,
            "maxcor": 20,
        }
        found = minimize(objective, start / scale, jac=True, method="L-BFGS-B", options=options)
        steepest = float(np.abs(found.jac / scale).max())
        return Solution(found.x * scale, l2, float(found.fun), steepest, int(found.nit))

    def objective(self, flat: np.ndarray, l2: float, dtype: Any) -> tuple[float, np.ndarray]:
        """Give the value and its gradient, float64, for kernel and bias in one flat vector."""
        beat()
        kernel, bias = self._unpack(flat)
        weights, shift = (kernel, bias) if self._prepared else self._unturned(kernel, bias)
        rows = self._rough if dtype == np.float32 else self._rows
        weights = weights.astype(dtype)

        def add_up(first: int, last: int) -> np.ndarray:
            blocks = (slice(i, min(i + BLOCK, last)) for i in range(first, last, BLOCK))
            parts = (self._sums(rows[b], self._targets[b], weights, shift) for b in blocks)
            return sum(parts, np.zeros(1))

        # In the order of the rows, whichever is done first. To hand over one span takes longer than
        # to add it up.
        many: Any = self._pool.map if len(self._bounds) > 2 else map
        sums = sum(many(add_up, self._bounds[:-1], self._bounds[1:]), np.zeros(1))
        sums /= len(self._targets)
        errors = sums[-len(bias) :]
        slope = sums[1 : -len(bias)].reshape(weights.shape)
        if not self._prepared:
            slope = self._axes.T @ (slope - np.outer(self._mean, errors))
        value = sums[0] + l2 / 2 * (kernel * kernel).sum()
        return float(value), np.concatenate([(slope + l2 * kernel).ravel(), errors])

    def head(self, flat: np.ndarray) -> Head:
        """Give the head for features as they came.

        Where a constant more in all biases changes no score, they sum to zero.
        """
        kernel, bias = self._unturned(*self._unpack(flat))
        bias = bias - bias.mean() if self._loss.shifts else bias
        return Head(kernel.astype(np.float32), bias.astype(np.float32), self._activation)

    def _scale(self, flat: np.ndarray, l2: float) -> np.ndarray:
        """Give each parameter's 1 / root of the curvature, the Hessian's diagonal on the sample."""
        kernel, bias = self._unpack(flat)
        scores = self._loss.scores(self._sample @ kernel.astype(np.float32) + bias)
        spread = (scores * (1 - scores)).astype(np.float32) / np.float32(len(scores))
        if self._weights is not None:
            factors = self._loss.factors(self._weights, self._sample_targets)
            spread *= factors.astype(np.float32)
        of_kernel = (self._sample**2).T @ spread + l2
        curvature = np.concatenate([of_kernel.ravel(), spread.sum(axis=0)])
        scale: np.ndarray = 1 / np.sqrt(np.maximum(curvature, LEAST_CURVATURE))
        return scale

    def _sums(
        self, rows: np.ndarray, targets: np.ndarray, kernel: np.ndarray, bias: np.ndarray
    ) -> np.ndarray:
        """Give one flat float64 array of sums over rows: the loss, its slopes for kernel and bias.

        Products with `rows` `[n,d]` are in the dtype of `kernel` `[d,c]`, all else is in float64.
        """
        n, width = rows.shape
        piece = n if n % PIECE or PIECE * kernel.size > SMALL_PRODUCT else PIECE
        pieces = rows.reshape(-1, piece, width).astype(kernel.dtype, copy=False)
        logits = (pieces @ kernel).reshape(n, -1).astype(np.float64) + bias
        losses, errors = self._loss.errors(logits, targets)
        if self._weights is not None:
            factors = self._loss.factors(self._weights, targets)
            losses *= factors
            errors *= factors
        parts = errors.astype(kernel.dtype).reshape(*pieces.shape[:2], -1)
        slope = (parts.transpose(0, 2, 1) @ pieces).sum(axis=0, dtype=np.float64).T
        return np.concatenate([[losses.sum()], slope.ravel(), errors.sum(axis=0)])

    def _turned(self, features: np.ndarray) -> np.ndarray:
        turned: np.ndarray = (features - self._mean) @ self._axes
        return turned

    def _unturned(self, kernel: np.ndarray, bias: np.ndarray) -> Pair:
        """Give the kernel and bias for features that are neither centred nor turned."""
        weights = self._axes @ kernel
        return weights, bias - self._mean @ weights

    def _unpack(self, flat: np.ndarray) -> Pair:
        width = self._shape[0] * self._shape[1]
        return flat[:width].reshape(self._shape), flat[width:]


@dataclass(frozen=True, slots=True)
class Loss:
    """What is minimised over n examples and c labels, apart from the penalty.

    `scores` turns logits `[n,c]` into probabilities. `errors` gives the log loss of each example,
    `[n,1]`, or of each of its labels, `[n,c]`, and the slopes for the logits, `[n,c]`; it may
    overwrite the logits. `weights` are those of balanced targets, and `factors` what they multiply
    the losses and slopes of targets with. `shifts`: a constant more in all biases changes no score.
    """

    scores: Callable[[np.ndarray], np.ndarray]
    errors: Callable[[np.ndarray, np.ndarray], Pair]
    weights: Callable[[np.ndarray, int], np.ndarray]
    factors: Callable[[np.ndarray, np.ndarray], np.ndarray]
    shifts: bool


def _softmax_errors(logits: np.ndarray, classes: np.ndarray) -> Pair:
    logits -= logits.max(axis=1, keepdims=True)
    true = np.arange(len(logits)), classes
    errors = np.exp(logits)
    totals = errors.sum(axis=1)
    losses = np.log(totals) - logits[true]
    errors /= totals[:, None]
    errors[true] -= 1
    return losses[:, None], errors


def _sigmoid_errors(logits: np.ndarray, targets: np.ndarray) -> Pair:
    losses = np.logaddexp(0, np.where(targets, -logits, logits))
    return losses, expit(logits) - targets


# With the sigmoid it is the sum of c binary log losses, one label against the rest: its optimum is
# that of c logistic regressions, each by itself, at the same penalty.
LOSSES: dict[str, Loss] = {
    "softmax": Loss(
        lambda logits: softmax(logits, axis=1),
        _softmax_errors,
        class_weights,
        lambda weights, classes: weights[classes][:, None],
        shifts=True,
    ),
    "sigmoid": Loss(
        expit,
        _sigmoid_errors,
        label_weights,
        lambda weights, targets: np.where(targets, weights[1], weights[0]),
        shifts=False,
    ),
}


def _principal_axes(centred: np.ndarray) -> np.ndarray:
    """Give orthonormal axes `[d,r]` along which the features do not correlate.

    r is at most the smaller of n and d: with fewer examples than features the optimum lies in the
    span of the examples, since anything outside costs a penalty and changes no score.
    """
    n, width = centred.shape
    if n >= width:
        rough = centred.astype(np.float32)
        rotation: np.ndarray = np.linalg.eigh((rough.T @ rough).astype(np.float64))[1]
        return rotation
    # The axes of the few examples' own products lead to those of the many features. Where examples
    # do not differ they lead nowhere, and there is nothing to learn.
    squares, turns = np.linalg.eigh(centred @ centred.T)
    kept = squares >= LEAST_VARIANCE * squares[-1]
    lengths = np.sqrt(np.maximum(squares[kept], np.finfo(np.float64).tiny))
    axes: np.ndarray = centred.T @ (turns[:, kept] / lengths)
    return axes
