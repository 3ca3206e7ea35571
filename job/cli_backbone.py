"""The commands for backbones: to build one that comes with Regraft, to put some into an image."""

from __future__ import annotations

from pathlib import Path

import click

from job.options import begin, common_options
from job.progress import import_tensorflow


@click.group()
def backbone() -> None:
    """Build the backbones that come with Regraft, and prefetch others."""


@backbone.command()
@common_options
@click.argument("handle")
@click.argument("folder", type=click.Path(path_type=Path))
def build(log_format: str, handle: str, folder: Path) -> None:
    """Write HANDLE (builtin:efficientnet-lite0) to FOLDER as a TensorFlow Hub module."""
    begin(log_format)
    import_tensorflow()
    from job.backbone import build_builtin

    build_builtin(handle, folder)


@backbone.command()
@common_options
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("handles", nargs=-1, required=True)
def prefetch(log_format: str, folder: Path, handles: tuple[str, ...]) -> None:
    """Put the backbones that HANDLES (builtin:, https://) name into FOLDER.

    The image's build does this. A run finds them by the same handles, without a network, in the
    folder `backbones` beside the package `job`.
    """
    begin(log_format)
    import_tensorflow()
    from job import prefetch as prefetching

    prefetching.prefetch(handles, folder)
