"""How options are declared, checked against their bounds, and read from a file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import field, fields
from pathlib import Path
from typing import Any

from job.errors import ConfigError


def option(
    description: str,
    default: Any = None,
    *,
    low: float | None = None,
    high: float | None = None,
    required: bool = False,
    choices: tuple[str, ...] = (),
    special: str = "",
) -> Any:
    """Declare a field that is also a command-line option; `low` and `high` are inclusive.

    `special` is the word for None in place of a number.
    """
    metadata = {
        "help": description, "low": low, "high": high, "choices": choices, "special": special,
    }  # fmt: skip
    return field(metadata=metadata) if required else field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """Give the flag of an option: `--some-name` for some_name."""
    return "--" + name.replace("_", "-")


def check_bounds(config: Any) -> None:
    """Check every number of a config dataclass against the bounds of its declaration."""
    for spec in fields(config):
        value = getattr(config, spec.name)
        low, high = spec.metadata.get("low"), spec.metadata.get("high")
        choices = spec.metadata.get("choices")
        if choices and value not in choices:
            raise ConfigError(
                f"{flag(spec.name)} is {value!r}", hint=f"give one of {', '.join(choices)}"
            )
        if value is None or isinstance(value, str | bool | tuple):
            continue
        # `not (value >= low)` rather than `value < low`: NaN must not pass.
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise ConfigError(f"{flag(spec.name)} is {value}", hint=f"give a number {bounds}")


def read_options(path: Path, known: set[str], several: set[str]) -> dict[str, Any]:
    """Read `option: value` lines from a YAML file; `-` and `_` are the same in a name.

    An option of `several` may have a list, or `old: new` lines, which become `old=new`.

    Raises ConfigError when the file is something else or has an option that is not `known`.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    # A date that no calendar has is a ValueError, brackets without end a RecursionError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected `option: value` lines")
    options = {str(key).replace("-", "_"): value for key, value in values.items()}
    refuse_unknown(options, known, f"--config {path}")
    return {key: _listed(v) if key in several else v for key, v in options.items()}


def refuse_unknown(names: Iterable[str], known: set[str], place: str) -> None:
    """Raise ConfigError for the first name that is not `known`; `place` is where it stands."""
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{place}: no such option: {name}{did_you_mean(name, known)}",
                hint="`python -m job run --help` lists the options",
            )


def _listed(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{old}={'' if new is None else new}" for old, new in value.items()]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def did_you_mean(name: str, known: set[str]) -> str:
    """Give the end of a message that proposes the known name nearest to a misspelt one."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
