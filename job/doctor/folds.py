"""What a head says of images that it has not seen, every image in its turn: cross-validation.

Imports no TensorFlow.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from job.objective import Problem

FOLDS = 5

# The penalty per training image: l2 = PENALTY / n. A fixed prior on the kernel, in the units of
# `reduce.reduced`: on the samples 0.05 to 0.3 are alike in log loss, and with many images no
# penalty of this size is felt. It is not chosen anew on each data set, which takes ten times as
# long and follows the wrong labels that are looked for.
PENALTY = 0.15

# How near the optimum is enough (see `job.lbfgs.PATH_ERROR`): probabilities to three digits.
ERROR = 3e-3

# Up to so many elements the features are prepared by `Problem`, which is faster: all that there is.
PREPARED_ELEMENTS = 2**30


def cross_validate(
    features: np.ndarray, classes: np.ndarray, groups: np.ndarray, count: int, *, seed: int = 0
) -> np.ndarray:
    """Give probabilities float32 `[n,count]`, each row by a head that was fitted without it.

    `features` float32 `[n,w]` are those of `reduce.reduced`, `classes` int64 `[n]` below `count`,
    `groups` int64 `[n]`: rows of one number are always in the same fold. The head is the job's own:
    L2-penalised multinomial logistic regression at its optimum. Each row sums to 1; a label that
    no training image of a fold has gets 0. With fewer than two groups there is nothing to fit
    without an image of its own group, and every label is as likely as it is common.
    """
    fold_of = deal(classes, groups, FOLDS, seed=seed)
    given = np.tile(shares(classes, count), (len(classes), 1))
    for fold in range(FOLDS):
        test = fold_of == fold
        if test.any() and not test.all():
            train = ~test
            given[test] = fit_and_score(features[train], classes[train], features[test], count)
    return given


def shares(classes: np.ndarray, count: int) -> np.ndarray:
    """Give float32 `[count]`, the share that each label has of `classes` int `[n]`; n may be 0."""
    found = np.bincount(classes, minlength=count) / max(len(classes), 1)
    return found.astype(np.float32)


def fit_and_score(
    train: np.ndarray, classes: np.ndarray, test: np.ndarray, count: int
) -> np.ndarray:
    """Fit a head to `train` `[m,w]` with `classes` `[m]`, m at least 1, and apply it to `test`.

    Gives probabilities float32 `[len(test),count]`, 0 for labels that `classes` does not have.
    """
    present, codes = np.unique(classes, return_inverse=True)
    given = np.zeros((len(test), count), np.float32)
    if len(present) == 1:
        given[:, present] = 1
        return given
    cores = len(os.sched_getaffinity(0))
    # One BLAS thread, for the reasons that `job.lbfgs.fit` gives.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores, "folds") as pool:
        problem = Problem((train, codes), len(present), PREPARED_ELEMENTS, pool)
        found = problem.solve(problem.start, PENALTY / len(train), np.float32, ERROR)
    given[:, present] = problem.head(found.flat).probabilities(test)
    return given


def deal(classes: np.ndarray, groups: np.ndarray, hands: int, *, seed: int = 0) -> np.ndarray:
    """Give int64 `[n]`: which of so many hands each row is dealt to, groups being kept whole.

    Each label is shared out evenly: its groups go, the largest first and alike ones in random
    order, to the hand that has the fewest rows of it. A group of several labels counts as one of
    its commonest.
    """
    if not len(classes):
        return np.zeros(0, np.int64)
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    label_of = _commonest(classes, group_of)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    order = shuffled[np.lexsort((-sizes[shuffled], label_of[shuffled]))]
    hand_of = np.zeros(len(sizes), np.int64)
    totals = [0] * hands
    label, held = -1, totals
    for group in order.tolist():
        if label_of[group] != label:
            label, held = int(label_of[group]), [0] * hands
        hand = min(range(hands), key=lambda h: (held[h], totals[h]))
        hand_of[group] = hand
        held[hand] += int(sizes[group])
        totals[hand] += int(sizes[group])
    dealt: np.ndarray = hand_of[group_of]
    return dealt


def _commonest(classes: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """Give the commonest class of each group, the smallest of equally common ones."""
    pairs, counts = np.unique(np.stack([group_of, classes]), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], -counts, pairs[0]))
    first = np.unique(pairs[0][order], return_index=True)[1]
    commonest: np.ndarray = pairs[1][order][first]
    return commonest
