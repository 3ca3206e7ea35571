"""The report's plots as PNG files, for documents that cannot hold a page, and for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from job.calibrate import Bin, bins_error
from job.evaluate import wilson
from job.figures import Matrix, matrix, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From the palette of Okabe and Ito, which colour-blind people can tell apart.
RIGHT, WRONG, INK = (0.0, 0.447, 0.698), (0.835, 0.369, 0.0), "#333333"

# With more labels the file would be too large for many viewers.
MOST_LABELS = 100

# Each is laid out by itself, so that ten thousand take eight seconds.
MOST_NUMBERS = 1000

_DPI = 110


def plot_confusion(path: Path | BinaryIO, confusion: np.ndarray, labels: tuple[str, ...]) -> None:
    """Write a confusion matrix, int `[c,c]`, a cell coloured by its share of the true label.

    Of more than MOST_LABELS labels those with the most mistakes are shown, the others summed up.
    At most MOST_NUMBERS counts are written into their cells, the largest.
    """
    cut = matrix(confusion, labels, MOST_LABELS)
    count = len(cut.labels)
    cell = 0.42 if count <= 12 else 0.26 if count <= 40 else 0.21
    size = 9 if count <= 12 else 7.5
    names = [_drawable(label, i) for i, label in enumerate(cut.labels)]
    # Room for the names, known beforehand: to find it out by drawing takes as long as to draw.
    side, margin, rest = count * cell, _width(names, size) + 0.4, 0.1
    whole = margin + side + rest
    figure = _figure(whole, whole)
    axes = figure.add_axes((margin / whole, rest / whole, side / whole, side / whole))
    axes.imshow(_colours(cut), interpolation="nearest")
    axes.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("taken for", fontsize=10)
    axes.set_ylabel("true label", fontsize=10)
    between = np.arange(count - 1) + 0.5
    axes.hlines(between, -0.5, count - 0.5, color="#e3e3e3", linewidth=0.5)
    axes.vlines(between, -0.5, count - 0.5, color="#e3e3e3", linewidth=0.5)
    axes.tick_params(length=0)
    _write_counts(axes, cut, size - 1)
    figure.savefig(path, format="png", dpi=_DPI)


def _write_counts(axes: Axes, cut: Matrix, size: float) -> None:
    # No count is written where another one as large is left out.
    falling = np.sort(cut.counts, axis=None)[::-1]
    least = falling[MOST_NUMBERS] if len(falling) > MOST_NUMBERS else 0
    shares = cut.shares
    for i, j in zip(*np.nonzero(cut.counts > least), strict=True):
        colour = "white" if shares[i, j] > 0.5 else INK
        text = f"{cut.counts[i, j]}"
        axes.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)


def plot_reliability(
    path: Path,
    before: tuple[Bin, ...],
    after: tuple[Bin, ...],
    temperature: float,
    *,
    share: str = "accuracy",
    sureness: str = "confidence: the largest score",
    counted: str = "images",
) -> None:
    """Write accuracy against confidence before and after temperature scaling.

    `share` is what the share of a bin is called, `sureness` what its examples were sorted by and
    `counted` what they are.
    """
    figure = _figure(9.0, 5.6)
    titles = ("before temperature scaling", f"after, with T = {temperature:.2f}")
    grid = figure.add_gridspec(
        2, 2, height_ratios=(4, 1), hspace=0.08, wspace=0.2, top=0.9, bottom=0.18,
        left=0.09, right=0.98,
    )  # fmt: skip
    for column, (title, bins) in enumerate(zip(titles, (before, after), strict=True)):
        error = bins_error(bins)
        axes = figure.add_subplot(grid[0, column])
        axes.set_title(f"{title}\ncalibration error {100 * error:.1f} %", fontsize=11)
        _draw_reliability(axes, bins, share, counted)
        counts = figure.add_subplot(grid[1, column], sharex=axes)
        counts.bar(
            [b.low for b in bins],
            [b.count for b in bins],
            1 / 15,
            align="edge",
            color="#9a9a9a",
            edgecolor="white",
        )
        counts.set_xlabel(sureness)
        counts.set_ylabel(counted)
    figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=_DPI)


def _draw_reliability(axes: Axes, bins: tuple[Bin, ...], share: str, counted: str) -> None:
    shares = np.array([b.right / b.count for b in bins])
    bounds = np.array([wilson(b.right, b.count) for b in bins])
    sizes = np.array([b.count for b in bins]) / max(b.count for b in bins)
    confidence = [b.confidence for b in bins]
    axes.plot([0, 1], [0, 1], linestyle="--", color="#777777", label="as sure as right")
    axes.vlines(confidence, *bounds.T, color=(*RIGHT, 0.4), linewidth=2.5, label="95 % interval")
    area = 30 + 150 * sizes
    axes.scatter(
        confidence, shares, area, color=(*RIGHT, 0.85), zorder=3, clip_on=False, label=counted
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel=share)
    axes.tick_params(labelbottom=False)
    axes.grid(color="#e3e3e3", linewidth=0.6)


def _colours(cut: Matrix) -> np.ndarray:
    """Give RGB `[c,c,3]`: blue on the diagonal, orange off it, on white, the more the darker."""
    # The root brings out a single mistake among many examples.
    weight = np.sqrt(cut.shares)[..., None]
    full = np.where(np.eye(len(cut.labels))[..., None] == 1, RIGHT, WRONG)
    return np.asarray(1 - weight * (1 - full))


def _drawable(label: str, index: int) -> str:
    """Give the label, short; or its place where the font lacks one of its characters."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    text = shortened(label, 22)
    return text if all(font.get_char_index(ord(c)) for c in text) else f"label {index + 1}"


def _width(texts: list[str], size: float) -> float:
    """Give the width in inches of the widest text, at a size in points."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    font.set_size(size, 72)
    widths = []
    for text in texts:
        font.set_text(text, 0.0)
        widths.append(font.get_width_height()[0] / 64 / 72)  # in 64ths of a point
    return float(max(widths))


def _figure(width: float, height: float) -> Figure:
    """Give an empty figure, in inches, that belongs to no window and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure
