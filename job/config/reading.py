"""How images are read and embedded, by any command that needs their embeddings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from job.config.declare import option
from job.config.inputs import InputOptions
from job.redact import redact


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions(InputOptions):
    """Decoding, the cache of embeddings, and the patience with storage."""

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
    work_dir: Path | None = option(
        "Folder for fetched modules, embeddings at work and the export; a temporary one when it is "
        "not given."
    )

    @property
    def cache_uri(self) -> str | None:
        """Give where embeddings are kept, None where they are not."""
        return self.cache_beside(None)

    def cache_beside(self, models: str | None) -> str | None:
        """Give where embeddings are kept: beside the models where nothing else is said."""
        place = self.cache or (models and f"{models.rstrip('/')}/.embeddings")
        return None if place == "off" else place

    def as_json(self) -> dict[str, Any]:
        """Give the options as JSON can hold them, secrets in URLs left out."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return redact(str(value)) if isinstance(value, Path | str) else value
