"""What a run says while it goes on: bars for people, one JSON object a line for machines."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from job.guard import beat
from job.redact import redact

if TYPE_CHECKING:
    from rich.console import Console

LOGGER = logging.getLogger("regraft")

# A line of progress this often, in seconds: enough to see that a job lives, little enough to read.
LOG_INTERVAL = 10.0

Advance = Callable[[int], None]


class Progress(Protocol):
    """Where a run reports its phases; `seconds` maps each phase that ended to its wall time."""

    seconds: dict[str, float]

    def phase(self, name: str, total: int = 0) -> contextlib.AbstractContextManager[Advance]:
        """Open a phase of `total` steps (0: unknown); the context gives `advance(steps)`."""


class BarProgress:
    """A bar a phase, with its rate and the time it will still take, on a terminal."""

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console

    @contextlib.contextmanager
    def phase(self, name: str, total: int = 0) -> Iterator[Advance]:
        """Show a bar while the phase goes on; the bar stays when it is done."""
        from rich import progress as bars

        columns = (
            bars.TextColumn("{task.description:<9}"),
            bars.BarColumn(bar_width=30),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]:>9}"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("eta"),
            bars.TimeRemainingColumn(),
        )
        start = time.monotonic()
        with bars.Progress(*columns, console=self._console) as display:
            task = display.add_task(name, total=total or None, rate="")
            done = 0
            beat()

            def advance(steps: int) -> None:
                nonlocal done
                done += steps
                beat()
                rate = done / max(time.monotonic() - start, 1e-3)
                display.update(task, advance=steps, rate=f"{rate:,.1f}/s")

            try:
                yield advance
                # A phase may end before its planned steps do; its bar is full all the same.
                display.update(task, total=done or 1, completed=done or 1)
            finally:
                self.seconds[name] = round(time.monotonic() - start, 3)


class LogProgress:
    """A log record at the start and the end of a phase, and every `LOG_INTERVAL` between."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str, total: int = 0) -> Iterator[Advance]:
        """Log the phase; fields are `phase`, `done`, `total`, `rate` and `eta_seconds`."""
        start = last = time.monotonic()
        done = 0
        known = {"total": total} if total else {}
        log(f"{name}: started", phase=name, **known)
        beat()

        def advance(steps: int) -> None:
            nonlocal done, last
            done += steps
            beat()
            now = time.monotonic()
            if now - last >= LOG_INTERVAL:
                last = now
                rate = done / (now - start)
                left = {"eta_seconds": round((total - done) / rate)} if total else {}
                log(
                    f"{name}: {done} of {total or '?'}, {rate:.1f}/s",
                    phase=name,
                    done=done,
                    rate=round(rate, 2),
                    **known,
                    **left,
                )

        try:
            yield advance
        finally:
            self.seconds[name] = round(time.monotonic() - start, 3)
        seconds = self.seconds[name]
        log(f"{name}: done in {seconds:.1f} s", phase=name, done=done, seconds=seconds)


def log(message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log a message with fields, which end up beside it in the JSON object."""
    LOGGER.log(level, message, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the names that Cloud Logging and its like understand."""

    def format(self, record: logging.LogRecord) -> str:
        """Give `severity`, `message`, `time` (RFC 3339, UTC) and the record's own fields."""
        line = {
            "severity": record.levelname,
            "message": record.getMessage(),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["stack_trace"] = self.formatException(record.exc_info)
        return redact(json.dumps(line, default=str))


class TextFormatter(logging.Formatter):
    """The message, with its level from WARNING on and its hint on a line of its own, for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the lines of one record."""
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        lines = [level + record.getMessage()]
        if hint := getattr(record, "fields", {}).get("hint"):
            lines.append(f"  hint: {hint}")
        if doing := getattr(record, "fields", {}).get("stack_trace"):
            lines.append(doing)
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return redact("\n".join(lines))


@contextlib.contextmanager
def notes_aside() -> Iterator[BinaryIO]:
    """Keep what C++ code writes to stderr out of the log; the file given has it, until the end.

    Such notes would break up the JSON lines, and no setting of TensorFlow's reaches all of them.
    What is logged meanwhile, from any thread, goes out as ever: a guard's last words may be.
    """
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as stderr, os.fdopen(os.memfd_create("notes"), "w+b") as notes:
        handlers = [
            handler
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
        ]
        for handler in handlers:
            handler.setStream(stderr)
        os.dup2(notes.fileno(), 2)
        try:
            yield notes
        finally:
            sys.stderr.flush()
            os.dup2(stderr.fileno(), 2)
            for handler in handlers:
                handler.setStream(sys.stderr)


def import_tensorflow() -> None:
    """Import TensorFlow without the notes that its C++ parts write to stderr while they load.

    If the import fails they are shown: then they say why. TensorFlow imports a Keras; 2, which
    TensorFlow Hub wants, takes seconds less than 3. Nothing here uses it.
    """
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    # An operation gets one thread, and the cores get several operations: see job/forward.py.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    said = b""
    try:
        with notes_aside() as notes:
            try:
                import tensorflow
            finally:
                notes.seek(0)
                said = notes.read()
    except BaseException:
        os.write(2, said)
        raise
    # TF32 rounds products to 10 bits on a GPU; what is published must answer on any device as the
    # trained model did.
    tensorflow.config.experimental.enable_tensor_float_32_execution(False)
    # Its Python warnings come through our handler instead of its own.
    tensorflow.get_logger().handlers.clear()
    tensorflow.get_logger().propagate = True


def set_up_logging(style: str) -> None:
    """Send all logging to stderr in `style` (`json` or `text`), other libraries' from WARNING."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(logging.INFO)
    logging.captureWarnings(True)
