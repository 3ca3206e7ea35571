"""Options for click, made from the configuration: flags, variables, a YAML file, the platform."""

from __future__ import annotations

import logging
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from job.config import did_you_mean, read_options, refuse_unknown
from job.errors import ConfigError
from job.platforms import recognise
from job.progress import Progress, log
from job.terminal import set_up

if TYPE_CHECKING:
    from rich.console import Console

# What Kubernetes sets for a Service that happens to be called `regraft`: not meant as options.
SERVICE_LINK = re.compile(r"REGRAFT_(SERVICE|PORT)(_.*)?|REGRAFT_.*_(SERVICE|PORT)(_.*)?")

# Where a context keeps what the platform says.
PLATFORM = "regraft.platform"


def read_defaults(ctx: click.Context, option: click.Parameter, path: Path | None) -> None:
    """Take defaults from the platform and from a YAML file, which beats it.

    Flags and environment variables beat them both.
    """
    known = {str(param.name) for param in ctx.command.params} - {str(option.name)}
    try:
        given = read_options(path, known, _several(ctx.command)) if path else {}
        ctx.default_map = _platform_defaults(ctx, known, given) | given
    except ConfigError as error:
        raise click.UsageError(error.message, ctx) from error


def _platform_defaults(
    ctx: click.Context, known: set[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Give what the platform says of the options that the file has not given.

    It speaks to the commands that publish. What it says is kept for `tell_platform`.
    """
    seen = recognise() if {"models", "deliver"} <= known else None
    if seen is None:
        return {}
    name, contract = seen
    refuse_unknown(contract.options, known, name)
    options = {key: text for key, text in contract.options.items() if key not in given}
    ctx.meta[PLATFORM] = (name, options, contract.unread)
    several = _several(ctx.command)
    return {key: Lines.split(v) if key in several else v for key, v in options.items()}


def tell_platform(ctx: click.Context) -> None:
    """Log on which platform this is, which options are its own, and what of it is not read."""
    if PLATFORM not in ctx.meta:
        return
    name, options, unread = ctx.meta[PLATFORM]
    source = ParameterSource.DEFAULT_MAP
    taken = {key: v for key, v in options.items() if ctx.get_parameter_source(key) is source}
    said = ", ".join(f"--{key.replace('_', '-')} {text}" for key, text in taken.items())
    log(f"on {name}: {said or 'no option'} comes from it", platform=name, options=taken)
    for sentence in unread:
        log(f"on {name}: {sentence}", level=logging.WARNING, platform=name)


def _several(command: click.Command) -> set[str]:
    """Give the names of the options that may be given several times."""
    return {str(param.name) for param in command.params if isinstance(param.type, Lines)}


def common_options(command: Any) -> Any:
    """Add what every command takes; the last to be declared is the first in the help."""
    command = click.option(
        "--log-format",
        type=click.Choice(["auto", "text", "json"]),
        default="auto",
        show_default=True,
        envvar="REGRAFT_LOG_FORMAT",
        help="Bars and tables (text) or JSON lines; auto: text on a terminal.",
    )(command)
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        envvar="REGRAFT_CONFIG",
        is_eager=True,
        expose_value=False,
        callback=read_defaults,
        help="YAML file with options; a flag or an environment variable beats it.",
    )(command)


def config_options(kind: type) -> Callable[[Any], Any]:
    """Give what adds an option for every field of a configuration, the required ones first."""
    types = typing.get_type_hints(kind)

    def add(command: Any) -> Any:
        ordered = sorted(fields(kind), key=lambda spec: not _is_required(spec))
        for spec in reversed(ordered):
            command = _declared(types[spec.name], spec)(command)
        return command

    return add


def _is_required(spec: Field[Any]) -> bool:
    return spec.default is MISSING


def _declared(hint: Any, spec: Field[Any]) -> Callable[[Any], Any]:
    several = typing.get_origin(hint) is tuple
    kinds = [t for t in typing.get_args(hint) if t not in (type(None), Ellipsis)]
    (kind,) = kinds or [hint]
    required = _is_required(spec)
    # click takes an explicit default, even None, for a value: a required option has none.
    settings = {"required": True} if required else {"default": spec.default}
    return option(
        spec.name,
        type=Lines() if several else _type(kind, spec.metadata),
        multiple=several,
        is_flag=kind is bool,
        show_default=not required and spec.default not in (None, False, ()),
        help=spec.metadata["help"],
        **settings,
    )


def _type(kind: type, metadata: Mapping[str, Any]) -> Any:
    if metadata["choices"]:
        return click.Choice(metadata["choices"])
    if metadata["special"]:
        return NumberOr(metadata["special"])
    return click.Path(path_type=Path) if kind is Path else kind


class Lines(click.ParamType[str]):
    """Text that may be given several times; in an environment variable one a line."""

    name = "text"

    def split_envvar_value(self, rv: str) -> list[str]:
        """Give the lines that are not empty: a URI may have spaces in it."""
        return self.split(rv)

    @staticmethod
    def split(text: str) -> list[str]:
        """Give the lines of a text that are not empty."""
        return [line.strip() for line in text.splitlines() if line.strip()]


class NumberOr(click.ParamType[int | None]):
    """An integer, or a word that stands for None."""

    def __init__(self, word: str) -> None:
        self.name = f"integer|{word}"
        self._word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Give the integer, or None for the word; click's usage error for anything else."""
        return None if value == self._word else click.INT.convert(value, param, ctx)


def option(name: str, **settings: Any) -> Callable[[Any], Any]:
    """Declare `--some-name`, which is also `REGRAFT_SOME_NAME`."""
    flag = "--" + name.replace("_", "-")
    return click.option(flag, envvar=f"REGRAFT_{name.upper()}", **settings)


def begin(log_format: str) -> tuple[str, Progress, Console]:
    """Set up logging and refuse misspelt variables; gives what `terminal.set_up` does."""
    output = set_up(log_format)
    context = click.get_current_context()
    check_environment(context.find_root().command)
    tell_platform(context)
    return output


def check_environment(root: click.Command) -> None:
    """Refuse a REGRAFT_ variable that is no option: a misspelt one would silently do nothing."""
    known = set(_variables(root))
    for name in sorted(os.environ):
        if name.startswith("REGRAFT_") and name not in known and not SERVICE_LINK.fullmatch(name):
            raise ConfigError(
                f"the environment variable {name} is no option{did_you_mean(name, known)}",
                hint="`python -m job run --help` lists the options; remove it or mend its name",
            )


def _variables(command: click.Command) -> Iterator[str]:
    """Give the variables of a command and of all below it."""
    yield from (str(param.envvar) for param in command.params if param.envvar)
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from _variables(child)
