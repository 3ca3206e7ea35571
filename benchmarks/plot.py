"""The plots of docs/benchmarks.md, on no background and in mid tones: for light and dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import figures
import matplotlib as mpl

mpl.use("Agg")  # before pyplot, which would look for a display
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#808890"
OURS, THEIRS = "#2f81c4", "#b08446"
# Okabe and Ito's, which colour-blind people can tell apart, without black and yellow, and greys.
COLOURS = ("#999999", "#56b4e9", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#7a6fd0",
           "#8c6d46", "#5f9e9e", "#b5bd61")  # fmt: skip
STYLE = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "savefig.transparent": True,
    "savefig.dpi": 130,
    "savefig.bbox": "tight",
}


def processes(path: Path, found: list[figures.Process]) -> None:
    """Draw every whole process as a bar, with its shortest and longest run."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 0.42 * len(found) + 0.9))
        bars(
            axes,
            [item.name for item in found],
            [item.seconds for item in found],
            "seconds, whole process",
            "{:.1f} s",
        )
        for row, item in enumerate(found):
            axes.plot([item.low, item.high], [row, row], color=INK, linewidth=1)
        save(figure, path)


def phases(path: Path, table: dict[str, dict[str, float]]) -> None:
    """Draw each scenario as one bar, cut at the ends of its phases."""
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 0.55 * len(table) + 1.6))
        starts = dict.fromkeys(table, 0.0)
        longest = max(sum(row.values()) for row in table.values())
        for number, name in enumerate(names):
            for row, (scenario, seconds) in enumerate(table.items()):
                width = seconds.get(name, 0.0)
                colour = COLOURS[number % len(COLOURS)]
                label = name if row == 0 else None
                axes.barh(row, width, left=starts[scenario], color=colour, height=0.62, label=label)
                if width > longest / 25:
                    middle = starts[scenario] + width / 2
                    axes.text(middle, row, f"{width:.1f}", color="white", ha="center", va="center")
                starts[scenario] += width
        for row, end in enumerate(starts.values()):
            axes.text(end + longest / 100, row, f"{end:.1f} s", va="center")
        axes.set_yticks(range(len(table)), list(table))
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.1)
        axes.set_xlabel("seconds")
        axes.legend(
            ncols=6, loc="lower center", bbox_to_anchor=(0.42, 1.0), frameon=False, fontsize=9
        )
        save(figure, path)


def rates(path: Path, panels: dict[str, dict[str, float]]) -> None:
    """Draw panels of rates; in each, bars whose name begins with Regraft are ours."""
    heights = [len(panel) for panel in panels.values()]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(panels),
            1,
            figsize=(8.5, 0.42 * sum(heights) + 0.9 * len(panels)),
            gridspec_kw={"height_ratios": [height + 0.4 for height in heights]},
            squeeze=False,
            layout="constrained",
        )
        for part, (title, panel) in zip(axes[:, 0], panels.items(), strict=True):
            bars(part, list(panel), list(panel.values()), "", "{:,.1f}")
            part.set_title(title, fontsize=10, loc="left")
        save(figure, path)


def bars(axes: Axes, names: list[str], values: list[float], label: str, form: str) -> None:
    """Draw horizontal bars with their values behind them."""
    colours = [OURS if name.startswith("Regraft") else THEIRS for name in names]
    axes.barh(names, values, color=colours, height=0.62)
    for row, value in enumerate(values):
        axes.text(value + max(values) / 90, row, form.format(value), va="center", color=INK)
    axes.set_xlim(0, max(values) * 1.13)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel(label)


def save(figure: plt.Figure, path: Path) -> None:
    """Write the file without the date that matplotlib puts into it."""
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
