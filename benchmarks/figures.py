"""What the page says, computed from the raw figures: medians, ratios, and the bars they meet."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

COLD, BUILT, WARM = "cold", "cold, backbone built", "warm"
CHANGED, UNCHANGED = "1 % changed", "unchanged"
SCENARIOS = (COLD, BUILT, WARM, CHANGED, UNCHANGED)
FOREIGN = {"make_image_classifier": "make_image_classifier", "keras": "Keras recipe"}
# Seconds of the outermost bar segment: interpreter, imports, and leaving.
OUTSIDE = "outside phases"
# What the bar on a warm run leaves out: the backbone, and the store that is listed and written.
NOT_THE_REST = ("backbone", "index", "publish")
# A phase shorter than this in every scenario is drawn and listed with the others like it.
SHORT = 0.15

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Process:
    """A whole process: the median of its runs, and the shortest and the longest."""

    name: str
    seconds: float
    low: float
    high: float
    cpu_seconds: float
    peak_mb: float
    runs: int


@dataclass(frozen=True, slots=True)
class Bar:
    """A requirement: what was found, and the value that it has to reach or stay under."""

    what: str
    found: float
    bound: float
    at_least: bool
    unit: str

    @property
    def met(self) -> bool:
        """Tell whether the figure as it stands is on the right side."""
        return self.found >= self.bound if self.at_least else self.found <= self.bound


def process(name: str, timed: Iterable[Figures]) -> Process:
    """Sum up the runs of one process."""
    runs = list(timed)
    seconds = [run["seconds"] for run in runs]
    return Process(
        name=name,
        seconds=statistics.median(seconds),
        low=min(seconds),
        high=max(seconds),
        cpu_seconds=statistics.median(run["cpu_seconds"] for run in runs),
        peak_mb=max(run["peak_mb"] for run in runs),
        runs=len(runs),
    )


def of_scenario(steps: Figures, scenario: str) -> list[Figures]:
    """Give the job's runs of one scenario, in the order of the rounds."""
    return [run for run in steps["job"]["runs"] if run["scenario"] == scenario]


def processes(steps: Figures) -> list[Process]:
    """Sum up every whole process that was timed, the slowest tools first."""
    found = [process(name, steps[step]["runs"]) for step, name in FOREIGN.items() if step in steps]
    if "job" in steps:
        for scenario in SCENARIOS:
            runs = [run["timed"] for run in of_scenario(steps, scenario)]
            found.append(process(f"Regraft, {scenario}", runs))
    return found


def phases(steps: Figures) -> dict[str, dict[str, float]]:
    """Give median seconds by scenario and phase, `OUTSIDE` first and short ones in one."""
    table: dict[str, dict[str, float]] = {}
    for scenario in SCENARIOS:
        runs = of_scenario(steps, scenario)
        outside = [run["timed"]["seconds"] - sum(run["phases"].values()) for run in runs]
        table[scenario] = {OUTSIDE: statistics.median(outside)}
        for name in runs[0]["phases"]:
            table[scenario][name] = statistics.median(run["phases"][name] for run in runs)
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    short = [n for n in names if all(row.get(n, 0.0) < SHORT for row in table.values())]
    for row in table.values():
        if rest := sum(row.pop(name, 0.0) for name in short):
            row["other"] = rest
    return table


def import_seconds(steps: Figures) -> float:
    """Give what `python -c "import tensorflow"` takes, a whole process."""
    return statistics.median(timed["seconds"] for timed in steps["job"]["imports"])


def rest_of_warm(steps: Figures) -> float:
    """Give the seconds of a warm run that no import, backbone or store accounts for.

    TensorFlow is imported twice: once more by the fresh process that verifies the export.
    """
    pairs = zip(of_scenario(steps, WARM), steps["job"]["imports"], strict=True)
    return statistics.median(
        run["timed"]["seconds"]
        - sum(run["phases"][name] for name in NOT_THE_REST)
        - 2 * bare["seconds"]
        for run, bare in pairs
    )


def limit_of(rates: Figures) -> float:
    """Give images per second where decoding and forward pass take turns on the same cores."""
    return 1 / (1 / rates["decode"] + 1 / rates["forward"])


def median(rounds: list[Figures], name: str) -> float:
    """Give the median of one figure over the rounds."""
    return statistics.median(found[name] for found in rounds)


def job_rate(steps: Figures) -> float:
    """Give images per second of the job's whole embed phase, compiling and all."""
    runs = of_scenario(steps, BUILT)
    return statistics.median(run["images"] / run["phases"]["embed"] for run in runs)


def fastest_openvino(found: Figures) -> float:
    """Give OpenVINO's better rate of a round."""
    return max(found["latency"], found["throughput"])


def bars(steps: Figures) -> list[Bar]:
    """Give every requirement that the figures at hand can tell something about."""
    found = {item.name: item.seconds for item in processes(steps)}
    result = []
    if "job" in steps:
        cold, warm = found[f"Regraft, {COLD}"], found[f"Regraft, {WARM}"]
        for name in [name for name in FOREIGN.values() if name in found]:
            result.append(Bar(f"cold run, against {name}", found[name] / cold, 5, True, "x"))
            result.append(Bar(f"warm run, against {name}", found[name] / warm, 20, True, "x"))
        pairs = zip(of_scenario(steps, CHANGED), of_scenario(steps, WARM), strict=True)
        ratio = statistics.median(
            changed["timed"]["seconds"] / same["timed"]["seconds"] for changed, same in pairs
        )
        result.append(Bar("1 % changed, in warm runs", ratio, 1.3, False, "x"))
        what = "warm run without TensorFlow's import, backbone and store"
        result.append(Bar(what, rest_of_warm(steps), 2, False, " s"))
    if "limit" in steps:
        shares = [100 * r["embed"] / limit_of(r) for r in steps["limit"]["rounds"]]
        what = "embedding, of the limit of decode and forward"
        result.append(Bar(what, statistics.median(shares), 90, True, " %"))
    if "openvino" in steps:
        ratios = [fastest_openvino(r) / r["regraft"] for r in steps["openvino"]["rounds"]]
        what = "OpenVINO's forward pass, against ours (above the bar it has to be offered)"
        result.append(Bar(what, statistics.median(ratios), 1.2, False, "x"))
    if "large" in steps:
        ratios = [r["reduced"] / r["exact"] for r in steps["large"]["rounds"]]
        what = "3000x2000 JPEGs with the DCT ratio, against without"
        result.append(Bar(what, statistics.median(ratios), 2, True, "x"))
    return result
