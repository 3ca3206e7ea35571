"""The page and the plot of `scale.py`."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # before pyplot, which would look for a display
import matplotlib.pyplot as plt

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#0072b2")
INK = "#808890"


def write_page(docs: Path, results: dict[int, Any], steps: dict[str, str], limit: float) -> None:
    """Write scale.md and scale.png; `results` has what `scale.py` measured, by size."""
    shown = {name: text for name, text in steps.items() if name != "generate"}
    _plot(docs / "scale.png", results, tuple(shown), limit)
    lines = [
        "# What a large data set costs beside its embedding",
        "",
        "`python benchmarks/scale.py` wrote this page. It generates embeddings of 1,280 float32 "
        "for 10 labels and runs the job's own index, split, cache and fit on them. One process "
        "writes the cache, a fresh one is the warm run; it keeps all it made, as a job does.",
        "",
        f"Measured on {datetime.now(UTC):%Y-%m-%d}: {_machine()}.",
        "",
        "Seconds, and in brackets the most memory in GiB while the step ran: anonymous + "
        "memory-mapped. Mapped pages are the kernel's to take back.",
        "",
        "| step | " + " | ".join(f"{size:,} images" for size in results) + " |",
        "|---|" + "---:|" * len(results),
        *(
            f"| {text} | "
            + " | ".join(_cell(found["steps"][name]) for found in results.values())
            + " |"
            for name, text in shown.items()
        ),
        _row("all of the warm run", results, lambda f: f"{_warm(f):.1f}"),
        _row("most memory at once", results, lambda f: f"{_most(f):.2f} GiB"),
        _row("penalties tried", results, lambda f: str(f["penalties"])),
        _row("L2 penalty chosen", results, lambda f: f"{f['l2']:.0e}"),
        _row("iterations of the solver", results, lambda f: str(f["iterations"])),
        _row("gradient norm at the head", results, lambda f: f"{f['gradient_norm']:.0e}"),
        _row("test accuracy", results, lambda f: f"{f['accuracy']:.3f}"),
        "",
        f"The limit is {limit:g} GiB; the script fails above it.",
        "",
        "![Seconds and memory by size](scale.png)",
        "",
    ]
    (docs / "scale.md").write_text("\n".join(lines))


def _row(text: str, results: dict[int, Any], show: Any) -> str:
    return f"| {text} | " + " | ".join(show(found) for found in results.values()) + " |"


def _cell(step: dict[str, float]) -> str:
    return f"{step['seconds']:.1f} ({step['anonymous']:.2f} + {step['file']:.2f})"


def _warm(found: Any) -> float:
    steps = found["steps"].items()
    return sum(step["seconds"] for name, step in steps if name not in ("generate", "write"))


def _most(found: Any) -> float:
    return max(step["total"] for step in found["steps"].values())


def _machine() -> str:
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[2]
    return f"{cores} cores of {cpu}, {gib:.0f} GiB, mean load of the last 15 minutes {load:.1f}"


def _plot(path: Path, results: dict[int, Any], names: tuple[str, ...], limit: float) -> None:
    keys = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    style = dict.fromkeys(keys, INK) | {"axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
        sizes = list(results)
        for name, colour in zip(names, COLOURS, strict=True):
            seconds = [found["steps"][name]["seconds"] for found in results.values()]
            left.plot(sizes, seconds, "o-", color=colour, label=name)
        left.set_ylabel("seconds")
        left.legend(frameon=False)
        for key, colour in (("anonymous", COLOURS[4]), ("total", COLOURS[0])):
            most = [max(s[key] for s in f["steps"].values()) for f in results.values()]
            label = "anonymous" if key == "anonymous" else "with mapped pages"
            right.plot(sizes, most, "o-", color=colour, label=label)
        right.axhline(limit, color="#d55e00", linestyle="--", label="limit")
        right.set_ylabel("most memory, GiB")
        right.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.92))
        for axes in (left, right):
            axes.set(xscale="log", yscale="log", xlabel="images")
            axes.grid(alpha=0.2)
        figure.savefig(path, dpi=130, bbox_inches="tight", transparent=True)
        plt.close(figure)
