"""An overlay becomes the objects to apply, and one Job under a name of its own."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from job.errors import ConfigError

Object = dict[str, Any]

CONTAINER = "regraft"
OPTION = "REGRAFT_"
# A label and a host name of Kubernetes: what a Job's name becomes both of.
LONGEST = 63
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

# How a folder is rendered: the first program that is there does it, and kubectl is among our
# requirements: beside the Python that runs this.
RENDERERS = (("kubectl", "kustomize"), ("kustomize", "build"))
RENDER_TIMEOUT = 120


class Loader(yaml.SafeLoader):
    """Reads YAML as Kubernetes does, to which a date is text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(slots=True)
class Rendered:
    """What is to be applied: the Job, and `others`, which have to be there before it."""

    job: Object
    others: list[Object]

    @property
    def name(self) -> str:
        """Give the Job's name."""
        return str(self.job["metadata"]["name"])

    @property
    def container(self) -> Object:
        """Give the container of the job's own image; ConfigError when the pod has none."""
        spec = self.job.get("spec", {}).get("template", {}).get("spec", {})
        containers: list[Object] = spec.get("containers") or []
        for container in containers:
            if container.get("name") == CONTAINER:
                return container
        raise ConfigError(
            f"the Job has no container {CONTAINER!r}, only "
            f"{[container.get('name') for container in containers]}",
            hint=f"call the container that runs the job's image {CONTAINER!r}",
        )

    def as_yaml(self) -> str:
        """Give the objects as YAML documents, the Job last."""
        return yaml.safe_dump_all([*self.others, self.job], sort_keys=False, explicit_start=True)


def render(
    overlay: str,
    *,
    image: str | None = None,
    name: str | None = None,
    namespace: str | None = None,
    options: tuple[str, ...] = (),
) -> Rendered:
    """Read an overlay, and give its Job a new name, an image and options of `run`.

    `overlay` is a kustomize folder, a YAML file or `-`. Raises ConfigError for what cannot be read,
    and when there is not exactly one Job or CronJob.
    """
    rendered = _divided(_objects(_text(overlay), overlay), overlay)
    indexed = rendered.job["spec"].get("completionMode") == "Indexed"
    last = int(rendered.job["spec"].get("completions") or 1) - 1
    # The host of an Indexed Job's pod is called after the Job and its index.
    room = LONGEST - (len(f"-{last}") if indexed else 0)
    rendered.job["metadata"]["name"] = name or _new_name(rendered.name, room)
    _check_name(rendered.name, room)
    if image:
        rendered.container["image"] = image
    if options:
        container = rendered.container
        container["args"] = [*(container.get("args") or []), *options]
    if namespace:
        _place(rendered, namespace)
    return rendered


def settings(rendered: Rendered) -> tuple[dict[str, str], bool]:
    """Give the REGRAFT_ variables that the pod will have, and whether these are all.

    Those from a Secret, or from a ConfigMap that is not in the overlay, are not known here.
    """
    maps = {
        item["metadata"]["name"]: item.get("data") or {}
        for item in rendered.others
        if item["kind"] == "ConfigMap"
    }
    found: dict[str, str] = {}
    whole = True
    for source in rendered.container.get("envFrom") or []:
        values = maps.get((source.get("configMapRef") or {}).get("name"))
        whole = whole and values is not None
        prefix = source.get("prefix") or ""
        found |= {f"{prefix}{key}": str(value) for key, value in (values or {}).items()}
    for entry in rendered.container.get("env") or []:
        reference = (entry.get("valueFrom") or {}).get("configMapKeyRef") or {}
        value = maps.get(reference.get("name"), {}).get(reference.get("key"), entry.get("value"))
        if value is None and "valueFrom" in entry:
            whole = whole and not entry["name"].startswith(OPTION)
            found.pop(entry["name"], None)
        else:
            found[entry["name"]] = str(value or "")
    return {key: value for key, value in found.items() if key.startswith(OPTION)}, whole


