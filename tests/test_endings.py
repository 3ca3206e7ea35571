"""What is reported is what ended the job, however many errors were raised on the way up."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import tensorflow as tf

from job.endings import reason_of
from job.errors import ConfigError, Stopped, UnavailableError
from job.guard import Terminated


@pytest.mark.parametrize("error", [AssertionError("Nesting violated"), ConfigError("no", hint="")])
def test_a_signal_is_told_whatever_came_up_in_its_place(error: Exception) -> None:
    """What C code makes of a signal's exception may not show that there was one."""
    assert isinstance(reason_of(error, Terminated), Stopped)
    assert isinstance(reason_of(error, KeyboardInterrupt), KeyboardInterrupt)


def test_a_full_disk_is_told_with_the_file_and_what_to_do() -> None:
    """A real write to a device without room: bad configuration, no bug."""
    with pytest.raises(OSError, match="No space") as caught, Path("/dev/full").open("w") as file:
        file.write("x")
    caught.value.filename = "/dev/full"  # a write does not know where it goes, an open does
    reason = reason_of(caught.value, None)
    assert isinstance(reason, ConfigError)
    assert reason.message == "/dev/full: No space left on device"
    assert "--work-dir" in reason.hint


def test_tensorflow_words_for_a_full_disk_are_understood() -> None:
    """It raises errors of its own kinds, with the system's words in them."""
    with pytest.raises(tf.errors.OpError) as caught:
        tf.io.write_file("/dev/full", "x" * 100_000)
    reason = reason_of(caught.value, None)
    assert isinstance(reason, ConfigError)
    assert "No space left on device" in reason.message


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EROFS, ConfigError),
        (errno.EMFILE, ConfigError),
        (errno.EDQUOT, ConfigError),
        (errno.EIO, UnavailableError),
        (errno.ESTALE, UnavailableError),
    ],
)
def test_a_refusal_is_permanent_and_a_sick_mount_is_not(number: int, kind: type) -> None:
    """Also behind another error; a retry cannot mend the one, and may mend the other."""
    try:
        try:
            raise OSError(number, "refused", "some/file")
        except OSError as error:
            raise RuntimeError("could not write") from error
    except RuntimeError as error:
        reason = reason_of(error, None)
    assert isinstance(reason, kind)
    assert "some/file" in str(reason)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "none"), ValueError("no"), KeyError("x")])
def test_a_bug_stays_a_bug(error: Exception) -> None:
    """What nobody foresaw is not dressed up as something else."""
    assert reason_of(error, None) is error


def test_an_error_of_the_job_is_not_explained_again() -> None:
    """It knows better than the system's error that is behind it."""
    error = UnavailableError("the bucket is out")
    error.__cause__ = OSError(errno.ENOSPC, "full")
    assert reason_of(error, None) is error
