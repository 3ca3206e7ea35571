"""A short run of every fuzz target, and that a fuzzer here finds what there is to find."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

FUZZ = ROOT / "tests" / "fuzz.py"

# So many mutations of each, in a few seconds.
RUNS = {
    "index": 1000, "channels": 1000, "manifest": 1000, "imports": 3000, "tables": 3000,
    "archive": 300, "weights": 300, "module": 500, "options": 1000, "images": 200,
}  # fmt: skip


def fuzz(target: str, runs: int, program: Path = FUZZ) -> subprocess.CompletedProcess[str]:
    """Run a fuzzer with a fixed seed."""
    command = [sys.executable, program, target, "--runs", str(runs), "--seed", "7"]
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [*map(str, command)], env=quiet, capture_output=True, errors="replace", timeout=120,
        check=False,
    )  # fmt: skip


def test_every_target_is_run() -> None:
    """No target of the fuzzer is left out here."""
    listed = re.search(r"\{([\w,]+)\}", fuzz("--help", 0).stdout)
    assert listed
    assert set(listed[1].split(",")) == set(RUNS)


@pytest.mark.parametrize("target", RUNS)
def test_only_documented_errors_come_out(target: str) -> None:
    """Mutations of good and bad inputs are read, or refused as the reader says it does."""
    done = fuzz(target, RUNS[target])
    assert done.returncode == 0, done.stderr[-2000:]
    told = re.search(r"DONE\s+cov: (\d+)", done.stderr)
    assert told
    assert int(told[1]) > 10  # what is not instrumented shows as 1 or 2


def test_an_undocumented_error_is_found(tmp_path: Path) -> None:
    """A reader that forgets one error of a parser is caught within the runs of the tests."""
    broken = FUZZ.read_text().replace(
        "contextlib.suppress(ConfigError)", "contextlib.nullcontext()"
    )
    program = tmp_path / "tests" / "fuzz.py"
    program.parent.mkdir()
    program.write_text(broken)
    (tmp_path / "job").symlink_to(ROOT / "job")
    done = fuzz("channels", RUNS["channels"], program)
    assert done.returncode != 0
    assert "Uncaught Python exception" in done.stderr + done.stdout
