"""Stands in for `python -m job` in CI's scripts: reads the command line as the job does.

ENDINGS, a JSON object, maps a command to the exit code that it ends with; 0 may be a status.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click

from job.cli import cli
from job.cli_announce import announce
from job.errors import DataError, GateRejected, Stopped, UnavailableError
from job.options import check_environment
from job.result import Result

KINDS = {kind.exit_code: kind for kind in (DataError, GateRejected, UnavailableError, Stopped)}


def main(arguments: list[str]) -> int:
    """Parse the command, leave what the job would leave, and give the exit code."""
    module, name, *rest = arguments[1:]
    assert (arguments[0], module) == ("-m", "job")
    check_environment(cli)
    params = cli.commands[name].make_context(name, rest).params
    if name == "submit":
        overlay = Path(__file__).resolve().parent.parent / params["overlay"]
        assert (overlay / "kustomization.yaml").exists(), overlay
        run = cli.commands["run"].make_context("run", list(params["options"])).params
        params = {**params, "name": run["name"]}
    ending = json.loads(os.environ["ENDINGS"])[name]
    result = Result("planned" if name == "plan" else "published", 17, "gs://b/models/flowers/17")
    if isinstance(ending, str):
        result.status = ending
    elif ending:
        result.fail(KINDS[ending]("this is the reason", hint="this is what to do"))
    announce(result.to_json(), params)
    return ending if isinstance(ending, int) else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except click.UsageError as error:
        error.show()
        sys.exit(2)
