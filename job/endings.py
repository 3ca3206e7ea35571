"""What ended a command: the error to report for the exception that came up, and its exit code."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from job.errors import ConfigError, RegraftError, Stopped, UnavailableError, brief
from job.guard import Terminated

NO_ROOM = "give a --work-dir on a disk with more room, or raise the sizeLimit of its volume"
NO_RIGHT = "give a --work-dir that user {user} may write to"
NO_HANDLE = "raise the limit of open files (ulimit -n), or lower --fetch-threads"
NO_THREAD = "raise the limit of processes (pids), or lower --fetch-threads"
NO_MEMORY = "raise the memory limit, or lower --batch-size, --fetch-threads or --max-pixels"

# What a machine may refuse, and what to do about it. A missing file is not here: that is a bug.
HINTS = {
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EFBIG: NO_ROOM,
    errno.EROFS: NO_RIGHT,
    errno.EACCES: NO_RIGHT,
    errno.EPERM: NO_RIGHT,
    errno.EMFILE: NO_HANDLE,
    errno.ENFILE: NO_HANDLE,
    errno.EAGAIN: NO_THREAD,
    errno.ENOMEM: NO_MEMORY,
}

# Faults of a mount that may be gone at the next try.
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN}


def reason_of(error: BaseException, signalled: type[BaseException] | None) -> BaseException:
    """Give what to report for an exception: what is behind it, or the exception itself.

    A signal comes first (`signalled`, the guard's `raised`): TensorFlow's clean-up, and NumPy's C
    code, raise errors of their own in the place of the signal's, and whatever came up after it, the
    next try will find again. Then an error of the job's own; then what the machine refused, as a
    ConfigError, or as an UnavailableError where the next try may get it.
    """
    if Terminated in (signalled, type(error)):
        return Stopped("stopped by SIGTERM", hint="run the same command again")
    if signalled is not None:
        return signalled()
    if isinstance(error, RegraftError):
        return error
    return next(filter(None, map(_refused, _chain(error))), error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _refused(error: BaseException) -> RegraftError | None:
    """Give the job's error for what the operating system refused, None for anything else."""
    number, place = 0, ""
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        number, place = errno.EROFS, "no folder for temporary files"
    elif isinstance(error, OSError):
        number, place = error.errno or 0, str(error.filename or "")
    elif isinstance(error, MemoryError):
        number = errno.ENOMEM
    elif "can't start new thread" in str(error):
        number = errno.EAGAIN
    else:  # TensorFlow gives the system's words in errors of many kinds
        said = str(error)
        number = next((n for n in HINTS if n != errno.EAGAIN and os.strerror(n) in said), 0)
        place = brief(error) if number and isinstance(error, Exception) else ""
    words = os.strerror(number)
    message = place if words in place else f"{place or 'this machine'}: {words}"
    if number in PASSING:
        return UnavailableError(message, hint="the same command may work later")
    if number in HINTS:
        return ConfigError(message, hint=HINTS[number].format(user=os.getuid()))
    return None
