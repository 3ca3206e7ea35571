"""What is reported is what ended the job, however many errors were raised on the way up."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import tensorflow as tf

from job.endings import reason_of, signal_behind
from job.errors import ConfigError, Stopped, UnavailableError
from job.guard import Terminated


@pytest.mark.parametrize("signalled", [Terminated, KeyboardInterrupt])
def test_a_signal_is_told_behind_the_errors_of_what_it_interrupts(
    signalled: type[BaseException],
) -> None:
    """TensorFlow's clean-up may raise in turn: it was the signal all the same, and no bug."""

    def trace() -> None:
        try:
            raise signalled
        finally:
            raise AssertionError("Nesting violated")

    with pytest.raises(AssertionError) as caught:
        trace()
    expected = Stopped if signalled is Terminated else KeyboardInterrupt
    assert isinstance(signal_behind(caught.value), expected)
    with pytest.raises(RuntimeError) as wrapped:
        raise RuntimeError from caught.value
    assert isinstance(signal_behind(wrapped.value), expected)
    assert signal_behind(AssertionError("Nesting violated")) is None


def test_a_full_disk_is_told_with_the_file_and_what_to_do() -> None:
    """A real write to a device without room: bad configuration, no bug."""
    with pytest.raises(OSError, match="No space") as caught, Path("/dev/full").open("w") as file:
        file.write("x")
    caught.value.filename = "/dev/full"  # a write does not know where it goes, an open does
    reason = reason_of(caught.value)
    assert isinstance(reason, ConfigError)
    assert reason.message == "/dev/full: No space left on device"
    assert "--work-dir" in reason.hint


def test_tensorflow_words_for_a_full_disk_are_understood() -> None:
    """It raises errors of its own kinds, with the system's words in them."""
    with pytest.raises(tf.errors.OpError) as caught:
        tf.io.write_file("/dev/full", "x" * 100_000)
    reason = reason_of(caught.value)
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
        reason = reason_of(error)
    assert isinstance(reason, kind)
    assert "some/file" in str(reason)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "none"), ValueError("no"), KeyError("x")])
def test_a_bug_stays_a_bug(error: Exception) -> None:
    """What nobody foresaw is not dressed up as something else."""
    assert reason_of(error) is error


def test_an_error_of_the_job_is_not_explained_again() -> None:
    """It knows better than the system's error that is behind it."""
    error = UnavailableError("the bucket is out")
    error.__cause__ = OSError(errno.ENOSPC, "full")
    assert reason_of(error) is error
