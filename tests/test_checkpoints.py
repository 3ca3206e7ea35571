"""The state of a fit outlives the run, and a bad one harms nobody."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.checkpoints import ABANDONED, Checkpoints
from job.storage import LocalStore, Store, open_store

STATE = {"step": np.array(7), "weights": np.arange(6.0).reshape(2, 3)}


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A model's store of each kind."""
    if request.param == "folder":
        return LocalStore(tmp_path / "models")
    return open_store(f"gs://{request.getfixturevalue('bucket')}/models")


def same(found: Any) -> bool:
    """Tell whether a state is STATE, to the last bit."""
    return found is not None and {k: (v.dtype, v.tobytes()) for k, v in found.items()} == {
        k: (v.dtype, v.tobytes()) for k, v in STATE.items()
    }


def test_the_last_state_is_found_by_the_same_inputs_only(store: Store) -> None:
    """What was saved comes back, for its stage and its inputs."""
    with Checkpoints(store, "one", 0.0) as states:
        states.reached("fit", lambda: {"step": np.array(1)})
        states.reached("fit", lambda: STATE)
    assert same(Checkpoints(store, "one").load("fit"))
    assert Checkpoints(store, "one").load("other") is None
    assert Checkpoints(store, "two").load("fit") is None
    assert Checkpoints().load("fit") is None


def test_a_state_is_saved_when_due_or_when_the_run_ends_badly(store: Store) -> None:
    """Not before the interval is over; but an error, or a signal, saves what was reached."""
    states = Checkpoints(store, "one", 3600.0)
    with states:
        states.reached("fit", lambda: STATE)
    assert states.load("fit") is None
    interrupt(states)
    assert same(states.load("fit"))


def interrupt(states: Checkpoints) -> None:
    """End a fit in the middle."""
    with contextlib.suppress(KeyboardInterrupt), states:
        states.reached("fit", lambda: STATE)
        raise KeyboardInterrupt


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
def test_a_damaged_state_is_passed_over(
    store: Store, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The stage begins anew, and the log says why."""
    states = Checkpoints(store, "one", 0.0)
    states.reached("fit", lambda: STATE)
    good = store.read(".checkpoints/one/fit")
    store.write(".checkpoints/one/fit", good[:-9] + b"?" + good[-8:] if damage is None else damage)
    with caplog.at_level(logging.WARNING, "regraft"):
        assert states.load("fit") is None
    assert "begins anew" in caplog.text


def test_a_store_that_takes_nothing_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The fit goes on without."""
    (tmp_path / "models").write_text("a file")
    with (
        caplog.at_level(logging.WARNING, "regraft"),
        Checkpoints(LocalStore(tmp_path / "models"), "one", 0.0) as states,
    ):
        states.reached("fit", lambda: STATE)
    assert "is not kept" in caplog.text


def test_what_nobody_needs_is_removed(tmp_path: Path) -> None:
    """One's own states, and those that were abandoned; not those of a run that may go on."""
    store = LocalStore(tmp_path)
    for name in ("mine", "theirs", "old"):
        Checkpoints(store, name, 0.0).reached("fit", lambda: STATE)
    past = time.time() - ABANDONED - 60
    os.utime(tmp_path / ".checkpoints/old/fit", (past, past))
    Checkpoints(store, "mine").clear()
    assert [path.name for path in (tmp_path / ".checkpoints").iterdir()] == ["theirs"]
    Checkpoints().clear()
