"""The result of a command, told: its file, the last line of stdout, and what CI shows of it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from job.errors import ConfigError
from job.platforms import failure_note
from job.result import Result, append_summary

TERMINATION_LOG = Path("/dev/termination-log")
# The report has told these already, in more words.
REPORTED = ("published", "rejected")


class Announcement:
    """The result of a command, told once: by the command, or by the guard if that ends it.

    `options` are those of the command, by their names; what is not among them is not given.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        if is_told_to_ci(options):
            load_outcome()  # now: what the guard ends may be stuck in an import
        self._lock = threading.Lock()
        self._made = False

    def make(self, result: Result) -> None:
        """Write the result to its file and as the last line of stdout, and the files for CI."""
        with self._lock:
            if not self._made:
                self._write(result)
                self._made = True

    def _write(self, result: Result) -> None:
        notes = failure_note(result.error) if result.error else {}
        for place, text in notes.items():
            _try_to_write(place, text)
        options = dict(self._options)
        if options.get("result_file") is None and os.access(TERMINATION_LOG, os.W_OK):
            options["result_file"] = TERMINATION_LOG
        announce(result.to_json(), options, reported=REPORTED)


def announce(line: str, options: Mapping[str, Any], *, reported: tuple[str, ...] = ()) -> None:
    """Tell a result, one line of JSON: to --result-file, to CI, and as the last line of stdout.

    CI's files, --summary-file and --junit-file, are left alone where its status is one of
    `reported`. What cannot be written is told on stderr.
    """
    if (target := options.get("result_file")) is not None:
        _try_to_write(target, line + "\n")
    if is_told_to_ci(options):
        _tell_ci(json.loads(line), options, reported)
    click.echo(line)


def is_told_to_ci(options: Mapping[str, Any]) -> bool:
    """Tell whether anything but the result itself is asked for."""
    asked = options.get("summary_file") or options.get("junit_file")
    return bool(asked or os.environ.get("GITHUB_STEP_SUMMARY")) or _on_github()


def _tell_ci(
    result: Mapping[str, Any], options: Mapping[str, Any], reported: tuple[str, ...]
) -> None:
    outcome, name = load_outcome(), str(options.get("name") or "")
    if outcome.status_of(result) not in reported:
        try:
            append_summary(options.get("summary_file"), outcome.markdown(name, result))
        except ConfigError as error:
            click.echo(f"the summary could not be written to {error.message}", err=True)
        if cases := options.get("junit_file"):
            _try_to_write(cases, outcome.junit(name, result))
    if _on_github():
        click.echo(outcome.annotation(name, result), err=True)


def load_outcome() -> ModuleType:
    """Give `job.outcome`, which loads numpy: --help can do without."""
    from job import outcome

    return outcome


def _on_github() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


def _try_to_write(place: Path, text: str) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, "utf-8", "backslashreplace")
    except OSError as error:
        said = f"the result could not be written to {place}: {error.strerror}"
        click.echo(said, err=True)
