"""What the report says, before it is laid out as a page, a plot or a table."""

from __future__ import annotations

import math
import string
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

from job.evaluate import LabelScore

# Controls, line and paragraph separators, surrogates, and what Unicode has not given a meaning.
_UNSEEN = {"Cc", "Zl", "Zp", "Cs", "Cn", "Co"}

# Characters that turn the order of what follows, so that `gpj.exe` shows as `exe.jpg`.
_TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")

_MARKUP = {ord(c): f"\\{c}" for c in string.punctuation if c not in "-,"}


@dataclass(frozen=True, slots=True)
class Confusion:
    """`count` examples of class index `true` were taken for class index `predicted`."""

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """A confusion matrix, cut to the labels with the most mistakes.

    `counts[i, j]`, int64, is how many examples of `labels[i]` were taken for `labels[j]`. Where
    labels were left out, the last row and column hold the sums over all `others` of them.
    """

    labels: tuple[str, ...]
    counts: np.ndarray
    others: int

    @property
    def shares(self) -> np.ndarray:
        """The counts over the sum of their row, float64 in [0,1]; 0 for an empty row."""
        return np.asarray(self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1))


def shown(text: str) -> str:
    r"""Give text that is safe to show: what cannot be seen, or turns the text, as an escape.

    A newline becomes `\n`, a lone surrogate `\udcff`, a right-to-left override `\u202e`. What is
    left can be written as UTF-8 and into XML.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if _is_unseen(c) else c for c in text)


def _is_unseen(character: str) -> bool:
    return character in _TURNING or unicodedata.category(character) in _UNSEEN


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def shortened(text: str, most: int) -> str:
    """Give `shown` text of at most `most` characters: the middle makes room for an ellipsis."""
    text = shown(text)
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def markdown_text(text: str) -> str:
    """Give `shown` text with all escaped that Markdown could take for markup.

    CommonMark 0.31, section 2.4.
    """
    return shown(text).translate(_MARKUP)


def percent(share: float) -> str:
    """Give 0.933 as `93.3 %`, with a space that does not break."""
    return f"{100 * share:.1f}\u00a0%"


def points(difference: float) -> str:
    """Give a difference of shares in percentage points with its sign: 0.017 as `+1.7`."""
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}".replace("-", "\u2212") if rounded else "0.0"


def p_value(p: float) -> str:
    """Give `p = 0.031`, or `p < 0.001` where three digits say no more."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def f1(score: LabelScore) -> float:
    """Give the harmonic mean of precision and recall, in [0,1]; 0 where both are."""
    return 2 * score.precision * score.recall / max(score.precision + score.recall, 1e-12)


def weakest_first(scores: tuple[LabelScore, ...]) -> list[LabelScore]:
    """Sort labels by F1, the least first; those without test images come last."""
    return sorted(scores, key=lambda score: (score.count == 0, round(f1(score), 9)))


def mistakes(scores: np.ndarray, classes: np.ndarray) -> list[int]:
    """Give the rows of `scores` `[n,c]` that are not largest at the true class, the surest first.

    Rows with the same confidence keep their order.
    """
    wrong = np.flatnonzero(scores.argmax(axis=1) != classes)
    order = np.argsort(-scores[wrong].max(axis=1), kind="stable")
    return [int(row) for row in wrong[order]]


def confusions(confusion: np.ndarray) -> list[Confusion]:
    """Give the pairs of classes that were confused, the most frequent first."""
    pairs = zip(*np.nonzero(confusion), strict=True)
    found = [Confusion(int(i), int(j), int(confusion[i, j])) for i, j in pairs if i != j]
    return sorted(found, key=lambda pair: -pair.count)


def matrix(confusion: np.ndarray, labels: tuple[str, ...], most: int) -> Matrix:
    """Cut a confusion matrix int `[c,c]` to the `most` labels with the most mistakes."""
    if len(labels) <= most:
        return Matrix(labels, confusion, 0)
    involved = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * confusion.diagonal()
    kept = np.sort(np.argsort(-involved, kind="stable")[:most])
    group = np.full(len(labels), most)
    group[kept] = np.arange(most)
    counts = np.zeros((most + 1, most + 1), np.int64)
    np.add.at(counts, (group[:, None], group[None, :]), confusion)
    others = len(labels) - most
    return Matrix((*(labels[i] for i in kept), f"{others} others"), counts, others)


def plain(value: Any) -> Any:
    """Give a value as JSON has it: lists for tuples, null for what is no number, 6 digits.

    NumPy's floats and infinity are among what JSON does not know; text stays as it is.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
