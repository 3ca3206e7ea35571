"""The configuration of a run: every option, its default, its help and its bounds, once.

`job.cli` makes the flags, the environment variables and the keys of the YAML file from these
fields, so an option that is added here is everywhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from job.config.declare import check_bounds, option
from job.config.fitting import MULTILABEL, FitOptions
from job.errors import ConfigError
from job.redact import redact


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(FitOptions):
    """What `run` and `plan` are asked to do.

    Raises ConfigError when a value is out of its bounds or two values contradict each other.
    """

    force: bool = option(
        "Train and publish even when inputs and configuration are those of the version in service.",
        False,
    )
    allow_label_change: bool = option(
        "Let labels of the version in service be removed, and class indices change.", False
    )
    min_accuracy: float | None = option(
        "Refuse a model whose test accuracy is below this; multilabel: its subset accuracy, the "
        "share of images with exactly the right labels.",
        low=0, high=1,
    )  # fmt: skip
    min_mean_average_precision: float | None = option(
        "multilabel: refuse a model whose mean average precision on the test images is below this.",
        low=0, high=1,
    )  # fmt: skip
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
        "Seconds after which new embeddings and the state of the fit are saved; a job that is "
        "killed loses no more.",
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
        self.check_inputs()
        self.check_fit()
        if self.min_mean_average_precision is not None and self.task != MULTILABEL:
            raise ConfigError(
                f"--min-mean-average-precision means nothing to --task {self.task}",
                hint=f"leave it out and give --min-accuracy, or give --task {MULTILABEL}",
            )
        for flag, place in self._written():
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

    def _written(self) -> tuple[tuple[str, str | None], ...]:
        """Give the places that are written to, with their options."""
        return (
            ("--models", self.models),
            ("--cache", self.cache_uri),
            ("--summaries", self.summaries),
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


def contains(outer: str, inner: str) -> bool:
    """Tell whether the place `inner` is `outer` or lies below it."""
    first, second = _place(outer), _place(inner)
    return second[: len(first)] == first


def _place(uri: str) -> tuple[str, ...]:
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return ("file", *Path(parts.path or ".").resolve().parts)
    return (parts.scheme, parts.netloc, *filter(None, parts.path.split("/")))
