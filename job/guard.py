"""What ends a process that does not end by itself: a second signal, a stop budget, a stall.

A signal's handler in Python runs on the main thread, between two of its steps; while that thread is
inside TensorFlow or a system call, that may be too late. So a thread of its own reads the signals
from a pipe that the interpreter's C code writes to, and looks twice a second whether anything was
got done. It needs nothing from the other threads but that they let go of Python's lock.

The handler's exception may be lost: Python drops one that is raised inside a finaliser or in a
callback from C. The thread sees that the main thread is not on its way out, and signals once more.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from job.errors import RegraftError, Stopped, UnavailableError

# Seconds between two looks. Looks are counted, not the clock: a process that was frozen for an hour
# and thawed has not stood still for an hour.
TICK = 0.5

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Looks at a main thread that goes on as if nothing had been raised, until it is signalled again.
LOST = 2

# Seconds that the last words may take, should nobody read them.
LAST_WORDS_TIMEOUT = 3.0


class Terminated(BaseException):
    """SIGTERM arrived. No Exception, so that nobody on the way takes it for a failure of theirs."""


class Guard:
    """Watches over the process while `watching`; there is one, `GUARD`.

    `stop_timeout` is how many seconds the process may take to end once it has had a signal;
    `stall_timeout` how many it may go on without a `beat`, None being for ever. `last_words` is
    called from another thread right before the guard ends the process, with the error and with
    what every thread was doing, which is empty after a second signal. `raised` is what a signal
    raised in the main thread, None as long as none has: code in C may put an error of its own in
    its place, which says nothing of what was behind it.
    """

    def __init__(self) -> None:
        self.stop_timeout = 20.0
        self.stall_timeout: float | None = None
        self.last_words: Callable[[RegraftError | KeyboardInterrupt, str], None] | None = None
        self._beats = 0
        self._heard: list[signal.Signals] = []
        self._interrupted = False
        self.raised: type[BaseException] | None = None

    def beat(self) -> None:
        """Say that something was got done; to be called from any thread, often."""
        self._beats += 1  # two at once may count as one, which is enough

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Have signals raise in the main thread, and see to it that the process ends.

        The first SIGTERM raises Terminated, the first SIGINT KeyboardInterrupt.
        """
        ours, theirs = os.pipe()
        os.set_blocking(theirs, False)
        self._interrupted, self.raised = False, None
        # A shell starts what it puts in the background deaf to SIGINT, and it should stay so.
        self._heard = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        handlers = [signal.signal(number, self._interrupt) for number in self._heard]
        wakeup = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._watch, args=[ours], name="guard", daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in zip(self._heard, handlers, strict=True):
                signal.signal(number, handler)
            self._heard = []
            os.close(theirs)  # the thread reads the end of the pipe
            thread.join()
            os.close(ours)
            self.stall_timeout = self.last_words = None

    @contextlib.contextmanager
    def deaf_for(self, seconds: int) -> Iterator[None]:
        """Have the system itself end the process on a signal, or after these seconds, in a block.

        For a call of a library that keeps Python's lock while it waits, so that neither a handler
        nor the guard's thread could run, and that may leave a handler of its own in place of ours.
        The exit codes are then those of the signals, 143, 130 and 142, and nothing is told.
        """
        for number in (*self._heard, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(seconds)
        try:
            yield
        finally:
            signal.alarm(0)
            for number in self._heard:
                signal.signal(number, self._interrupt)

    def settle(self) -> None:
        """Let a first signal raise nothing any more: how this ends is about to be told."""
        self._interrupted, self.raised = True, None

    def _interrupt(self, number: int, frame: object) -> None:
        if not self._interrupted:  # after another one the guard's thread ends the process
            self._interrupted = True
            self.raised = KeyboardInterrupt if number == signal.SIGINT else Terminated
            raise self.raised

    def _watch(self, pipe: int) -> None:
        arrived: list[int] = []
        idle = stopping = 0.0
        seen = self._beats
        lost = ours = 0  # looks that showed no exception, and signals sent for that
        while True:
            if select.select([pipe], [], [], TICK)[0]:
                numbers = os.read(pipe, 64)
                if not numbers:
                    return
                told = [number for number in numbers if number in SIGNALS]
                arrived += told[ours:]
                ours = max(0, ours - len(told))
                if len(arrived) > 1:
                    self._leave(_stopped_by(arrived[-1], "twice"), "")
                continue
            raised = self.raised
            lost = lost + 1 if raised and not _on_its_way_out(raised) else 0
            if lost >= LOST:
                ours, lost = ours + 1, 0
                self._interrupted = False
                signal.pthread_kill(threading.main_thread().ident or 0, arrived[0])
            idle = 0.0 if seen != self._beats else idle + TICK
            seen = self._beats
            stopping += TICK if arrived else 0.0
            if stopping >= self.stop_timeout:
                late = f"and was still busy {self.stop_timeout:g} s later"
                self._leave(_stopped_by(arrived[0], late), stacks())
            if self.stall_timeout is not None and idle >= self.stall_timeout:
                self._leave(_stalled(self.stall_timeout), stacks())

    def _leave(self, error: RegraftError | KeyboardInterrupt, doing: str) -> NoReturn:
        if self.last_words:
            # In a thread, because a pipe that nobody reads would keep us here.
            words = threading.Thread(target=self.last_words, args=[error, doing], daemon=True)
            words.start()
            words.join(LAST_WORDS_TIMEOUT)
        os._exit(error.exit_code if isinstance(error, RegraftError) else 130)


def _on_its_way_out(kind: type[BaseException]) -> bool:
    """Tell whether the main thread is dealing with an exception of this kind, or one from it."""
    now = sys._current_exceptions().get(threading.main_thread().ident or 0)
    error = now[1] if isinstance(now, tuple) else now  # Python 3.12 gives the exception alone
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


GUARD = Guard()
beat = GUARD.beat


def leave(code: int) -> NoReturn:
    """End the process with an exit code, its output written, without waiting for any thread.

    Python would wait for requests that are under way, which nobody needs any more.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def stacks() -> str:
    """Give what every thread is doing, the guard's own left out."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"{names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frame))
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    ]
    return "\n".join(parts)


def _stopped_by(number: int, how: str) -> RegraftError | KeyboardInterrupt:
    name = signal.Signals(number).name
    message = f"the job was told to stop ({name}) {how}"
    if number == signal.SIGINT:
        return KeyboardInterrupt(message)
    return Stopped(message, hint="run the same command again; it goes on from what was saved")


def _stalled(seconds: float) -> UnavailableError:
    return UnavailableError(
        f"nothing was got done for {seconds:g} s (--stall-timeout), so the job gave up",
        hint="the log shows what every thread was waiting for; look at the network, the disk or "
        "the device there, and run the same command again",
    )
