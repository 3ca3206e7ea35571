"""The report of a model: a page for people, figures for machines, summaries for pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from job import figures
from job.calibrate import bins_error
from job.evaluate import Report
from job.labelling import TASKS, Labelling, Thresholds
from job.multilabel import mistakes
from job.page import render
from job.plots import plot_confusion, plot_reliability

if TYPE_CHECKING:
    from job.doctor.summary import Line
    from job.gate import Comparison, Verdict
    from job.lite import LiteScore
    from job.unknown import Rejection

# What the reliability diagram of a task is of; of single labels it is what it is by default.
AXES: dict[str, dict[str, str]] = {
    "single": {},
    "multilabel": {"share": "with the label", "sureness": "score", "counted": "scores"},
}

# More lines than this in a job summary are not read.
MOST_MARKDOWN_LABELS = 30


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a report is made of; n test images and c labels.

    `names` are the test images' names relative to the data, `classes` their true class indices,
    int `[n]`, or where the `task` is multilabel their targets, bool `[n,c]`, which the model is to
    select by its `thresholds`. `scores` are probabilities float32 `[n,c]` as published,
    `uncalibrated` the same at a temperature of 1. `report` is of `scores`. `images` and `seconds`
    are as in `Result`. `provenance` is shown as given. `read_image` gives the bytes of a test image
    by its name, or None; it is called from several threads. `lite` is how good the TFLite files
    are, `findings` what the data doctor found, in short, `unknown` what the threshold for images of
    no label does; None: there is none.
    """

    name: str
    labels: tuple[str, ...]
    names: tuple[str, ...]
    classes: np.ndarray
    scores: np.ndarray
    uncalibrated: np.ndarray
    temperature: float
    report: Report
    comparison: Comparison | None
    verdict: Verdict
    images: dict[str, Any]
    seconds: dict[str, float]
    provenance: dict[str, str]
    read_image: Callable[[str], bytes | None]
    lite: tuple[LiteScore, ...] = ()
    findings: tuple[Line, ...] = ()
    listing: str = ""
    unknown: Rejection | None = None
    task: str = "single"
    thresholds: Thresholds = None

    @property
    def labelling(self) -> Labelling:
        """Give what the task decides."""
        return TASKS[self.task]

    @property
    def chosen(self) -> np.ndarray:
        """Give what the model takes the test images for, in the shape of `classes`."""
        return self.labelling.choose(self.scores, self.thresholds)


