"""Near duplicates: pictures that show the same, encoded again, scaled, cropped or mirrored.

An embedding says what a picture is of, a fingerprint how light and colour lie in it. Two drawings
of one kind share the first, and any two objects on white the second; copies share both.

Free of TensorFlow, which takes seconds to import.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_limits

from job.neighbours import ZEROS, nearest
from job.traits import COEFFICIENTS, cropped, mirrored

# Each image is compared with so many others. A copy is nearly always the nearest one of all; more
# are asked for so that many copies of one picture are joined in chains.
NEIGHBOURS = 20

# What embedding and fingerprint may differ by: (1 - similarity) * (1 - agreement). Either may be
# worse where the other is better, as for crops, whose embedding moves and whose fingerprint is
# estimated. Of 348 crops of the samples by 3 % on every side, at 0.002, 0.003 and 0.004 332, 341
# and 342 are found, with 2, 6 and 20 pairs that show different things (benchmarks/copies.py
# --seeds 2 --copies 584 --swaps 0). All 820 copies of the whole picture are found at each.
DIFFERENCE = 0.003

# Where the embeddings have less in common, no fingerprint makes up for it: the least of a copy of
# a sample is 0.58, a thumbnail of 0.4 times its width.
LEAST_SIMILARITY = 0.5

# An agreement of whole pictures below this is no copy: those encoded again or scaled have 0.99 or
# more, road signs of one shape with another symbol up to 0.98. At 0.95 there are 12 such pairs
# instead of 6; at 0.99 331 of the crops are found.
WHOLE_AGREEMENT = 0.98

# Below it, the pictures must agree so much better when one is taken to be a part of the other. At 0
# there are 12 such pairs; at 0.01 there are 2, and 337 of the crops are found.
CROP_GAIN = 0.005

# Shares of a side that are cut off at either end, for crops to be recognised: 3 % on both, half of
# that on both, and 3 % at one end. What is in between is near enough to one of these.
_SPANS = ((0.0, 1.0), (0.03, 0.97), (0.015, 0.985), (0.03, 1.0), (0.0, 0.97))
_CROPS = tuple(product(_SPANS, _SPANS))[1:]

# Coefficients count less the higher their frequency, by this width of a Gaussian: the high ones of
# a crop are the least surely estimated.
_WIDTH = 4.0

# Detail is the root mean square, of 1, of what is finer than a slope from side to side. The less of
# it two pictures have, the less they may differ, by its square below FAINT: without that, blurred
# backgrounds and skies make chains (36 of 396 patches of two photographs, with it 5). With less
# than BLANK the fingerprint is noise.
FAINT = 0.05
BLANK = 0.005

# Pairs that are compared at once, a few MB.
_BLOCK = 8192


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Pairs of rows, int64 `[p]`, `first` the lower one, in the order of `first` and `second`.

    `similarity`, float32 `[p]` in [-1,1], is of their embeddings, `mirrored`, bool `[p]`, whether
    one shows the other with left and right exchanged. A symmetric picture may be told as either.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray
    mirrored: np.ndarray

    @property
    def edges(self) -> np.ndarray:
        """The pairs as int64 `[p,2]`."""
        return np.stack([self.first, self.second], axis=1)


def near_duplicates(features: np.ndarray, fingerprints: np.ndarray) -> NearPairs:
    """Find the near duplicates among n images: embeddings `[n,d]`, fingerprints float32 `[n,64]`.

    A pair is one if it is among the nearest by its embeddings and its fingerprints agree, whole or
    one of them cropped by a few per cent, in either orientation. What is common to all pictures,
    their mean, says nothing and is taken off first. Blank pictures are nobody's duplicates: those
    whose files are the same are for their digests to tell.

    More images change the mean, so that a pair on the edge may come or go. Of many more copies than
    `NEIGHBOURS` of one picture not all pairs are named, and they may end in more than one group.
    `features` may be a memory map. Memory and determinism are those of `nearest`.
    """
    first, second, similarity = _candidates(features, fingerprints)
    mean = fingerprints.sum(axis=0, dtype=np.float64) / (len(fingerprints) + ZEROS)
    # The same for a picture and its mirror image, so that it does not matter which came in.
    mean = ((mean + mirrored(mean)) / 2).astype(np.float32)
    near = np.zeros(len(first), bool)
    flipped = np.zeros(len(first), bool)
    with threadpool_limits(1, "blas"):  # as in job.lbfgs, and these products are small
        for start in range(0, len(first), _BLOCK):
            block = slice(start, start + _BLOCK)
            pair = fingerprints[first[block]], fingerprints[second[block]]
            near[block], flipped[block] = _confirmed(*pair, similarity[block], mean)
    return NearPairs(first[near], second[near], similarity[near], flipped[near])


def components(n: int, edges: np.ndarray) -> np.ndarray:
    """Give each of n rows the number of its group, int64 `[n]`: those that a chain of edges joins.

    `edges` are pairs of rows, int64 `[p,2]`. Groups are numbered from 0 in the order of their first
    rows.
    """
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    _, starts, groups = np.unique(labels, return_index=True, return_inverse=True)
    numbers: np.ndarray = np.argsort(np.argsort(starts))[groups].astype(np.int64)
    return numbers


def _candidates(
    features: np.ndarray, fingerprints: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give the pairs of pictures with something in them that are similar, each once, in order."""
    indices, similarities = nearest(features, NEIGHBOURS)
    shown = _detail(fingerprints) >= BLANK
    similar = (similarities >= LEAST_SIMILARITY) & shown[:, np.newaxis] & shown[indices]
    row, column = np.nonzero(similar)
    other = indices[row, column]
    keys = np.minimum(row, other) * len(features) + np.maximum(row, other)
    keys, once = np.unique(keys, return_index=True)
    return keys // len(features), keys % len(features), similarities[row, column][once]


