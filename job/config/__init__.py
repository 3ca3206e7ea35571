"""The configuration of a run, as a frozen dataclass; `run.RunConfig` has every option."""

from job.config.declare import did_you_mean, read_options, refuse_unknown
from job.config.fitting import DISTORTIONS, MULTILABEL, SINGLE, TFLITE
from job.config.inputs import CSV, DEFAULT_BACKBONE, InputOptions, contains, is_manifest
from job.config.inspecting import InspectConfig
from job.config.reading import ReadOptions
from job.config.run import VERSION, RunConfig

__all__ = [
    "CSV", "DEFAULT_BACKBONE", "DISTORTIONS", "MULTILABEL", "SINGLE", "TFLITE", "VERSION",
    "InputOptions",
    "InspectConfig", "ReadOptions", "RunConfig", "contains", "did_you_mean", "is_manifest",
    "read_options", "refuse_unknown",
]  # fmt: skip