def write_report(folder: Path, facts: Facts) -> None:
    """Write index.html, metrics.json and the plots that there are; makes the folder.

    Raises what `facts.read_image` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(render(facts), "utf-8")
    text = json.dumps(metrics(facts), allow_nan=False, separators=(",", ":"), sort_keys=True)
    (folder / "metrics.json").write_text(text + "\n", "utf-8")
    if facts.listing:
        (folder / "findings.csv").write_bytes(facts.listing.encode())
    if facts.report.confusion is not None:
        plot_confusion(folder / "confusion.png", facts.report.confusion, facts.labels)
    before, after = (
        facts.labelling.reliability(scores, facts.classes)
        for scores in (facts.uncalibrated, facts.scores)
    )
    words = AXES[facts.task]
    plot_reliability(folder / "reliability.png", before, after, facts.temperature, **words)


def metrics(facts: Facts) -> dict[str, Any]:
    """Give every figure of the report, ready for JSON: floats have 6 digits, or are null."""
    report = facts.report
    confusion = report.confusion
    labels = [asdict(score) | {"f1": figures.f1(score)} for score in report.per_label]
    found: dict[str, Any] = figures.plain(
        {
            "name": facts.name,
            "verdict": asdict(facts.verdict),
            "test": {
                "n": report.n,
                **report.metrics,
                f"{report.accuracy_name}_ci95": report.accuracy_ci95,
            },
            "labels": labels,
            **({} if confusion is None else {"confusion": confusion.tolist()}),
            "calibration": {
                "temperature": facts.temperature,
                "before": _calibration(facts, facts.uncalibrated),
                "after": _calibration(facts, facts.scores),
            },
            "mistakes": MISTAKES[facts.task](facts),
            "comparison": asdict(facts.comparison) if facts.comparison else None,
            "formats": {score.file: score.as_json() for score in facts.lite},
            "images": facts.images,
            "seconds": facts.seconds,
            "provenance": facts.provenance,
            **({"unknown": facts.unknown.as_json()} if facts.unknown else {}),
        }
    )
    return found


def _calibration(facts: Facts, scores: np.ndarray) -> dict[str, Any]:
    bins = facts.labelling.reliability(scores, facts.classes)
    return {
        "error": bins_error(bins),
        "log_loss": facts.labelling.log_loss(scores, facts.classes),
        "bins": [asdict(item) for item in bins],
    }


def _mistakes(facts: Facts) -> list[dict[str, Any]]:
    """Give every misclassified test image, the most confident mistake first."""
    found = []
    for row in figures.mistakes(facts.scores, facts.classes):
        true, predicted = int(facts.classes[row]), int(facts.scores[row].argmax())
        found.append(
            {
                "name": facts.names[row],
                "label": facts.labels[true],
                "label_score": facts.scores[row, true],
                "predicted": facts.labels[predicted],
                "predicted_score": facts.scores[row, predicted],
            }
        )
    return found


def _label_mistakes(facts: Facts) -> list[dict[str, Any]]:
    """Give every label of a test image that is wrong, the surest first."""
    return [
        {
            "name": facts.names[mistake.row],
            "label": facts.labels[mistake.label],
            "score": mistake.score,
            "missed": mistake.missed,
        }
        for mistake in mistakes(facts.scores, facts.classes, facts.chosen)
    ]


MISTAKES: dict[str, Callable[[Facts], list[dict[str, Any]]]] = {
    "single": _mistakes,
    "multilabel": _label_mistakes,
}


def markdown(facts: Facts) -> str:
    """Give a summary in GitHub's Markdown: verdict, accuracy, comparison, labels."""
    report, name = facts.report, figures.markdown_text(facts.name)
    low, high = (figures.percent(bound) for bound in report.accuracy_ci95)
    error = bins_error(facts.labelling.reliability(facts.scores, facts.classes))
    names = [*report.per_label[0].figures(), "F1"]
    others = facts.labelling.headline
    lines = [
        f"## {name}: {'passed' if facts.verdict.passed else 'refused by'} the gate",
        "",
        *(f"- {figures.markdown_text(reason)}" for reason in facts.verdict.reasons),
        *([""] if facts.verdict.reasons else []),
        f"**{report.accuracy_words.capitalize()} {figures.percent(report.accuracy)}** of "
        f"{report.n} test images (95 % interval {low} to {high}), calibration error "
        f"{figures.percent(error)}.",
        *(f"{_words(name)} {figures.percent(report.metrics[name])}." for name in others),
        "",
        *(_unknown_lines(facts.unknown) if facts.unknown else []),
        *(_comparison_lines(facts.comparison) if facts.comparison else []),
        f"| label | images | {' | '.join(names).replace('_', ' ')} |",
        f"|---|---:|{'---:|' * len(names)}",
    ]
    rows = figures.weakest_first(report.per_label)
    for score in rows[:MOST_MARKDOWN_LABELS]:
        shares = (*score.figures().values(), figures.f1(score))
        cells = " | ".join(figures.percent(share) if score.count else "-" for share in shares)
        lines.append(f"| {figures.markdown_text(score.label)} | {score.count} | {cells} |")
    if len(rows) > MOST_MARKDOWN_LABELS:
        lines += ["", f"{len(rows) - MOST_MARKDOWN_LABELS} more labels did better."]
    return "\n".join(lines) + "\n"


def _words(metric: str) -> str:
    return metric.replace("_", " ").capitalize().replace("f1", "F1")


def _comparison_lines(comparison: Comparison) -> list[str]:
    difference = comparison.accuracy_after - comparison.accuracy_before
    low, high = (figures.points(bound) for bound in comparison.difference_ci95)
    return [
        f"Version {comparison.version} had {figures.percent(comparison.accuracy_before)} of the "
        f"same images: {figures.points(difference)} points (95 % interval {low} to {high}), "
        f"{len(comparison.fixed)} fixed, {len(comparison.broken)} newly broken, "
        f"is it worse: {figures.p_value(comparison.p_value)}.",
        "",
    ]


def _unknown_lines(unknown: Rejection) -> list[str]:
    chosen = unknown.threshold
    low, high = (figures.percent(bound) for bound in chosen.false_accept_ci95)
    return [
        f"Unknown below a score of {figures.percent(chosen.value)}: of images of labels left out "
        f"{figures.percent(chosen.false_accept_rate)} pass (95 % interval {low} to {high}), of the "
        f"test images {figures.percent(unknown.false_reject_rate)} do not.",
        "",
    ]
