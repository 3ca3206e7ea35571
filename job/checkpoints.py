"""The state of a fit, kept in the store: a run that is killed goes on from there.

It lies beside the versions, `.checkpoints/<inputs' digest>/<stage>`, where a run finds it whose
images and options are the same, and no other. The object is replaced as the fit goes on: the
SHA-256 of the rest, then NumPy's `.npz` without pickles. No TensorFlow.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import time
from collections.abc import Callable
from types import TracebackType

import numpy as np

from job.errors import RegraftError
from job.progress import log
from job.storage import Store

FOLDER = ".checkpoints"

# A fit's state as named arrays, no objects among them.
State = dict[str, np.ndarray]

_SEAL = 32  # bytes of a SHA-256

# Seconds after which a state that nobody went on from is removed: a week.
ABANDONED = 7 * 86400.0


class Checkpoints:
    """Keeps the state of one run, every `interval` seconds and when a context of it is left.

    Without a store nothing is kept. A store that does not take a state is a warning: the fit is
    worth more than what it could be started from.
    """

    def __init__(
        self, store: Store | None = None, digest: str = "", interval: float = 60.0
    ) -> None:
        """Keep states in a model's store.

        `digest` is that of the inputs, and behind a `/` that of the split: what decides the fit.
        """
        self._store = store
        self._folder = f"{FOLDER}/{digest}"
        self._interval = interval
        self._saved_at = time.monotonic()
        self._unsaved: tuple[str, Callable[[], State]] | None = None

    def __enter__(self) -> Checkpoints:
        """Give itself; on the way out of an error what was reached last is saved."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Save what an error, or a signal, would make the next run do again."""
        if error is not None and self._unsaved is not None:
            self.save(*self._unsaved)

    def load(self, stage: str) -> State | None:
        """Give the state that an earlier run has reached in a stage; None where there is none."""
        if self._store is None:
            return None
        name = f"{self._folder}/{stage}"
        try:
            state = _parse(self._store.read(name))
        except FileNotFoundError:
            return None
        except (RegraftError, OSError, ValueError) as error:
            _warn(f"{self._store.uri}/{name} is of no use, so {stage} begins anew: {error}")
            return None
        log(f"{stage} goes on from {self._store.uri}/{name}", stage=stage)
        return state

    def due(self) -> bool:
        """Tell whether the last state was saved long enough ago."""
        return self._store is not None and time.monotonic() - self._saved_at >= self._interval

    def reached(self, stage: str, state: Callable[[], State]) -> None:
        """Save a state if one is due; else only if an error ends the run before the next one.

        `state` gives the same arrays whenever it is called before the next call of this.
        """
        if self.due():
            self.save(stage, state)
        else:
            self._unsaved = (stage, state)

    def save(self, stage: str, state: Callable[[], State]) -> None:
        """Write a state over the one before."""
        self._unsaved = None
        if self._store is None:
            return
        try:
            self._store.write(f"{self._folder}/{stage}", _sealed(state()))
        except (RegraftError, OSError) as error:
            _warn(f"{self._store.uri}: the state of {stage} is not kept: {error}")
        self._saved_at = time.monotonic()

    def clear(self) -> None:
        """Remove what this run has kept, and what others have abandoned."""
        if self._store is None:
            return
        with contextlib.suppress(RegraftError, OSError):
            changed: dict[str, float] = {}
            for entry in self._store.list(f"{FOLDER}/"):
                folder = "/".join(entry.name.split("/")[:2])
                changed[folder] = max(entry.modified, changed.get(folder, 0.0))
            ours = "/".join(self._folder.split("/")[:2])
            for folder, modified in changed.items():
                if folder == ours or time.time() - modified > ABANDONED:
                    self._store.delete_tree(folder)


def _sealed(state: State) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **state)
    data = file.getvalue()
    return hashlib.sha256(data).digest() + data


def _parse(contents: bytes) -> State:
    seal, data = contents[:_SEAL], contents[_SEAL:]
    if seal != hashlib.sha256(data).digest():
        raise ValueError("it is damaged")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _warn(message: str) -> None:
    log(message, level=logging.WARNING)
