"""The configuration of `inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from job.config.declare import check_bounds, option
from job.config.reading import ReadOptions
from job.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectConfig(ReadOptions):
    """What `inspect` is asked to do.

    Raises ConfigError when a value is out of its bounds or two values contradict each other.
    """

    output: str = option(
        "Where the page, the CSV and the findings as JSON go: gs://bucket/prefix or a path.",
        "inspection",
    )
    models: str | None = option(
        "Where models are published; with --name, what changed since the data of the version in "
        "service is told as well."
    )
    name: str | None = option("Name of that model.")
    summary_file: Path | None = option(
        "Where a Markdown summary is appended; $GITHUB_STEP_SUMMARY where that is set."
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        self.check_inputs()
        if (self.models is None) is not (self.name is None):
            raise ConfigError(
                f"--models is {self.models!r} and --name is {self.name!r}",
                hint="give both, to compare with the data of the version in service, or neither",
            )
        self.check_apart(("--output", self.output), ("--cache", self.cache_uri))

    @property
    def cache_uri(self) -> str | None:
        """Give where embeddings are kept, None where they are not."""
        return self.cache_beside(self.models)
