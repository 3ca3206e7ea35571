"""JSON objects that somebody else may have written. No TensorFlow."""

from __future__ import annotations

import json
from typing import Any


def parse_object(contents: bytes | str) -> dict[str, Any]:
    """Give the JSON object that a file or an answer consists of.

    Raises ValueError for everything else, brackets nested deeper than Python's stack among it.
    """
    try:
        found = json.loads(contents)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__}, expected an object")
    return found
