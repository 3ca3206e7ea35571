"""The backbones that an image brings along: found by handle, checked by digest, never written to.

`python -m job backbone prefetch` makes the folder when the image is built. In it are `modules/`,
`compiled/` (their frozen graphs) and `backbones.json`, which gives digest and folder of a handle.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from job.documents import parse_object
from job.errors import ConfigError
from job.modules import module_digest

# Beside the package: in a checkout there is none.
FOLDER = Path(__file__).parent.parent / "backbones"
RECORD = "backbones.json"
COMPILED = "compiled"


@dataclass(frozen=True, slots=True)
class Baked:
    """A module of the image: `digest` is that of `Resolved`, `folder` holds its SavedModel."""

    digest: str
    folder: Path


def find(handle: str) -> Baked | None:
    """Give the image's own copy of the module that a handle names; None where it has none.

    Raises ConfigError when it is not what it was when the image was built.
    """
    with contextlib.suppress(FileNotFoundError):
        record = parse_object((FOLDER / RECORD).read_bytes())
        if handle in record:
            entry = record[handle]
            found = Baked(entry["digest"], FOLDER / entry["folder"])
            if (digest := module_digest(found.folder)) != found.digest:
                raise ConfigError(
                    f"{found.folder} has the digest {digest}, expected {found.digest}",
                    hint="it was changed after the image was built: build the image again",
                )
            return found
    return None
