"""Embeddings to a head: multinomial logistic regression, run to its optimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from job.head import Head

# From a penalty that keeps the head near the prior to one that fits every training image.
L2_PATH = tuple(10.0 ** (-step / 2) for step in range(0, 15))

# The path ends once the validation loss has not improved for so many penalties.
PATIENCE = 3

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
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    classes: int,
    *,
    l2: float | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Fit:
    """Fit a head to (features float32 `[n,d]`, class indices int `[n]`) pairs.

    Minimises mean log loss + l2/2 * |kernel|^2, the bias being free; scikit-learn's
    LogisticRegression has the same optimum at C = 1 / (n * l2). Without an `l2`, `L2_PATH` is
    followed from the strongest penalty down, each solution being the start of the next, and the
    penalty with the least validation log loss wins. `advance` is told of every penalty solved.
    """
    problem = _Problem(*train, classes)
    best = Fit(problem.head(np.zeros(problem.size)), math.inf, math.inf, math.inf, math.inf, 0)
    start, iterations, worse = np.zeros(problem.size), 0, 0
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
    """The objective over centred features.

    Centring moves only the bias, which carries no penalty, so the optimum stays where it is while
    L-BFGS needs far fewer iterations: embeddings after a ReLU share a large mean.
    """

    def __init__(self, features: np.ndarray, classes: np.ndarray, count: int) -> None:
        self._mean = features.mean(axis=0, dtype=np.float64)
        self._features = features - self._mean
        self._targets = np.eye(count)[classes]
        self._shape = (features.shape[1], count)
        self.size = (features.shape[1] + 1) * count

    def solve(self, start: np.ndarray, l2: float) -> Any:
        """Give scipy's result of L-BFGS-B from a flat start."""
        options = {"maxiter": MAX_ITERATIONS, "gtol": GRADIENT_TOLERANCE, "ftol": 0, "maxcor": 20}
        return minimize(
            self.objective, start, args=(l2,), jac=True, method="L-BFGS-B", options=options
        )

    def objective(self, flat: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
        """Give the value and its gradient, float64, for kernel and bias in one flat vector."""
        kernel, bias = self._unpack(flat)
        log_p = log_softmax(self._features @ kernel + bias, axis=1)
        value = -(self._targets * log_p).sum() / len(log_p) + l2 / 2 * (kernel * kernel).sum()
        error = (np.exp(log_p) - self._targets) / len(log_p)
        slope = self._features.T @ error + l2 * kernel
        return value, np.concatenate([slope.ravel(), error.sum(axis=0)])

    def head(self, flat: np.ndarray) -> Head:
        """Give the head for features that are not centred."""
        kernel, bias = self._unpack(flat)
        return Head(kernel.astype(np.float32), (bias - self._mean @ kernel).astype(np.float32))

    def _unpack(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width = self._shape[0] * self._shape[1]
        return flat[:width].reshape(self._shape), flat[width:]
