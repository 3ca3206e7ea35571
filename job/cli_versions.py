"""The commands for what is published: list, promote, roll back, prune, verify."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from job.errors import ConfigError, PublishError
from job.options import begin, common_options, option
from job.progress import import_tensorflow
from job.terminal import print_table

if TYPE_CHECKING:
    from job.storage import Store


def model_options(command: Any) -> Any:
    """Add the options that name a model."""
    command = option("name", required=True, help="Name of the model.")(command)
    return option("models", required=True, help="Where models are published.")(command)


def open_model(models: str, name: str) -> Store:
    """Open the store of one model; ConfigError when no version of it was ever there."""
    from job.publish import read_listing
    from job.storage import open_store

    store = open_store(models).child(name)
    if not read_listing(store).newest:
        raise ConfigError(f"{store.uri}: no version is there", hint="check --models and --name")
    return store


@click.command()
@common_options
@model_options
def versions(log_format: str, models: str, name: str) -> None:
    """List the versions of a model, with their channels and which one is in service."""
    style, _, _ = begin(log_format)
    from job import summary
    from job.versions import list_versions

    listed = list_versions(open_model(models, name))
    if style == "text":
        print_table(summary.versions_table(listed))
    for version in listed if style == "json" else []:
        click.echo(json.dumps(asdict(version)))


@click.command()
@common_options
@model_options
@option("version", required=True, type=int, help="The version to point the channel to.")
@option("channel", default="stable", show_default=True, help="`stable`, or a name of your own.")
def promote(log_format: str, models: str, name: str, version: int, channel: str) -> None:
    """Point a channel to a version, and bring it back if it was withdrawn."""
    begin(log_format)
    from job import versions as store

    model = open_model(models, name)
    store.promote(model, version, channel)
    click.echo(
        json.dumps({"channel": channel, "version": version, "uri": f"{model.uri}/{version}"})
    )


@click.command()
@common_options
@model_options
@option("to_version", type=int, help="The version to go back to; the previous one by default.")
def rollback(log_format: str, models: str, name: str, to_version: int | None) -> None:
    """Take back the version in service: the previous one answers, the newer are set aside."""
    begin(log_format)
    from job import versions as store

    model = open_model(models, name)
    version = store.rollback(model, to_version)
    click.echo(
        json.dumps({"channel": "stable", "version": version, "uri": f"{model.uri}/{version}"})
    )


@click.command()
@common_options
@model_options
@option("keep", type=click.IntRange(min=1), default=5, show_default=True, help="Versions to keep.")
def prune(log_format: str, models: str, name: str, keep: int) -> None:
    """Delete old versions, never one that is in service or in a channel."""
    begin(log_format)
    from job import versions as store

    click.echo(json.dumps({"deleted": store.prune(open_model(models, name), keep)}))


@click.command("serving-config")
@common_options
@model_options
def serving_config(log_format: str, models: str, name: str) -> None:
    """Print a models.config for TensorFlow Serving, with the channels as version labels."""
    begin(log_format)
    from job.publish import read_channels, read_listing
    from job.serving import models_config

    model = open_model(models, name)
    whole = read_listing(model).versions
    channels = {channel: v for channel, v in read_channels(model).items() if v in whole}
    if not channels:
        raise ConfigError(
            f"{model.uri}: no channel points to a version",
            hint="`promote --version V` makes one",
        )
    click.echo(models_config(name, model.uri, channels), nl=False)


@click.command()
@common_options
@option("model", required=True, help="A version, or a model's folder (the one in service).")
def verify(log_format: str, model: str) -> None:
    """Check a version byte by byte and answer by answer against what was trained."""
    begin(log_format)
    import_tensorflow()
    from job.predict import fetch_version
    from job.verify import find_problems

    with tempfile.TemporaryDirectory(prefix="regraft-") as temporary:
        uri, folder = fetch_version(model, Path(temporary))
        problems = find_problems(folder)
    click.echo(json.dumps({"model": uri, "problems": problems}))
    if problems:
        raise PublishError(
            f"{uri}: {'; '.join(problems[:5])}",
            hint="do not serve it: roll back, and publish again",
        )


COMMANDS = (versions, promote, rollback, prune, serving_config, verify)
