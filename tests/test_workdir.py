"""What a killed run leaves on the disk is removed by the next one, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT

from job.workdir import GRACE, PREFIX, sweep, work_folder

HOLDER = """
import sys, time
from pathlib import Path
from job.workdir import work_folder
with work_folder(Path(sys.argv[1])) as folder:
    (folder / "big").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(60)
"""


def hold(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that is at work in a folder; the folder looks old."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(parent)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    age = time.time() - 2 * GRACE
    os.utime(folder, (age, age))
    return process, folder


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """The folder of a live process stays; that of a dead one goes, however big; others' stay."""
    live, living = hold(tmp_path)
    dead, doomed = hold(tmp_path)
    try:
        dead.kill()
        dead.communicate()
        (tmp_path / "mine").mkdir()
        with work_folder(tmp_path) as folder:
            assert folder.parent == tmp_path
            assert {path.name for path in tmp_path.iterdir()} == {living.name, folder.name, "mine"}
            assert (living / "big").is_file()
            assert not doomed.exists()
        assert not folder.exists()
    finally:
        live.kill()
        live.communicate()


def test_a_folder_that_was_just_made_is_left_alone(tmp_path: Path) -> None:
    """Its owner may not have locked it yet."""
    new = tmp_path / f"{PREFIX}new"
    new.mkdir()
    sweep(tmp_path)
    assert new.is_dir()
