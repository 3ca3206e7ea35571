"""The command line: options from the configuration, logging, results and exit codes.

TensorFlow is imported only inside a command, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from job import __version__
from job.cli_announce import Announcement
from job.cli_backbone import backbone
from job.cli_cache import cache
from job.cli_inspect import inspect
from job.cli_submit import submit
from job.cli_versions import COMMANDS
from job.config import RunConfig
from job.endings import reason_of
from job.errors import ConfigError, DataError, RegraftError
from job.guard import GUARD, Terminated
from job.options import Lines, begin, common_options, config_options, option
from job.progress import LOGGER, import_tensorflow, set_up_logging
from job.result import Result
from job.terminal import print_table


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name=None, version=__version__, prog_name="regraft")
def cli() -> None:
    """Retrain an image classifier on a pretrained backbone and publish it to TensorFlow Serving.

    Every option is also an environment variable (--data is REGRAFT_DATA) and a key of the YAML file
    given by --config. Exit codes: 0 done, 1 a bug, 2 bad usage, 3 bad data, 4 rejected by the gate,
    5 publish conflict, 130 interrupted, 138 a dependency is out (try again), 143 stopped by SIGTERM
    (try again).
    """


@cli.command()
@common_options
@config_options(RunConfig)
def run(log_format: str, **options: Any) -> None:
    """Train on the images in --data and publish a version to --models under --name."""
    execute(log_format, options, dry=False)


@cli.command()
@common_options
@config_options(RunConfig)
def plan(log_format: str, **options: Any) -> None:
    """Check all that `run` would check before training, and train nothing.

    The status in the result is planned, or unchanged where `run` would find nothing to do.
    """
    execute(log_format, options, dry=True)


def execute(log_format: str, options: dict[str, Any], *, dry: bool) -> None:
    """Run the pipeline, or only its plan, and leave the result however it ends."""
    result, announcement = Result(), Announcement(options)
    GUARD.last_words = lambda error, doing: last_words(error, doing, result, announcement)
    try:
        style, progress, console = begin(log_format)
        config = RunConfig(**options)
        GUARD.stop_timeout, GUARD.stall_timeout = config.stop_timeout, config.stall_timeout
        import_tensorflow()
        from job import pipeline, release, summary

        facts = None
        if dry:
            release.foresee(config, progress, result)
        else:
            facts = pipeline.run(config, progress, result)
        GUARD.settle()
    except BaseException as error:
        reason = reason_of(error, GUARD.raised)
        GUARD.settle()
        result.fail(reason)
        if reason is error:
            raise
        raise reason from error
    finally:
        announcement.make(result)
    if style == "text" and not dry:
        console.print(summary.run_summary(config, result, facts))


@cli.command()
@common_options
@option("model", required=True, help="A version, or a model's folder (the one in service).")
@option("top", type=click.IntRange(min=1), default=3, show_default=True, help="Labels an image.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
def predict(log_format: str, model: str, top: int, images: tuple[Path, ...]) -> None:
    """Ask a published model what is on IMAGES; one JSON object a line when not on a terminal."""
    style, _, _ = begin(log_format)
    import_tensorflow()
    from job import predict as prediction
    from job import summary

    loaded = prediction.load_model(model)
    answers = list(prediction.predict(loaded, list(images)))
    if style == "text":
        print_table(summary.prediction_table(answers, min(top, len(loaded.labels))))
    for answer in answers if style == "json" else []:
        click.echo(json.dumps(answer.as_json(top)))
    if unread := [answer for answer in answers if answer.error]:
        raise DataError(
            f"{len(unread)} of {len(answers)} images could not be read, the first being "
            f"{unread[0].image!r}: {unread[0].error}",
            hint="give files that are JPEG, PNG, GIF, BMP or WebP images",
        )


@cli.command()
@common_options
@option("model", required=True, help="A version, or a model's folder (the one in service).")
@option(
    "data", required=True, multiple=True, type=Lines(), help="Labelled images, as those of `run`."
)
@option(
    "split",
    type=click.Choice(["test", "validation", "train", "all"]),
    default="test",
    show_default=True,
    help="Images of this side of the model's own split; `all` for data it was not trained on.",
)
@option("fetch_threads", type=click.IntRange(1, 512), default=32, help="Images fetched at once.")
def evaluate(
    log_format: str, model: str, data: tuple[str, ...], split: str, fetch_threads: int
) -> None:
    """Score a published model on the images in --data."""
    style, progress, _ = begin(log_format)
    import_tensorflow()
    from job import predict as prediction
    from job import summary
    from job.labelling import TASKS
    from job.sources import find_images
    from job.storage import open_store

    loaded = prediction.load_model(model)
    with progress.phase("evaluate") as advance:
        found = find_images(
            data,
            lambda uri: open_store(uri, connections=fetch_threads),
            several=TASKS[loaded.task].several,
        )
        done = prediction.evaluate_model(
            loaded, found, split=split, threads=fetch_threads, advance=advance
        )
    if style == "text":
        print_table(summary.report_table(loaded.uri, done.report))
    skipped = [f"{item.name}: {item.reason}" for item in done.skipped]
    figures = {"model": loaded.uri, **done.report.as_json(split), "skipped": skipped}
    click.echo(json.dumps(figures))


for _command in (inspect, *COMMANDS, backbone, cache, submit):
    cli.add_command(_command)


def last_words(
    error: RegraftError | KeyboardInterrupt, doing: str, result: Result, announcement: Announcement
) -> None:
    """Leave the result and the log of a process that the guard is about to end."""
    result.fail(error)
    announcement.make(result)
    explain(error, doing)


def explain(error: BaseException, doing: str = "") -> int:
    """Log what ended a command, with what to do about it, and give the exit code.

    `doing` is what the threads of a process were at that did not end by itself.
    """
    if not LOGGER.hasHandlers():  # the command line itself was at fault
        set_up_logging("text" if sys.stderr.isatty() else "json")
    fields_of: dict[str, Any] = {}
    code = 1
    if isinstance(error, RegraftError):
        code = error.exit_code
        fields_of = {"hint": error.hint} if error.hint else {}
    elif isinstance(error, KeyboardInterrupt):
        code = 130
    fields_of["exit_code"] = code
    if doing:
        fields_of["stack_trace"] = doing
    LOGGER.error(
        "%s", error or type(error).__name__, extra={"fields": fields_of},
        exc_info=error if code == 1 and not isinstance(error, RegraftError) else None,
    )  # fmt: skip
    return code


def main(arguments: list[str] | None = None, *, end: Callable[[int], None] | None = None) -> int:
    """Run a command and give its exit code; the only place where an error becomes one.

    With `end`, which is to end the process, it is called with the code while signals are still
    watched: one that comes now changes nothing about what was told.
    """
    # TensorFlow's own notes would break up the JSON lines; its errors arrive as exceptions.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with GUARD.watching():
        try:
            code = _run_command(arguments)
            GUARD.settle()
        except Terminated:  # while something else was being explained
            code = 143
        if end:
            end(code)
    return code


def _run_command(arguments: list[str] | None) -> int:
    try:
        # Without standalone mode click hands over --help's and --version's exit code.
        code = cli.main(arguments, prog_name="python -m job", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return _refuse(error)
    except BaseException as error:
        reason = reason_of(error, GUARD.raised)
        if isinstance(reason, click.Abort | KeyboardInterrupt):
            click.echo("interrupted", err=True)
            return 130
        if not isinstance(reason, Exception):
            raise
        return explain(reason)


def _refuse(error: click.ClickException) -> int:
    """Explain a usage error; a run that it kept from starting leaves a result all the same."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "python -m job"
    refused = ConfigError(error.format_message(), hint=f"`{command} --help` lists what there is")
    if isinstance(error.__cause__, ConfigError):
        refused = error.__cause__
    if context is not None and context.command.name in ("run", "plan"):
        result = Result()
        result.fail(refused)
        Announcement(context.params).make(result)
    return explain(refused)
