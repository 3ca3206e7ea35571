"""The configuration of a run, as a frozen dataclass; `run.RunConfig` has every option."""

from job.config.declare import did_you_mean, read_options
from job.config.fitting import DISTORTIONS, TFLITE
from job.config.inputs import DEFAULT_BACKBONE
from job.config.run import RunConfig, contains

__all__ = [
    "DEFAULT_BACKBONE", "DISTORTIONS", "TFLITE", "RunConfig", "contains", "did_you_mean",
    "read_options",
]  # fmt: skip
