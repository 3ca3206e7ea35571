"""The logs of pods on our own log: JSON stays JSON, and people get sentences."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from job.documents import parse_object
from job.redact import redact

# What a terminal would obey instead of showing it.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """Where lines of logs go: stderr, so that stdout has the result and nothing else."""

    def __init__(self, style: str, *, several: bool) -> None:
        """Show lines as `text` or `json`, with the index of their pod where there are several."""
        self._style, self._several = style, several

    def line(self, index: int, text: str) -> None:
        """Show one line of a pod's log."""
        try:
            fields: dict[str, Any] | None = parse_object(text)
        except ValueError:
            fields = None
        shown = (
            self._text(fields, text) if self._style == "text" else self._json(fields, text, index)
        )
        if shown is None:
            return
        prefix = f"[{index}] " if self._several and self._style == "text" else ""
        shown = CONTROL.sub(lambda found: repr(found[0])[1:-1], shown)
        sys.stderr.write("".join(f"{prefix}{part}\n" for part in shown.split("\n")))
        sys.stderr.flush()

    def _json(self, fields: dict[str, Any] | None, text: str, index: int) -> str:
        if fields is not None and not self._several:
            return text
        found = {"severity": "INFO", "message": text} if fields is None else fields
        return redact(json.dumps(found | ({"pod": index} if self._several else {})))

    def _text(self, fields: dict[str, Any] | None, text: str) -> str | None:
        if fields is None:
            return redact(text)
        if "message" not in fields or "severity" not in fields:
            return None if "status" in fields else text  # the result is told at the end
        level = str(fields["severity"]).lower()
        shown = ("" if level == "info" else f"{level}: ") + str(fields["message"])
        if "hint" in fields:
            shown += f"\n  hint: {fields['hint']}"
        return shown + (f"\n{fields['stack_trace']}" if "stack_trace" in fields else "")
