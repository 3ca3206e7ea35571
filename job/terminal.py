"""Where a command's words go: the style of its log, its bars, its tables."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from job.progress import BarProgress, LogProgress, Progress, set_up_logging

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Without a terminal there is no width to fold to, and 80 columns would cut a path in two.
WIDTH = 160


def set_up(log_format: str) -> tuple[str, Progress, Console]:
    """Give the style of the output (text or json), where progress goes, and stderr's console."""
    from rich.console import Console

    terminal = sys.stderr.isatty()
    console = Console(stderr=True, width=None if terminal else WIDTH)
    style = ("text" if terminal else "json") if log_format == "auto" else log_format
    set_up_logging(style)
    return style, BarProgress(console) if terminal and style == "text" else LogProgress(), console


def print_table(table: RenderableType) -> None:
    """Print a table to stdout, at the terminal's width or wide enough not to cut a path."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
