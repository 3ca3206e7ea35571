"""The configuration of a run, as a frozen dataclass; `run.RunConfig` has every option."""

from job.config.declare import did_you_mean, read_options
from job.config.fitting import DISTORTIONS, MULTILABEL, SINGLE, TFLITE
from job.config.inputs import CSV, DEFAULT_BACKBONE, InputOptions, contains, is_manifest
from job.config.inspecting import InspectConfig
from job.config.reading import ReadOptions
from job.config.run import RunConfig

__all__ = [
    "CSV", "DEFAULT_BACKBONE", "DISTORTIONS", "MULTILABEL", "SINGLE", "TFLITE", "InputOptions",
    "InspectConfig", "ReadOptions", "RunConfig", "contains", "did_you_mean", "is_manifest",
    "read_options",
]  # fmt: skip
