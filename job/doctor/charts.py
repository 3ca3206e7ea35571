"""The doctor's drawings as numbers, before a page lays them out. No TensorFlow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # its module loads TensorFlow
    from job.doctor.findings import Curve, CurvePoint

# What the numbers at an axis begin with; as many on a decade are as many as can be read.
_SERIES = (1, 2, 5)
_MOST_TICKS = 6

_MOST_COMMON = 6


@dataclass(frozen=True, slots=True)
class Tick:
    """A number at an axis; `at` is where, in [0,1] from its beginning."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of the learning curve; `x`, `y` and the interval's `low` and `high` in [0,1]."""

    x: float
    y: float
    low: float
    high: float
    point: CurvePoint


@dataclass(frozen=True, slots=True)
class CurveChart:
    """The learning curve; images on a logarithmic axis, accuracy on a linear one."""

    measured: tuple[Dot, ...]
    expected: tuple[Dot, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class SizeGrid:
    """How many images are so wide and so high, by doublings.

    `counts[i, j]`, int64, are those of height `heights[i]` and width `widths[j]`, which are texts
    such as `256-511`. `common` are the most frequent sizes as `640 x 480`, each with its count.
    """

    widths: tuple[str, ...]
    heights: tuple[str, ...]
    counts: np.ndarray
    common: tuple[tuple[str, int], ...]
    unknown: int


@dataclass(frozen=True, slots=True)
class Bar:
    """So many images between two sizes of file; `share` is of the longest bar, in [0,1]."""

    text: str
    count: int
    share: float


def curve_chart(curve: Curve) -> CurveChart:
    """Give the drawing of a learning curve of at least one measured point."""
    points = (*curve.measured, *curve.expected)
    x_numbers = _numbers(min(p.images for p in points), max(p.images for p in points))
    left, right = math.log(x_numbers[0]), math.log(x_numbers[-1])
    bottom, top, step = _scale(
        min(p.accuracy_ci95[0] for p in points), max(p.accuracy_ci95[1] for p in points)
    )

    def x(images: float) -> float:
        return (math.log(max(images, 1)) - left) / (right - left)

    def y(share: float) -> float:
        return (share - bottom) / (top - bottom)

    def dot(p: CurvePoint) -> Dot:
        low, high = p.accuracy_ci95
        return Dot(x(p.images), y(p.accuracy), y(low), y(high), p)

    if len(x_numbers) > _MOST_TICKS:
        x_numbers = [number for number in x_numbers if f"{number}".startswith("1")]
    shares = [bottom + step * i for i in range(round((top - bottom) / step) + 1)]
    return CurveChart(
        tuple(map(dot, curve.measured)),
        tuple(map(dot, curve.expected)),
        tuple(Tick(x(number), f"{number:,}") for number in x_numbers),
        tuple(Tick(y(share), f"{100 * share:.0f}") for share in shares),
    )


def _numbers(low: int, high: int) -> list[int]:
    """Give 1, 2, 5, 10, 20 ... from the last that is not above `low` to one that is `high`."""
    every = [first * 10**power for power in range(19) for first in _SERIES]
    start = max((i for i, number in enumerate(every) if number <= low), default=0)
    end = next(i for i, number in enumerate(every) if number >= high)
    return every[start : max(end, start + 1) + 1]


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """Give the ends of an axis around two shares, and the step between its numbers."""
    span = high - low
    step = 0.05 if span <= 0.25 else 0.1 if span <= 0.6 else 0.2
    bottom = math.floor(low / step + 1e-9) * step
    top = math.ceil(high / step - 1e-9) * step
    return bottom, max(top, bottom + step), step


def size_grid(sizes: np.ndarray) -> SizeGrid | None:
    """Give how sizes float `[n,2]` (width, height, in pixels) lie; None where none is known."""
    known = sizes[(sizes >= 1).all(axis=1)].astype(np.int64)
    if not len(known):
        return None
    steps = np.floor(np.log2(known)).astype(np.int64)
    low, high = steps.min(axis=0), steps.max(axis=0)
    counts = np.zeros(tuple((high - low + 1)[::-1]), np.int64)
    np.add.at(counts, (steps[:, 1] - low[1], steps[:, 0] - low[0]), 1)
    widths, heights = (
        tuple(f"{2**s}\u2013{2 ** (s + 1) - 1}" if s else "1" for s in range(low[a], high[a] + 1))
        for a in (0, 1)
    )
    unique, times = np.unique(known, axis=0, return_counts=True)
    order = np.argsort(-times, kind="stable")[:_MOST_COMMON]
    common = tuple((f"{unique[i, 0]} \u00d7 {unique[i, 1]}", int(times[i])) for i in order)
    return SizeGrid(widths, heights, counts, common, len(sizes) - len(known))


def byte_bars(file_bytes: np.ndarray) -> tuple[Bar, ...]:
    """Give how sizes of files int `[n]`, in bytes, lie: three bars a decade, without gaps."""
    if not len(file_bytes):
        return ()
    edges = np.array(_numbers(int(file_bytes.min()), int(file_bytes.max()) + 1))
    places = np.searchsorted(edges[1:-1], file_bytes, side="right")
    counts = np.bincount(places, minlength=len(edges) - 1)
    return tuple(
        Bar(f"{bytes_text(low)} to {bytes_text(high)}", int(count), count / counts.max())
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )


def bytes_text(count: float) -> str:
    """Give bytes with two digits at least: `812 B`, `9.6 kB`, `20 kB`, `3 MB`."""
    for power, unit in enumerate(("B", "kB", "MB", "GB")):
        number = count / 1000**power
        if number < 999.5 or unit == "GB":
            break
    text = f"{number:.1f}".removesuffix(".0") if number < 9.95 else f"{number:.0f}"
    return f"{text}\u00a0{unit}"
