"""The command that sends the job to a cluster and follows it there."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from job.cli_announce import announce
from job.config import RunConfig
from job.endings import reason_of
from job.errors import ConfigError, RegraftError, Stopped
from job.guard import GUARD, Terminated
from job.options import begin, check_environment, common_options, option
from job.progress import log
from job.result import Result

if TYPE_CHECKING:
    from job.submit.cluster import Cluster
    from job.submit.render import Object, Rendered

# Seconds that a question on the terminal waits for its answer.
ANSWER_SECONDS = 300.0
HINT = "`python -m job run --help` lists the options"


@click.command()
@common_options
@option("image", help="Image of the container `regraft`; the overlay's by default.")
@option("job_name", help="Name of the Job; the overlay's with the time behind it by default.")
@option("namespace", help="Namespace; the overlay's by default, then the context's.")
@option("kubeconfig", type=click.Path(path_type=Path), help="$KUBECONFIG, ~/.kube/config, or the "
        "pod that this runs in by default.")  # fmt: skip
@option("context", help="Context of the kubeconfig; its current one by default.")
@click.option("--wait/--no-wait", default=True, envvar="REGRAFT_WAIT", show_default=True,
              help="Follow the Job to its end, or print its name and leave it.")  # fmt: skip
@option("dry_run", is_flag=True, help="Print the YAML that would be applied; needs no cluster.")
@option("start_timeout", type=click.FloatRange(min=0), default=1800.0, show_default=True,
        help="Seconds without a started pod until the Job is deleted; 0: for ever.")  # fmt: skip
@option("api_timeout", type=click.FloatRange(min=1), default=300.0, show_default=True,
        help="Seconds without an answer of the cluster after which to give up.")  # fmt: skip
@option("summary_file", type=click.Path(path_type=Path), help="Where a Markdown summary is "
        "appended on this side; $GITHUB_STEP_SUMMARY where that is set.")  # fmt: skip
@option("junit_file", type=click.Path(path_type=Path), help="Where the run goes as JUnit XML on "
        "this side.")  # fmt: skip
@option("result_file", type=click.Path(path_type=Path), help="Where the result goes on this side, "
        "as one JSON object.")  # fmt: skip
@click.argument("overlay")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF run]")
def submit(
    log_format: str, overlay: str, options: tuple[str, ...], wait: bool, dry_run: bool, **given: Any
) -> None:
    """Send the job of OVERLAY to a Kubernetes cluster, follow it, and end with its exit code.

    OVERLAY is a kustomize folder, a file of rendered YAML, or - for stdin. OPTIONS, behind `--`,
    are those of `run`; they beat the overlay's.
    """
    style, _, _ = begin(log_format)
    result: dict[str, Any] | None = None
    rendered = None
    try:
        rendered = _render(overlay, options, given)
        if dry_run:
            click.echo(rendered.as_yaml(), nl=False)
            return
        cluster, job = _send(rendered, given)
        metadata = job["metadata"]
        if not wait:
            click.echo(json.dumps({"job": metadata["name"], "namespace": metadata["namespace"]}))
            return
        result, error = _follow(cluster, job, style, given["start_timeout"])
        if error:
            raise error
    except (RegraftError, KeyboardInterrupt, Terminated) as error:
        result = result or _failed(reason_of(error, GUARD.raised))
        GUARD.settle()
        raise
    finally:
        if result is not None and wait and not dry_run:
            line = json.dumps(result, separators=(",", ":"))
            announce(line, given | {"name": _model_name(rendered, options)})


def _model_name(rendered: Rendered | None, options: tuple[str, ...]) -> str:
    """Give the --name that the run has been given, empty where that is not known here."""
    from job.submit.render import settings

    for before, here in zip(("", *options), options, strict=False):
        if before == "--name" or here.startswith("--name="):
            return here.removeprefix("--name=")
    return settings(rendered)[0].get("REGRAFT_NAME", "") if rendered else ""


def _render(overlay: str, options: tuple[str, ...], given: dict[str, Any]) -> Rendered:
    from job.submit.render import render

    rendered = render(
        overlay, image=given["image"], name=given["job_name"], namespace=given["namespace"],
        options=options,
    )  # fmt: skip
    check(rendered, options)
    return rendered


def _send(rendered: Rendered, given: dict[str, Any]) -> tuple[Cluster, Object]:
    """Apply the objects, the Job last; gives the Job as the server has it."""
    from job.submit.cluster import connect

    kubeconfig = given["kubeconfig"]
    cluster = connect(kubeconfig and str(kubeconfig), given["context"], given["api_timeout"])
    namespace = rendered.job["metadata"].get("namespace", cluster.namespace)
    for item in rendered.others:
        cluster.apply(item, namespace)
    job = cluster.create_job(rendered.job, namespace)
    log(f"Job {rendered.name} is made in {namespace}", job=rendered.name, namespace=namespace)
    return cluster, job


def _follow(
    cluster: Cluster, job: Object, style: str, start_timeout: float
) -> tuple[dict[str, Any], RegraftError | None]:
    """Follow the Job; a signal leaves it running, unless somebody says that it shall not."""
    from job.submit.follow import Follower
    from job.submit.show import Screen
    from job.submit.state import State

    state = State(job)
    GUARD.stop_timeout = ANSWER_SECONDS
    follows, ends = state.command("logs -f job/"), state.command("delete job ")
    hint = f"it goes on: `{follows}` shows its log, `{ends}` ends it"
    GUARD.last_words = lambda error, doing: log(f"Job {state.name} is left: {hint}")
    several = (job["spec"].get("parallelism") or 1) > 1
    try:
        outcome = Follower(cluster, job, Screen(style, several=several), start_timeout).follow()
        GUARD.settle()
        return outcome.result, outcome.error
    except KeyboardInterrupt:
        said = f"Job {state.name} is left: {hint}"
        if _says_yes(f"Delete Job {state.name}? [y/N] "):
            cluster.delete(job)
            said = f"Job {state.name} is deleted"
        log(said)
        GUARD.settle()
        raise KeyboardInterrupt(f"interrupted; {said}") from None
    except Terminated:
        GUARD.settle()
        raise Stopped(f"stopped by SIGTERM; Job {state.name} is left", hint=hint) from None


def _says_yes(question: str) -> bool:
    """Ask on the terminal; no where there is none."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    click.echo(question, nl=False, err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _failed(error: BaseException) -> dict[str, Any]:
    result = Result()
    result.fail(error)
    if result.error and isinstance(error, KeyboardInterrupt):
        result.error["hint"] = ""  # its message tells what became of the Job
    return asdict(result)


