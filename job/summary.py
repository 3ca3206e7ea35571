"""The tables that a person reads at the end of a command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # what a command does not need it does not load
    from job.config import RunConfig
    from job.evaluate import Report
    from job.gate import Comparison
    from job.predict import Prediction
    from job.report import Facts
    from job.result import Result
    from job.versions import Version


def run_summary(config: RunConfig, result: Result, facts: Facts | None) -> RenderableType:
    """Give the table of a run: labels, images, accuracy, where the version is and what next."""
    images = result.images
    if result.status == "embedded":
        table = _pairs(f"{config.name}: this job's share is in the cache, job 0 goes on")
    elif result.status == "helped":
        table = _pairs(f"{config.name}: trained together with worker 0, which has published")
    elif facts is None:
        table = _pairs(f"{config.name}: unchanged, version {result.version} stays in service")
    else:
        table = _pairs(f"{config.name}: version {result.version} is published")
    table.add_row("labels", f"{len(result.labels)}: {', '.join(result.labels[:12])}")
    out = images["left_out"] + images.get("dropped", 0)
    left_out = f", {out} left out" if out else ""
    table.add_row(
        "images",
        f"{images['total']}: {images['train']} train, {images['validation']} validation, "
        f"{images['test']} test, {images['skipped']} skipped{left_out}",
    )
    if facts is not None:
        hits, misses = result.cache["hits"], result.cache["misses"]
        table.add_row("embedded", f"{misses}, and {hits} came from the cache")
        table.add_row(facts.report.accuracy_words, accuracy_text(facts.report))
        for name in facts.labelling.headline:
            table.add_row(name.replace("_", " "), f"{100 * facts.report.metrics[name]:.1f} %")
        if facts.comparison is not None:
            table.add_row("before", comparison_text(facts.comparison))
    table.add_row("seconds", ", ".join(f"{k} {v:.1f}" for k, v in result.seconds.items()))
    if result.version is None:
        return table
    table.add_row("version", Text(f"{result.uri}"))
    if facts is not None:
        table.add_row("report", Text(f"{result.uri}/report/index.html"))
    table.add_row("serve", Text(serve_command(config, result)))
    table.add_row("predict", Text(f"python -m job predict --model {_q(result.uri)} IMAGE..."))
    return table


def comparison_text(comparison: Comparison) -> str:
    """Give what changed on the same test images since the version in service."""
    return (
        f"{100 * comparison.accuracy_before:.1f} % by version {comparison.version}: "
        f"{len(comparison.fixed)} images fixed, {len(comparison.broken)} newly wrong"
    )


def versions_table(versions: Iterable[Version]) -> RenderableType:
    """Give a row a version."""
    table = Table("version", "state", "channels", "in service", "test accuracy")
    for item in versions:
        accuracy = "" if item.accuracy is None else f"{item.accuracy:.3f}"
        mark = "yes" if item.in_service else ""
        table.add_row(f"{item.version}", item.state, ", ".join(item.channels), mark, accuracy)
    return table


def accuracy_text(report: Report) -> str:
    """Give the accuracy in percent with its interval."""
    low, high = report.accuracy_ci95
    return (
        f"{100 * report.accuracy:.1f} % of {report.n} images "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f})"
    )


def serve_command(config: RunConfig, result: Result) -> str:
    """Give the command that serves the model with TensorFlow Serving on port 8501.

    The server has the version of the TensorFlow that wrote the model: an older one may lack an
    operation, such as DecodeWebP, and would not load it.
    """
    import tensorflow as tf  # as in `manifest.packages`; the other commands do without it

    image = f"tensorflow/serving:{tf.__version__}"
    base = (result.uri or "").rpartition("/")[0]
    if base.startswith("gs://"):
        return (
            f"docker run --rm -p 8501:8501 --entrypoint tensorflow_model_server {image} "
            f"--rest_api_port=8501 --model_name={config.name} --model_base_path={_q(base)}"
        )
    return (
        f"docker run --rm -p 8501:8501 -v {_q(base)}:/models/{config.name}:ro "
        f"-e MODEL_NAME={config.name} {image}"
    )


def report_table(title: str, report: Report) -> RenderableType:
    """Give accuracy, and the scores of each label."""
    table = Table(title=title, title_justify="left", caption=accuracy_text(report))
    table.add_column("label")
    for name in (*report.per_label[0].figures(), "images"):
        table.add_column(name.replace("_", " "), justify="right")
    for score in report.per_label:
        shares = (f"{value:.3f}" for value in score.figures().values())
        table.add_row(Text(score.label), *shares, f"{score.count}")
    return table


def prediction_table(predictions: Iterable[Prediction], top: int) -> RenderableType:
    """Give one row an image, its best labels with their scores.

    Before them are the labels that are selected, where any are, and `unknown` where it is of none.
    """
    items = list(predictions)
    selecting = any(item.selected is not None for item in items)
    heads = ["selected"] if selecting else []
    table = Table("image", *heads, *(f"#{rank + 1}" for rank in range(top)))
    for item in items:
        best = zip(item.labels[:top], item.scores, strict=False)
        cells = [Text(f"{label} {score:.3f}") for label, score in best]
        if item.unknown:
            cells[0] = Text("unknown, ", style="yellow") + cells[0]
        if cells and selecting:
            cells.insert(0, Text(", ".join(item.selected or ())))
        table.add_row(Text(item.image), *(cells or [Text(item.error, style="red")]))
    return table


def _pairs(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _q(text: str | None) -> str:
    return shlex.quote(text or "")
