"""Embeddings to a head: multinomial logistic regression, run to its optimum."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from job.guard import beat
from job.head import Head

# From a penalty that keeps the head near the prior to one that fits every training image.
L2_PATH = tuple(10.0 ** (-step / 2) for step in range(0, 15))

# The path ends once the validation loss has not improved for so many penalties.
PATIENCE = 2

# Features of so many elements (26,000 embeddings of 1,280) are prepared: copied, and turned to
# their principal axes. Beyond, they stay where they are and the head is turned instead.
PREPARED_ELEMENTS = 2**25

# Rows that the mean, the axes and the curvature are measured on: these steer, none is the optimum.
SAMPLE = 8192

# Features float32 `[n,d]` and class indices int `[n]`.
Pair = tuple[np.ndarray, np.ndarray]

GRADIENT_TOLERANCE = 1e-6
MAX_ITERATIONS = 2000

# How far a parameter may be from the optimum, told from its gradient and the least curvature. Along
# the path, in float32, PATH_ERROR is enough to compare validation losses; penalties that come less
# than DOUBT nats behind the best are compared by their optima.
EXACT_ERROR = 2e-7
PATH_ERROR = 3e-3
DOUBT = 1e-3

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
class Fit:
    """A head at its optimum.

    `loss` is the training objective (mean log loss plus penalty), `validation_loss` the mean log
    loss on the validation examples, `gradient_norm` the largest absolute component of the
    objective's gradient at the head, `iterations` those of the whole path.
    """

    head: Head
    l2: float
    loss: float
    validation_loss: float
    gradient_norm: float
    iterations: int


def fit(
    train: Pair,
    validation: Pair,
    classes: int,
    *,
    l2: float | None = None,
    advance: Callable[[int], None] = lambda count: None,
    prepared_elements: int = PREPARED_ELEMENTS,
) -> Fit:
    """Fit a head to `train` and choose its penalty on `validation`.

    Minimises mean log loss + l2/2 * |kernel|^2, the bias being free; scikit-learn's
    LogisticRegression has the same optimum at C = 1 / (n * l2). Without an `l2`, `L2_PATH` is
    followed from the strongest penalty down, each solution being the start of the next, and the
    penalty with the least validation log loss wins. `advance` is told of every penalty solved.

    Features may be a read-only `np.memmap`: above `prepared_elements` elements no copy is made of
    them, and memory does not grow with n beyond a few numbers a row.
    """
    # One BLAS thread: its threads spin while they wait for each other, so that a neighbour on the
    # node makes them thirty times slower than one; and the sums do not depend on their number.
    cores = len(os.sched_getaffinity(0))
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores, "fit") as pool:
        problem = _Problem(train, classes, prepared_elements, pool)
        penalties = L2_PATH if l2 is None else (l2,)
        return _follow_path(problem, validation, penalties, advance)


@dataclass(frozen=True, slots=True)
class _Solution:
    """Where a solve ended: `flat` has kernel and bias, `gradient_norm` is the largest component."""

    flat: np.ndarray
    l2: float
    loss: float
    gradient_norm: float
    iterations: int


def _follow_path(
    problem: _Problem,
    validation: Pair,
    penalties: Iterable[float],
    advance: Callable[[int], None],
) -> Fit:
    rough: list[_Solution] = []
    losses: list[float] = []
    for penalty in penalties:
        start = rough[-1].flat if rough else problem.start
        rough.append(problem.solve(start, penalty, np.float32, PATH_ERROR))
        losses.append(problem.head(rough[-1].flat).log_loss(*validation))
        advance(1)
        if len(losses) - 1 - int(np.argmin(losses)) == PATIENCE:
            break
    close = [s for s, loss in zip(rough, losses, strict=True) if loss <= min(losses) + DOUBT]
    exact = [problem.solve(s.flat, s.l2, np.float64, EXACT_ERROR) for s in close]
    iterations = sum(s.iterations for s in rough + exact)
    fits = []
    for solution in exact:
        head = problem.head(solution.flat)
        loss, norm = head.log_loss(*validation), solution.gradient_norm
        fits.append(Fit(head, solution.l2, solution.loss, loss, norm, iterations))
    return min(fits, key=lambda candidate: candidate.validation_loss)


class _Problem:
    """The objective, in coordinates in which L-BFGS has an easy time.

    Centring moves only the bias, which carries no penalty. A rotation to the principal axes leaves
    the kernel's norm alone. Scaling each parameter by the root of its curvature then gives the
    Hessian a diagonal of ones. None of the three moves the optimum, so those of a sample do;
    together they take a path over embeddings from thousands of iterations to a few hundred.
    """

    def __init__(self, train: Pair, count: int, limit: int, pool: ThreadPoolExecutor) -> None:
        features, self._classes = train
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
        blocks = -(-n // BLOCK)
        spans = max(1, min(SPANS, blocks // 8))
        self._bounds = np.minimum(np.linspace(0, blocks, spans + 1).astype(int) * BLOCK, n)
        self._pool = pool
        self._shape = (self._axes.shape[1], count)
        self.start = np.zeros((self._shape[0] + 1) * count)

    def solve(self, start: np.ndarray, l2: float, dtype: Any, error: float) -> _Solution:
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
        return _Solution(found.x * scale, l2, float(found.fun), steepest, int(found.nit))

    def objective(self, flat: np.ndarray, l2: float, dtype: Any) -> tuple[float, np.ndarray]:
        """Give the value and its gradient, float64, for kernel and bias in one flat vector."""
        beat()
        kernel, bias = self._unpack(flat)
        weights, shift = (kernel, bias) if self._prepared else self._unturned(kernel, bias)
        rows = self._rough if dtype == np.float32 else self._rows
        weights = weights.astype(dtype)

        def add_up(first: int, last: int) -> np.ndarray:
            blocks = (slice(i, min(i + BLOCK, last)) for i in range(first, last, BLOCK))
            parts = (_losses(rows[b], self._classes[b], weights, shift) for b in blocks)
            return sum(parts, np.zeros(1))

        # In the order of the rows, whichever is done first.
        sums = sum(self._pool.map(add_up, self._bounds[:-1], self._bounds[1:]), np.zeros(1))
        sums /= len(self._classes)
        errors = sums[-len(bias) :]
        slope = sums[1 : -len(bias)].reshape(weights.shape)
        if not self._prepared:
            slope = self._axes.T @ (slope - np.outer(self._mean, errors))
        value = sums[0] + l2 / 2 * (kernel * kernel).sum()
        return float(value), np.concatenate([(slope + l2 * kernel).ravel(), errors])

    def head(self, flat: np.ndarray) -> Head:
        """Give the head for features as they came.

        A constant more in all biases changes no score: they are given so that they sum to zero.
        """
        kernel, bias = self._unturned(*self._unpack(flat))
        return Head(kernel.astype(np.float32), (bias - bias.mean()).astype(np.float32))

    def _scale(self, flat: np.ndarray, l2: float) -> np.ndarray:
        """Give each parameter's 1 / root of the curvature, the Hessian's diagonal on the sample."""
        kernel, bias = self._unpack(flat)
        scores = softmax(self._sample @ kernel.astype(np.float32) + bias, axis=1)
        spread = (scores * (1 - scores)).astype(np.float32) / np.float32(len(scores))
        of_kernel = (self._sample**2).T @ spread + l2
        curvature = np.concatenate([of_kernel.ravel(), spread.sum(axis=0)])
        scale: np.ndarray = 1 / np.sqrt(np.maximum(curvature, LEAST_CURVATURE))
        return scale

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


def _losses(
    rows: np.ndarray, classes: np.ndarray, kernel: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    """Give one flat float64 array of sums over rows: the log loss, its slopes for kernel and bias.

    Products with `rows` `[n,d]` are in the dtype of `kernel` `[d,c]`, all else is in float64.
    """
    n, width = rows.shape
    piece = n if n % PIECE or PIECE * kernel.size > SMALL_PRODUCT else PIECE
    pieces = rows.reshape(-1, piece, width).astype(kernel.dtype, copy=False)
    logits = (pieces @ kernel).reshape(n, -1).astype(np.float64) + bias
    logits -= logits.max(axis=1, keepdims=True)
    true = np.arange(n), classes
    errors = np.exp(logits)
    totals = errors.sum(axis=1)
    loss = np.log(totals).sum() - logits[true].sum()
    errors /= totals[:, None]
    errors[true] -= 1
    parts = errors.astype(kernel.dtype).reshape(*pieces.shape[:2], -1)
    slope = (parts.transpose(0, 2, 1) @ pieces).sum(axis=0, dtype=np.float64).T
    return np.concatenate([[loss], slope.ravel(), errors.sum(axis=0)])


def _principal_axes(centred: np.ndarray) -> np.ndarray:
    """Give orthonormal axes `[d,r]` along which the features do not correlate.

    r is the smaller of n and d: with fewer examples than features the optimum lies in the span of
    the examples, since anything outside costs a penalty and changes no score.
    """
    n, width = centred.shape
    basis = np.linalg.qr(centred.T)[0] if n < width else None
    turned = centred if basis is None else centred @ basis
    rough = turned.astype(np.float32)
    rotation: np.ndarray = np.linalg.eigh((rough.T @ rough).astype(np.float64))[1]
    return rotation if basis is None else basis @ rotation