def _text(overlay: str) -> str:
    if overlay == "-":
        return sys.stdin.read()
    try:
        return _built(Path(overlay)) if Path(overlay).is_dir() else Path(overlay).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{overlay} cannot be read: {getattr(error, 'strerror', error)}",
            hint="give a kustomize folder, a YAML file, or - for stdin",
        ) from error


def _built(folder: Path) -> str:
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    for program, command in RENDERERS:
        if found := shutil.which(program, path=places):
            line = [found, command, str(folder)]
            done = subprocess.run(line, capture_output=True, text=True, timeout=RENDER_TIMEOUT)  # noqa: S603
            if done.returncode:
                raise ConfigError(
                    f"{folder} is no overlay that can be built: {done.stderr.strip()}",
                    hint=f"`{program} {command} {folder}` shows the same",
                )
            return done.stdout
    raise ConfigError(
        f"{folder} is a kustomize folder, and neither kubectl nor kustomize is on PATH",
        hint="install one of them, or give the rendered YAML as a file, or as - on stdin",
    )


def _objects(text: str, overlay: str) -> list[Object]:
    try:
        found = [item for item in yaml.load_all(text, Loader) if item]
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{overlay} is no YAML: {error}", hint="mend the file") from error
    flat: list[Object] = []
    for item in found:
        named = isinstance(item, dict) and isinstance(item.get("metadata"), dict)
        if isinstance(item, dict) and item.get("kind") == "List":
            flat += item.get("items") or []
        elif named and item.get("apiVersion") and item.get("kind") and item["metadata"].get("name"):
            flat.append(item)
        else:
            raise ConfigError(
                f"{overlay} has something that is no object of Kubernetes: {str(item)[:100]}",
                hint="each needs apiVersion, kind and metadata.name",
            )
    return flat


def _divided(objects: list[Object], overlay: str) -> Rendered:
    """Tell the Job, or the one that a CronJob would make, from the rest."""
    jobs = [item for item in objects if item["kind"] in ("Job", "CronJob")]
    if len(jobs) != 1:
        names = ", ".join(f"{item['kind']} {item['metadata']['name']}" for item in jobs)
        raise ConfigError(
            f"{overlay} has {len(jobs)} Jobs and CronJobs, expected one: {names or 'none'}",
            hint="give an overlay of k8s/, such as k8s/base",
        )
    (found,) = jobs
    job = copy.deepcopy(found)
    if found["kind"] == "CronJob":
        template = job["spec"]["jobTemplate"]
        metadata = {**(template.get("metadata") or {}), "name": found["metadata"]["name"]}
        if "namespace" in found["metadata"]:
            metadata["namespace"] = found["metadata"]["namespace"]
        job = {"apiVersion": found["apiVersion"], "kind": "Job", "metadata": metadata}
        job["spec"] = template["spec"]
    job.setdefault("spec", {})
    return Rendered(job, [item for item in objects if item is not found])


def _new_name(base: str, room: int) -> str:
    """Put the time, in milliseconds, behind a name: two submissions hardly ever share one."""
    number, digits = time.time_ns() // 1_000_000, ""
    while number:
        number, digit = divmod(number, len(DIGITS))
        digits = DIGITS[digit] + digits
    return f"{base[: room - len(digits) - 1].rstrip('-.')}-{digits}"


def _check_name(name: str, room: int) -> None:
    if len(name) > room or not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a Job's name",
            hint=f"give at most {room} of a-z, 0-9 and -, with a letter or digit at both ends",
        )


def _place(rendered: Rendered, namespace: str) -> None:
    """Put the Job into a namespace; ConfigError when the overlay has it in another one."""
    for item in (rendered.job, *rendered.others):
        found = item["metadata"].get("namespace", namespace)
        if found != namespace:
            raise ConfigError(
                f"{item['kind']} {item['metadata']['name']} is in the namespace {found}, and "
                f"--namespace is {namespace}",
                hint="leave --namespace out, or change `namespace:` in the overlay",
            )
    rendered.job["metadata"]["namespace"] = namespace
