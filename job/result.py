"""What a command leaves behind: the JSON object of `--result-file` and of stdout's last line."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from job.errors import ConfigError, RegraftError
from job.redact import redact

# Kubernetes cuts a termination message at 4,096 bytes, which would leave half a JSON object.
MAX_BYTES = 4096


@dataclass(slots=True)
class Result:
    """Filled in as the run goes on, so that a failure reports what was reached before it.

    `status` is published, unchanged, planned, embedded (a share, for another job to go on with),
    helped (to train, and another job has published), rejected, failed or preempted; `cache` has the
    number of embeddings that were there (`hits`), of those that were not (`misses`), and of those
    that this run has put there (`saved`); `seconds` maps a phase to its wall time; `images` has
    `total`, `skipped`, the sides of the split and `skipped_names` with the reason of each;
    `metrics` is what `evaluate.Report.as_json` gives.
    """

    status: str = "failed"
    version: int | None = None
    uri: str | None = None
    labels: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    cache: dict[str, int] = field(default_factory=lambda: {"hits": 0, "misses": 0, "saved": 0})
    seconds: dict[str, float] = field(default_factory=dict)
    error: dict[str, str] | None = None

    def count_saved(self, count: int) -> None:
        """Record that so many more embeddings are in the cache, whatever happens to this run."""
        self.cache["saved"] += count

    def finish(self, status: str, models: str, version: int) -> None:
        """Record the version that is in service now."""
        self.status, self.version, self.uri = status, version, f"{models}/{version}"

    def fail(self, error: BaseException) -> None:
        """Record what ended the run."""
        self.status = "failed"
        hint = "this is a bug in Regraft: report it with the log"
        if isinstance(error, RegraftError):
            self.status, hint = error.status, error.hint
            if error.exit_code > 127 and (saved := self.cache["saved"]):
                hint += f"; the {saved} embeddings that this run has saved are not computed again"
        elif isinstance(error, KeyboardInterrupt):
            hint = "run the same command again"
        message = str(error) or type(error).__name__
        self.error = {"type": type(error).__name__, "message": message, "hint": hint}

    def to_json(self) -> str:
        """Give one line of ASCII JSON under `MAX_BYTES`; long lists are cut and say so."""
        values = asdict(self)
        for most in (50, 10, 3, 0):
            line = json.dumps(_shortened(values, most), separators=(",", ":"))
            if len(line) < MAX_BYTES:
                return line
        values = {"status": self.status, "version": self.version, "uri": self.uri}
        return json.dumps(values | {"error": _shortened(self.error, 0)})


def _shortened(value: Any, most: int) -> Any:
    """Cut lists and dicts to `most` items above 10, and strings to 300 characters when `most` is 0.

    A list that is cut ends in a string that says by how many; no string has a secret in it.
    """
    if isinstance(value, list):
        if len(value) > max(most, 2):
            rest = f"... and {len(value) - most} more"
            return [_shortened(item, most) for item in value[:most]] + [rest]
        return [_shortened(item, most) for item in value]
    if isinstance(value, dict):
        return {key: _shortened(item, most) for key, item in value.items()}
    if isinstance(value, str):
        value = redact(value)
        return value[:300] + "..." if most <= 3 and len(value) > 300 else value
    return value


def append_summary(place: Path | None, text: str) -> None:
    """Append a Markdown summary to a file, $GITHUB_STEP_SUMMARY where none is given but that is.

    Raises ConfigError when the file cannot be written.
    """
    found = place or os.environ.get("GITHUB_STEP_SUMMARY")
    try:
        if found:
            with Path(found).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text + "\n")
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}", hint="check the path") from error
