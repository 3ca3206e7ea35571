"""Embeddings to a head: logistic regression, run to its optimum."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits

from job.checkpoints import State
from job.fit import Fit, Pair, Session
from job.head import Head
from job.objective import Problem, Solution

# From a penalty that keeps the head near the prior to one that fits every training image.
L2_PATH = tuple(10.0 ** (-step / 2) for step in range(0, 15))

# The path ends once the validation loss has not improved for so many penalties.
PATIENCE = 2

# Features of so many elements (26,000 embeddings of 1,280) are prepared: copied, and turned to
# their principal axes. Beyond, they stay where they are and the head is turned instead.
PREPARED_ELEMENTS = 2**25

# How far a parameter may be from the optimum, told from its gradient and the least curvature. Along
# the path, in float32, PATH_ERROR is enough to compare validation losses; penalties that come less
# than DOUBT nats behind the best are compared by their optima.
EXACT_ERROR = 2e-7
PATH_ERROR = 3e-3
DOUBT = 1e-3


def fit(
    train: Pair,
    validation: Pair,
    classes: int,
    *,
    activation: str = "softmax",
    l2: float | None = None,
    balanced: bool = False,
    session: Session | None = None,
    prepared_elements: int = PREPARED_ELEMENTS,
) -> Fit:
    """Fit a head to `train` and choose its penalty on `validation`.

    Minimises mean log loss + l2/2 * |kernel|^2, the bias being free; scikit-learn's
    LogisticRegression has the same optimum at C = 1 / (n * l2), and so has its OneVsRestClassifier
    where the `activation` is the sigmoid. Without an `l2`, `L2_PATH` is followed from the strongest
    penalty down, each solution being the start of the next, and the penalty with the least
    validation log loss wins. With `balanced` every class weighs the same in both losses, as by
    scikit-learn's `class_weight="balanced"`; with the sigmoid a label's classes are the images with
    it and those without. The session is told of every penalty solved, and keeps what was solved, so
    that a later call goes on from there.

    Features may be a read-only `np.memmap`: above `prepared_elements` elements no copy is made of
    them, and memory does not grow with n beyond a few numbers a row.
    """
    penalties = L2_PATH if l2 is None else (l2,)
    # One BLAS thread: its threads spin while they wait for each other, so that a neighbour on the
    # node makes them thirty times slower than one; and the sums do not depend on their number.
    cores = len(os.sched_getaffinity(0))
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores, "fit") as pool:
        problem = Problem(
            train, classes, prepared_elements, pool, activation=activation, balanced=balanced
        )
        path = _Path(problem, validation, balanced, session or Session())
        return path.follow(penalties)


@dataclass(slots=True)
class _Path:
    """What was solved so far: `rough` along the path, then `exact` for the best of those."""

    problem: Problem
    validation: Pair
    balanced: bool
    session: Session
    rough: list[Solution] = field(default_factory=list)
    exact: list[Solution] = field(default_factory=list)

    def follow(self, penalties: Sequence[float]) -> Fit:
        """Solve one penalty after the other, and give the best."""
        checkpoints = self.session.checkpoints
        if (saved := checkpoints.load("lbfgs")) is not None:
            self.rough, self.exact = _solutions(saved, "rough"), _solutions(saved, "exact")
            self.session.advance(len(self.rough))
        losses = [self._validation_loss(solution) for solution in self.rough]
        for penalty in penalties[len(losses) :]:
            if losses and len(losses) - 1 - int(np.argmin(losses)) >= PATIENCE:
                break
            start = self.rough[-1].flat if self.rough else self.problem.start
            self.rough.append(self.problem.solve(start, penalty, np.float32, PATH_ERROR))
            losses.append(self._validation_loss(self.rough[-1]))
            self.session.advance(1)
            self.session.observe("train", len(losses), loss=self.rough[-1].loss, l2=penalty)
            self.session.observe("validation", len(losses), loss=losses[-1])
            checkpoints.reached("lbfgs", self._state)
        close = [
            s for s, loss in zip(self.rough, losses, strict=True) if loss <= min(losses) + DOUBT
        ]
        for solution in close[len(self.exact) :]:
            self.exact.append(
                self.problem.solve(solution.flat, solution.l2, np.float64, EXACT_ERROR)
            )
            checkpoints.reached("lbfgs", self._state)
        iterations = sum(s.iterations for s in self.rough + self.exact)
        return min(
            (self._fit(solution, iterations) for solution in self.exact),
            key=lambda found: found.validation_loss,
        )

    def _fit(self, solution: Solution, iterations: int) -> Fit:
        head, loss = self.problem.head(solution.flat), self._validation_loss(solution)
        return Fit(head, solution.l2, solution.loss, loss, solution.gradient_norm, iterations)

    def _validation_loss(self, solution: Solution) -> float:
        features, classes = self.validation
        head: Head = self.problem.head(solution.flat)
        return head.log_loss(features, classes, balanced=self.balanced)

    def _state(self) -> State:
        arrays = {}
        for name, solutions in (("rough", self.rough), ("exact", self.exact)):
            arrays[name] = np.array([s.flat for s in solutions], np.float64)
            arrays[f"{name}_figures"] = np.array(
                [(s.l2, s.loss, s.gradient_norm, s.iterations) for s in solutions], np.float64
            )
        return arrays


def _solutions(state: State, name: str) -> list[Solution]:
    return [
        Solution(flat, float(l2), float(loss), float(norm), int(iterations))
        for flat, (l2, loss, norm, iterations) in zip(
            state[name], state[f"{name}_figures"], strict=True
        )
    ]
