"""Publishers that die and publishers that meet never show half a version."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chaos_publish
import pytest
from watcher import Folder, Watcher


def watched(place: Path, steps: list[Callable[[], Any]]) -> list[str]:
    """Give what a watcher finds wrong when it looks after every step."""
    watcher = Watcher(Folder(str(place)))
    for step in steps:
        step()
        watcher.poll()
    assert watcher.report.polls == len(steps)
    return watcher.report.violations


def test_the_watcher_sees_a_naive_copy(tmp_path: Path) -> None:
    """Copying in the order of names shows `saved_model.pb` before the variables."""
    bundle = chaos_publish.write_bundle(tmp_path / "bundle", "one")
    files = sorted(path for path in bundle.rglob("*") if path.is_file())

    def copy(path: Path) -> None:
        target = tmp_path / "models/5" / path.relative_to(bundle)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)

    steps = [lambda path=path: copy(path) for path in files]
    violations = watched(tmp_path / "models", steps)
    assert any("version 5 lacks" in violation for violation in violations)
    assert any("version 5 changed" in violation for violation in violations)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda folder, other: (folder / "labels.txt").unlink(), "lacks ['labels.txt']"),
        (lambda folder, other: (folder / "extra").write_bytes(b"<token:one>"), "has ['extra']"),
        (lambda folder, other: (folder / "labels.txt").write_bytes(b"<token:one>"), "other bytes"),
        (lambda folder, other: (folder / "manifest.json").unlink(), "cannot be read"),
        (
            lambda folder, other: [
                shutil.copy(other / name, folder / name) for name in ("labels.txt", "manifest.json")
            ],
            "is a mix of {'one': 10, 'two': 2}",
        ),
    ],
)
def test_the_watcher_sees_damage(
    tmp_path: Path, damage: Callable[[Path, Path], Any], found: str
) -> None:
    """A file missing, added, changed, or of another publication, in a version that is loadable."""
    other = chaos_publish.write_bundle(tmp_path / "other", "two")
    version = chaos_publish.write_bundle(tmp_path / "models/7", "one")
    violations = watched(tmp_path / "models", [lambda: damage(version, other)])
    assert any(found in violation for violation in violations), violations
    steps = [lambda: shutil.copytree(other, tmp_path / "models/8"), lambda: None]
    shutil.rmtree(version)
    assert watched(tmp_path / "models", steps) == []
    steps = [lambda: None, lambda: shutil.rmtree(tmp_path / "models/8")]
    assert watched(tmp_path / "models", steps) == [
        "version 8 changed or vanished after it could be loaded"
    ]


def test_killed_and_meeting_publishers() -> None:
    """SIGKILL at random moments, and eight at once, on both stores: no version is ever half."""
    script = Path(__file__).with_name("chaos_publish.py")
    done = subprocess.run(
        [sys.executable, script, "--short"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row.split("|")[1:-1] for row in done.stdout.splitlines() if row.startswith("| ")][1:]
    assert [row[1].strip() for row in rows] == ["SIGKILL", "8 at once"] * 2
    assert all(int(row[5]) > 0 and int(row[7]) == 0 for row in rows)
