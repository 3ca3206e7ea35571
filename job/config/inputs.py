"""What a command learns from: the images, their labels, their split, and the backbone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from job.config.declare import option
from job.errors import ConfigError

DEFAULT_BACKBONE = "builtin:efficientnet-lite0"

# What Vertex AI's import files end in: CSV and JSON Lines.
CSV, JSON_LINES = (".csv",), (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """Where the images are, which of them count and as what, and how they are split."""

    data: tuple[str, ...] = option(
        "Labelled images: gs://bucket/prefix or a path with a folder a label, or a manifest in "
        "Vertex AI's import format (.csv, .jsonl). May be given several times.",
        required=True,
    )
    include: tuple[str, ...] = option(
        "Only images whose name, relative to --data, fits this pattern (* crosses folders). May be "
        "given several times.",
        (),
    )
    exclude: tuple[str, ...] = option(
        "Leave images out whose name fits this pattern, or with @FILE those that a file names: the "
        "CSV of `inspect`, or a name a line. May be given several times.",
        (),
    )
    label_map: tuple[str, ...] = option(
        "OLD=NEW: images with the label OLD get the label NEW, and with nothing after the = none. "
        "May be given several times.",
        (),
    )
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
    group_regex: str | None = option(
        "Images whose names agree in what this matches (in its first group, where it has one) stay "
        "on one side of the split: bursts, patients, products."
    )
    keep_copies_apart: bool = option(
        "Split by name alone, as retrain.py does: copies of an image may be on both sides.", False
    )
    max_skipped: float = option(
        "Percentage of unreadable images above which the job gives up.", 5.0, low=0, high=100
    )

    @property
    def label_names(self) -> dict[str, str]:
        """Give the new name of each label that --label-map names, empty where it is left out."""
        return {old: new for old, _, new in (pair.partition("=") for pair in self.label_map)}

    def check_inputs(self) -> None:
        """Raise ConfigError for what cannot be read as it is meant, and for too little to learn."""
        if not self.data or not all(self.data):
            raise ConfigError("--data is empty", hint="give gs://bucket/prefix or a path")
        for pair in self.label_map:
            if not pair.partition("=")[0] or "=" not in pair:
                raise ConfigError(
                    f"--label-map is {pair!r}", hint="write OLD=NEW, once for each label"
                )
        if len(self.label_names) < len(self.label_map):
            raise ConfigError(
                "--label-map names a label twice", hint="give each OLD=NEW with another OLD"
            )
        try:
            re.compile(self.group_regex or "")
        except re.error as error:
            raise ConfigError(
                f"--group-regex {self.group_regex!r} is no regular expression: {error}",
                hint="write it as Python's re module has them, such as '(patient[0-9]+)_'",
            ) from error
        if self.validation_percent + self.test_percent > 90:
            raise ConfigError(
                f"--validation-percent {self.validation_percent:g} and --test-percent "
                f"{self.test_percent:g} leave less than 10 % to train on",
                hint="lower one of them",
            )

    def check_apart(self, *written: tuple[str, str | None]) -> None:
        """Raise ConfigError when a place that is written to, with its option, is inside --data."""
        for flag, place in written:
            for data in self.data:
                if place and not is_manifest(data) and contains(data, place):
                    raise ConfigError(
                        f"{flag} {place} lies inside --data {data}",
                        hint="keep them apart: what is written would become training images",
                    )


def is_manifest(uri: str) -> bool:
    """Tell whether a data URI is a file that lists images, rather than a folder of them."""
    if not uri.lower().endswith((*CSV, *JSON_LINES)):
        return False
    parts = urlsplit(uri)
    return parts.scheme not in ("", "file") or not Path(parts.path).is_dir()


def contains(outer: str, inner: str) -> bool:
    """Tell whether the place `inner` is `outer` or lies below it."""
    first, second = _place(outer), _place(inner)
    return second[: len(first)] == first


def _place(uri: str) -> tuple[str, ...]:
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return ("file", *Path(parts.path or ".").resolve().parts)
    return (parts.scheme, parts.netloc, *filter(None, parts.path.split("/")))