def _detail(fingerprints: np.ndarray) -> np.ndarray:
    """Give the root mean square of what is finer than a slope, float32 `[n]`."""
    fine = COEFFICIENTS[:, 1:].sum(axis=1) >= 2
    detail: np.ndarray = np.linalg.norm(fingerprints[:, fine], axis=1)
    return detail


def _confirmed(
    first: np.ndarray, second: np.ndarray, similarity: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tell which pairs of fingerprints `[p,64]` are copies, and which match mirrored: bool `[p]`.

    The agreement of a and b is 2ab / (aa + bb), weighted: 1 if they are equal, and less than their
    cosine where one has less contrast.
    """

    def agreement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = (a - mean) * _WEIGHTS, (b - mean) * _WEIGHTS
        even = (a * a).sum(axis=1) + (b * b).sum(axis=1)
        shared: np.ndarray = 2 * (a * b).sum(axis=1) / np.maximum(even, np.finfo(np.float32).tiny)
        return shared

    turned = mirrored(second)
    straight, flipped = agreement(first, second), agreement(first, turned)
    whole = np.maximum(straight, flipped)
    for rows, columns in _CROPS:
        part = cropped(first, rows, columns)
        for best, other in ((straight, second), (flipped, turned)):
            np.maximum(best, agreement(part, other), out=best)
            np.maximum(best, agreement(first, cropped(other, rows, columns)), out=best)
    best = np.maximum(straight, flipped)
    sure = (whole >= WHOLE_AGREEMENT) | (best > whole + CROP_GAIN)
    clear = np.minimum(np.minimum(_detail(first), _detail(second)) / FAINT, 1)
    close = (1 - similarity) * (1 - best) < DIFFERENCE * clear**2
    return sure & close, flipped > straight


def _weights() -> np.ndarray:
    """Give what each coefficient counts, float32 `[64]`; the mean brightness counts nothing."""
    frequency = (COEFFICIENTS[:, 1:] ** 2).sum(axis=1)
    weights = np.exp(-frequency / (2 * _WIDTH**2))
    weights[0] = 0
    return np.asarray(weights, np.float32)


_WEIGHTS = _weights()
