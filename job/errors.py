"""Every way the job can fail, as one tree; the exit code belongs to the class.

RegraftError                1    a bug, unless a subclass says otherwise
├── ConfigError             2    bad usage or configuration: option, handle, URI, permission
├── DataError               3    the images or their labels cannot be trained on
├── GateRejected            4    the model was trained and is not good enough
├── PublishError            5    a conflict with another publisher, or a broken export
├── UnavailableError        138  storage or another dependency is out; the next try may work
└── Stopped                 143  SIGTERM; progress is saved, the same command goes on from there

1-127 is permanent and 128-255 retryable, as the Kubeflow operators read exit codes.
Each error says what was found and what was expected (`message`) and what to do (`hint`).
"""

from __future__ import annotations


class RegraftError(Exception):
    """A failure with a message for people, a hint and an exit code."""

    exit_code = 1
    status = "failed"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(RegraftError):
    """An option, handle, URI or permission that no retry will mend."""

    exit_code = 2


class DataError(RegraftError):
    """The images or their labels cannot be trained on."""

    exit_code = 3


class GateRejected(RegraftError):
    """The model was trained and is not good enough to be published."""

    exit_code = 4
    status = "rejected"


class PublishError(RegraftError):
    """Another publisher was there first, or the export does not answer as it should."""

    exit_code = 5


class UnavailableError(RegraftError):
    """Storage or another dependency is out; the same command may work later."""

    exit_code = 138


class Stopped(RegraftError):
    """The job was told to stop (SIGTERM)."""

    exit_code = 143
    status = "preempted"


# How the lines begin that TensorFlow puts around the message of a failed operation.
TRACE = ("Graph execution error", "Detected at node", "File ", "[[", "Original stack trace")


def brief(error: Exception) -> str:
    """Give what an error says, on one line and without TensorFlow's traces of its graph."""
    lines = (line.strip() for line in str(error).splitlines())
    said = " ".join(line for line in lines if not line.startswith(TRACE))
    return said.strip()[:300] or type(error).__name__
