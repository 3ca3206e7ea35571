"""Embeddings to a head: multinomial logistic regression, run to its optimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from job.head import Head

# From a penalty that keeps the head near the prior to one that fits every training image.
L2_PATH = tuple(10.0 ** (-step / 2) for step in range(0, 15))

# The path ends once the validation loss has not improved for so many penalties.
PATIENCE = 3

# Features float32 `[n,d]` and class indices int `[n]`.
Pair = tuple[np.ndarray, np.ndarray]

GRADIENT_TOLERANCE = 1e-6
MAX_ITERATIONS = 2000


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
) -> Fit:
    """Fit a head to `train` and choose its penalty on `validation`.

    Minimises mean log loss + l2/2 * |kernel|^2, the bias being free; scikit-learn's
    LogisticRegression has the same optimum at C = 1 / (n * l2). Without an `l2`, `L2_PATH` is
    followed from the strongest penalty down, each solution being the start of the next, and the
    penalty with the least validation log loss wins. `advance` is told of every penalty solved.
    """
    # One BLAS thread: its threads spin while they wait for each other, so that a neighbour on the
    # node makes them thirty times slower than one; and the sums do not depend on their number.
    with threadpool_limits(1, "blas"):
        return _follow_path(_Problem(*train, classes), validation, l2, advance)


def _follow_path(
    problem: _Problem, validation: Pair, l2: float | None, advance: Callable[[int], None]
) -> Fit:
    best = Fit(problem.head(problem.start), math.inf, math.inf, math.inf, math.inf, 0)
    start, iterations, worse = problem.start, 0, 0
    for penalty in L2_PATH if l2 is None else (l2,):
        solution = problem.solve(start, penalty)
        start, iterations = solution.x, iterations + int(solution.nit)
        head = problem.head(solution.x)
        candidate = Fit(
            head=head,
            l2=penalty,
            loss=float(solution.fun),
            validation_loss=head.log_loss(*validation),
            gradient_norm=float(np.abs(solution.jac).max()),
            iterations=iterations,
        )
        advance(1)
        if candidate.validation_loss < best.validation_loss:
            best, worse = candidate, 0
        else:
            worse += 1
        if worse == PATIENCE:
            break
    return best


class _Problem:
    """The objective over centred features, in coordinates in which L-BFGS has an easy time.

    Centring moves only the bias, which carries no penalty. A rotation to the principal axes leaves
    the kernel's norm alone. Scaling each axis by the root of its curvature then makes the Hessian
    nearly a multiple of the identity. None of the three moves the optimum; together they take a
    path over embeddings from thousands of iterations to a few hundred.
    """

    def __init__(self, features: np.ndarray, classes: np.ndarray, count: int) -> None:
        self._mean = features.mean(axis=0, dtype=np.float64)
        self._axes, self._features, variances = _principal_axes(features - self._mean)
        # The curvature of the log loss along an axis where all classes are equally likely.
        self._curvature = variances * (count - 1) / count**2
        self._targets = np.eye(count)[classes]
        self._shape = (self._features.shape[1], count)
        self.start = np.zeros((self._shape[0] + 1) * count)

    def solve(self, start: np.ndarray, l2: float) -> Any:
        """Give scipy's result of L-BFGS-B; `start` and the result's `x` are kernel and bias."""
        scale = np.ones((self._shape[0] + 1, self._shape[1]))
        scale[:-1] = 1 / np.sqrt(self._curvature + l2)[:, None]
        flat = scale.ravel()

        def objective(scaled: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.objective(scaled * flat, l2)
            return value, gradient * flat

        options = {"maxiter": MAX_ITERATIONS, "gtol": GRADIENT_TOLERANCE, "ftol": 0, "maxcor": 20}
        solution = minimize(objective, start / flat, jac=True, method="L-BFGS-B", options=options)
        solution.x, solution.jac = solution.x * flat, solution.jac / flat
        return solution

    def objective(self, flat: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
        """Give the value and its gradient, float64, for kernel and bias in one flat vector."""
        kernel, bias = self._unpack(flat)
        log_p = log_softmax(self._features @ kernel + bias, axis=1)
        value = -(self._targets * log_p).sum() / len(log_p) + l2 / 2 * (kernel * kernel).sum()
        error = (np.exp(log_p) - self._targets) / len(log_p)
        slope = self._features.T @ error + l2 * kernel
        return value, np.concatenate([slope.ravel(), error.sum(axis=0)])

    def head(self, flat: np.ndarray) -> Head:
        """Give the head for features as they came: turned back, not centred."""
        kernel, bias = self._unpack(flat)
        kernel = self._axes @ kernel
        return Head(kernel.astype(np.float32), (bias - self._mean @ kernel).astype(np.float32))

    def _unpack(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width = self._shape[0] * self._shape[1]
        return flat[:width].reshape(self._shape), flat[width:]


def _principal_axes(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give orthonormal axes `[d,r]`, the features along them `[n,r]` and their variances `[r]`.

    r is the smaller of n and d: with fewer examples than features the optimum lies in the span of
    the examples, since anything outside costs a penalty and changes no score.
    """
    n, width = centred.shape
    if n < width:
        axes = np.linalg.qr(centred.T)[0]
        turned = centred @ axes
        variances, rotation = np.linalg.eigh(turned.T @ turned / n)
        axes, turned = axes @ rotation, turned @ rotation
    else:
        variances, axes = np.linalg.eigh(centred.T @ centred / n)
        turned = centred @ axes
    return axes, turned, np.maximum(variances, 0.0)
