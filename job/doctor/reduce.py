"""Embeddings as the doctor compares them: on one scale, and of few dimensions.

Imports no TensorFlow.
"""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

from job.guard import beat

# Of 1,280 features of the samples, 256 axes lose nothing that a linear head would tell labels by.
WIDTH = 256

# Rows that the axes are measured on. They steer: a few thousand rows a dimension change nothing.
SAMPLE = 20_000

# Rows that are worked on at once: 40 MiB of 1,280 features as float64.
ROWS = 4096


def reduced(features: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """Give float32 `[n,w]`, w being at most `width`, `d` and `n`, for embeddings float32 `[n,d]`.

    Each feature is replaced by its signed root and each row brought to length 1 (the power
    normalisation of Perronnin, Sánchez and Mensink 2010, "Improving the Fisher Kernel for
    Large-Scale Image Classification"): a few large activations then outweigh the rest no more. Then
    the principal components are taken, centred, and scaled so that the mean squared length of a row
    is 1, whatever the backbone. What is not finite counts as 0. Rows that are all the
    same become zeros.

    `features` may be a memmap or a part of wider rows; they are read in blocks.
    """
    # One BLAS thread, for the reason that `job.lbfgs.fit` gives: on a busy machine more of them
    # made this sixteen times slower.
    with threadpool_limits(1, "blas"):
        mean, axes = _axes(features, width)
        given = np.empty((len(features), axes.shape[1]), np.float32)
        for start in range(0, len(given), ROWS):
            beat()
            rows = _normalised(features[start : start + ROWS])
            given[start : start + ROWS] = (rows - mean) @ axes
    length = np.sqrt((given.astype(np.float64) ** 2).sum() / max(len(given), 1))
    # float32 has about 1e-7 of noise in rows of length 1: below that nothing differs.
    return given / np.float32(length) if length > 1e-5 else np.zeros_like(given)


def _axes(features: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the mean `[d]` and the principal axes `[d,w]` of the normalised rows, both float32."""
    n, wide = features.shape
    step = max(1, -(-n // SAMPLE))
    total, products, seen = np.zeros(wide), np.zeros((wide, wide), np.float32), 0
    for start in range(0, n, ROWS * step):
        beat()
        rows = _normalised(features[start : start + ROWS * step : step])
        total += rows.sum(axis=0, dtype=np.float64)
        products += rows.T @ rows
        seen += len(rows)
    mean = total / max(seen, 1)
    spread = products.astype(np.float64) - seen * np.outer(mean, mean)
    axes = np.linalg.eigh(spread)[1][:, ::-1][:, : min(width, wide, n)]
    return mean.astype(np.float32), axes.astype(np.float32)


def _normalised(features: np.ndarray) -> np.ndarray:
    rows = np.nan_to_num(features.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    rows = np.sign(rows) * np.sqrt(np.abs(rows))
    # The squares of the roots are the features: a length of 0 is a row of zeros.
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    normalised: np.ndarray = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return normalised
