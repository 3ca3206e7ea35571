"""The command that looks at data and trains nothing."""

from __future__ import annotations

import json
from typing import Any

import click

from job.config import InspectConfig
from job.guard import GUARD
from job.options import begin, common_options, config_options
from job.progress import import_tensorflow
from job.result import append_summary
from job.terminal import print_table


@click.command()
@common_options
@config_options(InspectConfig)
def inspect(log_format: str, **options: Any) -> None:
    """Look for what is wrong with the images in --data: labels, copies, outliers, drift.

    Leaves a page with pictures, a CSV that `--exclude @FILE` takes back, and the figures as JSON in
    --output. Nothing is trained, and nothing is changed where the images are.
    """
    style, progress, _ = begin(log_format)
    config = InspectConfig(**options)
    GUARD.stop_timeout, GUARD.stall_timeout = config.stop_timeout, config.stall_timeout
    import_tensorflow()
    from job.doctor import summary
    from job.inspection import PAGE, inspect

    checkup = inspect(config, progress)
    material, findings = checkup.material, checkup.findings
    append_summary(config.summary_file, summary.markdown(material, findings))
    if style == "text":
        print_table(summary.table(material, findings))
        click.echo(f"the page is {config.output.rstrip('/')}/{PAGE}")
        return
    counts = {line.section: line.count for line in summary.lines(material, findings)}
    found = {"images": len(material.names), "accuracy": round(findings.accuracy, 6), **counts}
    click.echo(json.dumps({"status": "inspected", "uri": config.output, "found": found}))
