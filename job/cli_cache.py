"""The commands for the embedding cache: what it holds, and how it is kept small."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from job.errors import ConfigError
from job.options import begin, common_options, option
from job.terminal import print_table

if TYPE_CHECKING:
    from rich.table import Table

    from job.upkeep import Usage

DAY = 86400.0
GB = 1e9


@click.group()
def cache() -> None:
    """Show and prune the embeddings that are kept for later runs."""


def cache_option(command: Any) -> Any:
    """Add the option that names a cache."""
    text = "Where embeddings are kept; for a run without --cache that is MODELS/.embeddings."
    return option("cache", required=True, help=text)(command)


@cache.command()
@common_options
@cache_option
def show(log_format: str, cache: str) -> None:
    """List what each space holds: the embeddings of one backbone, made in one way."""
    style, _, _ = begin(log_format)
    from job.storage import open_store
    from job.upkeep import usage

    spaces = usage(open_store(cache))
    if style == "text":
        print_table(_table(spaces))
    for space in spaces if style == "json" else []:
        click.echo(json.dumps(asdict(space)))


@cache.command()
@common_options
@cache_option
@option("older_than", type=click.FloatRange(min=0), help="Remove what is older, in days.")
@option(
    "max_size", type=click.FloatRange(min=0), help="Remove the oldest above this size, in GB (1e9)."
)
def prune(log_format: str, cache: str, older_than: float | None, max_size: float | None) -> None:
    """Remove old embeddings; jobs may go on meanwhile, and nothing else is touched."""
    begin(log_format)
    if older_than is None and max_size is None:
        raise ConfigError(
            "prune was given no limit, expected --older-than, --max-size or both",
            hint="`--older-than 30` removes what is older than 30 days",
        )
    from job import upkeep
    from job.storage import open_store

    pruned = upkeep.prune(
        open_store(cache),
        older_than=None if older_than is None else older_than * DAY,
        max_bytes=None if max_size is None else max_size * GB,
        now=time.time(),
    )
    click.echo(json.dumps(asdict(pruned)))


def _table(spaces: Sequence[Usage]) -> Table:
    from rich.table import Table

    total = sum(space.bytes for space in spaces)
    table = Table("space", "embeddings of", caption=f"{total / GB:.3f} GB in all")
    for name in ("shards", "rows", "GB", "oldest", "newest"):
        table.add_column(name, justify="right")
    for space in spaces:
        table.add_row(
            space.space, f"{space.dim} {space.dtype}", f"{space.shards}", f"{space.rows}",
            f"{space.bytes / GB:.3f}", _date(space.oldest), _date(space.newest),
        )  # fmt: skip
    return table


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
