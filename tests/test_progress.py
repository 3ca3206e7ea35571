"""Progress is one JSON object a line for machines and words for people."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from datetime import datetime

import pytest
from conftest import ROOT
from rich.console import Console

from job import progress
from job.progress import BarProgress, JsonFormatter, LogProgress, TextFormatter, log


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged as JSON from here on."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(JsonFormatter().format(record))

    logger = logging.Logger("regraft")
    logger.addHandler(Handler())
    monkeypatch.setattr(progress, "LOGGER", logger)
    return said


def test_a_record_is_one_json_line(lines: list[str]) -> None:
    """Severity, message, time in UTC and the fields; a line break in a name stays escaped."""
    log("skipped 'a\nb'", level=logging.WARNING, name="a\nb")
    assert len(lines[0].splitlines()) == 1
    record = json.loads(lines[0])
    assert record["severity"] == "WARNING"
    assert record["name"] == "a\nb"
    offset = datetime.fromisoformat(record["time"]).utcoffset()
    assert offset is not None
    assert offset.total_seconds() == 0


def test_a_phase_reports_rate_and_eta(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between start and end there are records with what is done and what is left."""
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    reporter = LogProgress()
    with reporter.phase("embed", 10) as advance:
        advance(4)
    records = [json.loads(line) for line in lines]
    assert [r["message"].split(",")[0] for r in records][:2] == ["embed: started", "embed: 4 of 10"]
    assert {"phase", "done", "total", "rate", "eta_seconds"} <= set(records[1])
    assert reporter.seconds["embed"] >= 0


def test_a_failed_phase_is_timed_but_not_called_done(lines: list[str]) -> None:
    """An exception passes through, and no record says that the phase is done."""
    reporter = LogProgress()
    with pytest.raises(ValueError, match="oops"), reporter.phase("fit"):
        raise ValueError("oops")
    assert "fit" in reporter.seconds
    assert not any("done" in json.loads(line) for line in lines)


def test_bars_show_phase_count_and_rate() -> None:
    """On a terminal a phase is a line with its name, count and rate."""
    screen = io.StringIO()
    reporter = BarProgress(Console(file=screen, force_terminal=True, width=120))
    with reporter.phase("embed", 10) as advance:
        advance(10)
    shown = screen.getvalue()
    assert "embed" in shown
    assert "10/10" in shown
    assert "/s" in shown


def test_text_gives_the_hint_its_own_line() -> None:
    """People read what went wrong first, then what to do."""
    record = logging.LogRecord("regraft", logging.ERROR, "", 0, "it broke", (), None)
    record.fields = {"hint": "mend it"}
    assert TextFormatter().format(record) == "error: it broke\n  hint: mend it"


def test_notes_of_c_code_stay_out_of_the_log() -> None:
    """What is written to file descriptor 2 is kept aside; what another thread logs goes out."""
    script = """
import os, sys, threading
from job.progress import log, notes_aside, set_up_logging
set_up_logging("json")
with notes_aside() as notes:
    os.write(2, b"a note of C++ code")
    thread = threading.Thread(target=log, args=["meanwhile"])
    thread.start()
    thread.join()
    notes.seek(0)
    kept = notes.read()
log(kept.decode())
print("after", file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    meanwhile, kept, after = done.stderr.splitlines()
    assert json.loads(meanwhile)["message"] == "meanwhile"
    assert json.loads(kept)["message"] == "a note of C++ code"
    assert after == "after"
