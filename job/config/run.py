"""The configuration of a run: every option, its default, its help and its bounds, once.

`job.cli` makes the flags, the environment variables and the keys of the YAML file from these
fields, so an option that is added here is everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from job.config.declare import check_bounds, option
from job.config.fitting import MULTILABEL, FitOptions
from job.errors import ConfigError

# What stands for the number in `--deliver`.
VERSION = "{version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(FitOptions):
    """What `run` and `plan` are asked to do.

    Raises ConfigError when a value is out of its bounds or two values contradict each other.
    """

    models: str = option("Where models are published: gs://bucket/prefix or a path.",
                         required=True)  # fmt: skip
    name: str = option("Name of the model; versions go to MODELS/NAME/.", required=True)
    resplit: bool = option(
        "Assign every image to a side of the split anew, rather than keep those it has in earlier "
        "versions; trains and publishes even when nothing else has changed.",
        False,
    )
    force: bool = option(
        "Train and publish even when inputs and configuration are those of the version in service.",
        False,
    )
    allow_label_change: bool = option(
        "Let labels of the version in service be removed, and class indices change.", False
    )
    drop_suspects: bool = option(
        "Leave training images whose label is likely wrong out, as the data doctor tells them.",
        False,
    )
    skip_doctor: bool = option(
        "Leave the data doctor's findings out of the report; they take a minute at 100,000 images.",
        False,
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
    workers_count: int = option(
        "Jobs that share the work of embedding through --cache; the one with index 0 goes on.",
        1, low=1, high=10000,
    )  # fmt: skip
    workers_index: int | None = option(
        "Which of them this is, from 0; $JOB_COMPLETION_INDEX when it is not given.", low=0
    )
    workers_timeout: float = option(
        "Seconds without a new embedding from the others after which job 0 does their share, and "
        "that the workers of $TF_CONFIG wait for one another.",
        300.0, low=1,
    )  # fmt: skip
    deliver: str | None = option(
        "Where the files of the version are put once more, without folders around them: for a "
        "platform that takes a model from a place of its own. {version} in it is the number."
    )
    summary_file: Path | None = option(
        "Where a Markdown summary is appended; $GITHUB_STEP_SUMMARY where that is set."
    )
    junit_file: Path | None = option(
        "Where the gate's checks, or what ended the run before them, go as JUnit XML."
    )
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
        self.check_inputs()
        self.check_fit()
        if self.drop_suspects and (self.skip_doctor or self.task == MULTILABEL):
            other = "--skip-doctor" if self.skip_doctor else f"--task {MULTILABEL}"
            raise ConfigError(
                f"--drop-suspects means nothing to {other}",
                hint="the doctor tells suspects, among images of one label: leave one of them out",
            )
        self.check_apart(
            ("--models", self.models), ("--cache", self.cache_uri),
            ("--summaries", self.summaries), ("--deliver", self.deliver),
        )  # fmt: skip
        if self.min_mean_average_precision is not None and self.task != MULTILABEL:
            raise ConfigError(
                f"--min-mean-average-precision means nothing to --task {self.task}",
                hint=f"leave it out and give --min-accuracy, or give --task {MULTILABEL}",
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
        return self.cache_beside(self.models)
