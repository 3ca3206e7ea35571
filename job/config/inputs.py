"""What a run learns from: the images, their split, and the backbone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from job.config.declare import option
from job.errors import ConfigError

DEFAULT_BACKBONE = "builtin:efficientnet-lite0"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """Where images, models and the backbone are, and how the images are split."""

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

    def check_inputs(self) -> None:
        """Raise ConfigError for a name that is none, and for a split that leaves too little."""
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