def check(rendered: Rendered, options: tuple[str, ...]) -> None:
    """Raise ConfigError for options that `run` would refuse in the pod, as far as can be told here.

    What a Secret, or a ConfigMap that is not in the overlay, sets is not known, nor is what
    Kubernetes puts for $(NAME); then only the flags are looked at, or nothing.
    """
    from job.submit.render import settings

    arguments = [str(argument) for argument in rendered.container.get("args") or []]
    if arguments[:1] not in (["run"], ["plan"]):
        if options:
            raise ConfigError(
                f"the container does not run `run`, but {' '.join(arguments[:3])!r}",
                hint="begin its args with `run`, or leave the options behind -- out",
            )
        return
    variables, whole = settings(rendered)
    if any("$(" in text for text in (*arguments, *variables.values())):
        return
    kept = _without_config(arguments[1:])
    whole = whole and kept == arguments[1:] and "REGRAFT_CONFIG" not in variables
    variables.pop("REGRAFT_CONFIG", None)
    root = click.get_current_context().find_root()
    command = root.command.get_command(root, arguments[0])  # type: ignore[attr-defined]
    with _environment(variables):
        check_environment(root.command)
        try:
            context = command.make_context(arguments[0], kept, parent=root)
        except click.MissingParameter as error:
            if whole:
                raise ConfigError(error.format_message(), hint=HINT) from error
            return
        except click.UsageError as error:
            raise ConfigError(error.format_message(), hint=HINT) from error
    if whole:
        RunConfig(**{name: v for name, v in context.params.items() if name != "log_format"})


def _without_config(arguments: list[str]) -> list[str]:
    """Leave --config out: its file is the pod's."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and not argument.startswith("--config="):
            skip = argument == "--config"
            kept += [] if skip else [argument]
        else:
            skip = False
    return kept


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Have the pod's variables in the place of our own."""
    ours = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("REGRAFT_")}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(ours)
