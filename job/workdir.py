"""A folder of a run's own, which goes with the run, or with the next one if this one was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from job.storage import LocalStore, check_writable

PREFIX = "regraft-run-"

# Seconds that a new folder may stand before it is locked.
GRACE = 60.0


@contextlib.contextmanager
def work_folder(parent: Path | None) -> Iterator[Path]:
    """Give a new folder below `parent` (None: where temporary files go); it goes in the end.

    What a killed run has left there is removed first: it may be gigabytes, and a container that is
    started again finds its volume as it was.

    Raises ConfigError when `parent` cannot be written to.
    """
    if parent is not None:
        check_writable(LocalStore(parent))
    sweep(parent or Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as name:
        folder = os.open(name, os.O_RDONLY)
        try:
            _lock(folder)  # until this process is gone, however it goes
            yield Path(name)
        finally:
            os.close(folder)


def sweep(parent: Path) -> None:
    """Remove the folders of runs that are gone: nobody holds their lock."""
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            folder = os.open(path, os.O_RDONLY)
            try:
                if time.time() - os.fstat(folder).st_mtime > GRACE and _lock(folder):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(folder)


def _lock(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks, where nothing is ever swept
        return False
    return True
