"""What `baked` finds is put there: backbones are fetched or built once, when an image is built."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from job import baked, compiled, modules
from job.backbone import load_backbone, module_folder, naming, resolve
from job.compiled import Compiled
from job.errors import ConfigError
from job.interface import AnySize
from job.progress import log
from job.storage import LocalStore

SCHEMES = ("builtin:", "https://", "http://")


def prefetch(handles: Iterable[str], target: Path) -> None:
    """Put the modules that the handles name into `target`, compiled, with a record of digests.

    Every module is loaded, so what would be refused in a run is refused here.

    Raises:
        ConfigError: a handle that is none of `SCHEMES`, or as `load_backbone` raises; `target`
            cannot be written.
        UnavailableError: the network that a module comes from is out.
    """
    record = {}
    with tempfile.TemporaryDirectory() as scratch:
        for handle in handles:
            record[handle] = _bring(handle, target, Path(scratch))
            log(f"backbone {handle} is in {target}", digest=record[handle]["digest"])
    (target / baked.RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def _bring(handle: str, target: Path, scratch: Path) -> dict[str, str]:
    """Copy one module and its compiled graph; gives its entry in the record."""
    if not handle.startswith(SCHEMES):
        raise ConfigError(
            f"backbone {handle} cannot be prefetched",
            hint=f"give {', '.join(SCHEMES)}; the job fetches others itself",
        )
    found = resolve(handle, cache_dir=scratch)
    source = module_folder(found, scratch)
    with naming(handle):
        kept = modules.cached(target / "modules", found.digest[:32], lambda new: _copy(source, new))
    try:
        loaded = load_backbone(found, cache_dir=scratch)
    except AnySize:
        log(f"backbone {handle} takes images of any size: a run compiles it for its --image-size")
    else:
        made = Compiled(loaded.image_size, loaded.feature_dim, loaded.graph)
        shelf = LocalStore(target / baked.COMPILED)
        compiled.keep(shelf, compiled.file_name(found.digest, None), made)
    return {"digest": found.digest, "folder": kept.relative_to(target).as_posix()}


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
