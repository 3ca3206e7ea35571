"""The configuration of a run: every option, its default, its help and its bounds, once.

`job.cli` makes the flags, the environment variables and the keys of the YAML file from these
fields, so an option that is added here is everywhere.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from job.errors import ConfigError
from job.redact import redact

DEFAULT_BACKBONE = "builtin:efficientnet-lite0"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What `run` and `plan` are asked to do.

    Raises ConfigError when a value is out of its bounds or two values contradict each other.
    """

    data: str = option("Labelled images, one folder per label: gs://bucket/prefix or a path.",
                       required=True)  # fmt: skip
    models: str = option("Where models are published: gs://bucket/prefix or a path.",
                         required=True)  # fmt: skip
    name: str = option("Name of the model; versions go to MODELS/NAME/.", required=True)
    backbone: str = option(
        "Pretrained feature extractor: builtin:efficientnet-lite0 (lite1, lite2) or a TensorFlow "
        "Hub image feature vector (folder, .tar.gz, gs:// or https://).",
        DEFAULT_BACKBONE,
    )
    image_size: int | None = option(
        "Input size in pixels, for a module that does not fix its own.", low=8, high=4096
    )
    validation_percent: float = option(
        "Share of the images that choose the L2 penalty.", 10.0, low=1, high=80
    )
    test_percent: float = option(
        "Share of the images that are only scored, at the end.", 10.0, low=1, high=80
    )
    max_skipped: float = option(
        "Percentage of unreadable images above which the job gives up.", 5.0, low=0, high=100
    )
    l2: float | None = option(
        "L2 penalty of the head; chosen on the validation images when it is not given.", low=0
    )
    force: bool = option(
        "Train and publish even when inputs and configuration are those of the version in service.",
        False,
    )
    allow_label_change: bool = option(
        "Let labels of the version in service be removed, and class indices change.", False
    )
    min_accuracy: float | None = option(
        "Refuse a model whose test accuracy is below this.", low=0, high=1
    )
    min_recall_per_class: float | None = option(
        "Refuse a model whose test recall of any label is below this.", low=0, high=1
    )
    gate_alpha: float = option(
        "Refuse a model that is worse than the one in service on the same test images at this "
        "significance (exact McNemar tests, overall and per label); 0 turns the comparison off.",
        0.05,
        low=0,
        high=0.5,
    )
    serving_url: str | None = option(
        "TensorFlow Serving's REST address (http://host:8501): wait until it serves the new "
        "version, compare its answers, and roll back when it does not."
    )
    serving_timeout: float = option(
        "Seconds that the server at --serving-url has to come up with it.", 180.0, low=1, high=3600
    )
    cache: str | None = option(
        "Where embeddings are kept for later runs: gs://bucket/prefix or a path, or `off`; "
        "MODELS/.embeddings when it is not given."
    )
    cache_dtype: str = option(
        "Precision of embeddings; float16 halves the cache.", "float32",
        choices=("float32", "float16"),
    )  # fmt: skip
    exact_decode: bool = option(
        "Decode JPEGs in full before they are made smaller, in training and in the exported model; "
        "large ones then take twice as long.",
        False,
    )
    batch_size: int | None = option(
        "Images per forward pass of the backbone, or `auto`: 32, on a GPU as many as pay.",
        low=1, high=4096, special="auto",
    )  # fmt: skip
    max_pixels: int = option(
        "Pixels above which an image is skipped, by its header; the exported model refuses it too.",
        2**26, low=1, high=2**30,
    )  # fmt: skip
    fetch_threads: int = option("Images fetched and decoded at once.", 32, low=1, high=512)
    storage_deadline: float = option(
        "Seconds that one request to a bucket is tried for; then the job ends with exit code 138.",
        300.0, low=1,
    )  # fmt: skip
    checkpoint_interval: float = option(
        "Seconds after which new embeddings are saved; a job that is killed loses no more.",
        60.0, low=0,
    )  # fmt: skip
    stop_timeout: float = option(
        "Seconds after SIGTERM within which the job saves what it has and is gone; keep it below "
        "the pod's terminationGracePeriodSeconds.",
        20.0, low=1,
    )  # fmt: skip
    stall_timeout: float = option(
        "Seconds without any progress after which the job ends with exit code 138, the stacks of "
        "its threads in the log.",
        900.0, low=1,
    )  # fmt: skip
    workers_count: int = option(
        "Jobs that share the work of embedding through --cache; the one with index 0 goes on.",
        1, low=1, high=10000,
    )  # fmt: skip
    workers_index: int | None = option(
        "Which of them this is, from 0; $JOB_COMPLETION_INDEX when it is not given.", low=0
    )
    workers_timeout: float = option(
        "Seconds without a new embedding from the others after which job 0 does their share.",
        300.0, low=1,
    )  # fmt: skip
    work_dir: Path | None = option(
        "Folder for fetched modules, embeddings at work and the export; a temporary one when it is "
        "not given."
    )
    summary_file: Path | None = option(
        "Where a Markdown summary is appended; $GITHUB_STEP_SUMMARY where that is set."
    )
    junit_file: Path | None = option("Where the gate's checks go as JUnit XML.")
    result_file: Path | None = option(
        "Where the result goes as one JSON object; /dev/termination-log where it is writable."
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{0,127}", self.name):
            raise ConfigError(
                f"--name is {self.name!r}",
                hint="start with a letter; then letters, digits, '.', '_' and '-', at most 128",
            )
        if self.validation_percent + self.test_percent > 90:
            raise ConfigError(
                f"--validation-percent {self.validation_percent:g} and --test-percent "
                f"{self.test_percent:g} leave less than 10 % to train on",
                hint="lower one of them",
            )
        for flag, place in (("--models", self.models), ("--cache", self.cache_uri)):
            if place and contains(self.data, place):
                raise ConfigError(
                    f"{flag} {place} lies inside --data {self.data}",
                    hint="keep them apart: what the job writes would become training images",
                )
        if (self.workers_index or 0) >= self.workers_count > 1:
            raise ConfigError(
                f"--workers-index is {self.workers_index} of {self.workers_count} jobs",
                hint=f"give a number from 0 to {self.workers_count - 1}",
            )
        if self.workers_count > 1 and not self.cache_uri:
            raise ConfigError(
                "--cache is off, and --workers-count jobs share their work through it",
                hint="give them a --cache that all of them can write to",
            )

    @property
    def cache_uri(self) -> str | None:
        """Give where embeddings are kept, None where they are not."""
        if self.cache is None:
            return f"{self.models.rstrip('/')}/.embeddings"
        return None if self.cache == "off" else self.cache

    def as_json(self) -> dict[str, Any]:
        """Give the options as JSON can hold them, secrets in URLs left out."""
        return {
            key: redact(str(value)) if isinstance(value, Path | str) else value
            for key, value in asdict(self).items()
        }


def check_bounds(config: Any) -> None:
    """Check every number of a config dataclass against the bounds of its declaration."""
    for spec in fields(config):
        value = getattr(config, spec.name)
        low, high = spec.metadata.get("low"), spec.metadata.get("high")
        choices = spec.metadata.get("choices")
        if choices and value not in choices:
            flag = "--" + spec.name.replace("_", "-")
            raise ConfigError(f"{flag} is {value!r}", hint=f"give one of {', '.join(choices)}")
        if value is None or isinstance(value, str | bool):
            continue
        # `not (value >= low)` rather than `value < low`: NaN must not pass.
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            flag = "--" + spec.name.replace("_", "-")
            bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise ConfigError(f"{flag} is {value}", hint=f"give a number {bounds}")


def contains(outer: str, inner: str) -> bool:
    """Tell whether the place `inner` is `outer` or lies below it."""
    first, second = _place(outer), _place(inner)
    return second[: len(first)] == first


def _place(uri: str) -> tuple[str, ...]:
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return ("file", *Path(parts.path or ".").resolve().parts)
    return (parts.scheme, parts.netloc, *filter(None, parts.path.split("/")))


def read_options(path: Path, known: set[str]) -> dict[str, Any]:
    """Read `option: value` lines from a YAML file; `-` and `_` are the same in a name.

    Raises ConfigError when the file is something else or has an option that is not `known`.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected `option: value` lines")
    options = {str(key).replace("-", "_"): value for key, value in values.items()}
    for name in options:
        if name not in known:
            raise ConfigError(
                f"--config {path}: no such option: {name}{did_you_mean(name, known)}",
                hint="`python -m job run --help` lists the options",
            )
    return options


def did_you_mean(name: str, known: set[str]) -> str:
    """Give the end of a message that proposes the known name nearest to a misspelt one."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
