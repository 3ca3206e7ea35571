"""What a cluster runs short of: disks, shared memory, file handles; the job says which."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from modules import pack, write_pooling

HANG = 150.0  # seconds; alone, none of these jobs takes 15

SETTING_UP = "mount -t tmpfs none /mnt"
SANDBOX = ["unshare", "--map-root-user", "--mount", "sh", "-ec"]
can_mount = subprocess.run([*SANDBOX, SETTING_UP], capture_output=True).returncode == 0
pytestmark = pytest.mark.skipif(not can_mount, reason="this user may not mount a file system")

FULL = "No space left on device"


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is short, as shell commands, the options of the job that meets it, how it is to end.

    `$W` is a folder of the job's own, a file system is mounted on `$W/small`. `says` is found in
    the error's message, or in the log where the job succeeds.
    """

    code: int
    says: str
    setup: str
    options: str = "--work-dir $W/small"
    hint: str = ""


def small(size: str) -> str:
    """Give the command that mounts a file system with so much room."""
    return f"mount -t tmpfs -o size={size} none $W/small"


READ_ONLY = "mount -t tmpfs -o ro none $W/small"

# A container whose root is read-only: nothing can be written but below --models.
NO_TEMPORARY = (
    f"{READ_ONLY}; mount -t tmpfs -o ro none /var/tmp; mount --bind $W/models $W/models; "
    "mount --rbind /tmp /tmp; mount -o remount,bind,ro /tmp; export TMPDIR=$W/small; cd $W/small"
)

SHORTAGES: Mapping[str, Shortage] = {
    "work-dir-full-at-embeddings": Shortage(2, FULL, small("4k"), hint="--work-dir"),
    "work-dir-full-at-fetch": Shortage(
        2, FULL, small("16k"), "--work-dir $W/small --backbone $MODULE.tar.gz", "--work-dir"
    ),
    "work-dir-full-at-export": Shortage(2, FULL, small("64k"), hint="--work-dir"),
    "work-dir-full-at-the-end-of-export": Shortage(2, FULL, small("300k"), hint="--work-dir"),
    "work-dir-read-only": Shortage(2, "Read-only file system", READ_ONLY),
    "work-dir-is-a-file": Shortage(
        2, "Not a directory|is a file|File exists", ":", "--work-dir $W/file"
    ),
    "models-full": Shortage(138, FULL, small("64k"), "--models $W/small --cache off"),
    "models-full-later": Shortage(138, FULL, small("300k"), "--models $W/small --cache off"),
    "models-read-only": Shortage(2, "Read-only file system", READ_ONLY, "--models $W/small"),
    "cache-and-result-full": Shortage(
        0, FULL, f"{small('4k')}; head -c 4096 /dev/zero > $W/small/full",
        "--cache $W/small/cache --result-file $W/small/result",
    ),
    "temporary-folder-read-only": Shortage(2, "temporary", NO_TEMPORARY, "", "--work-dir"),
    "shared-memory-small": Shortage(0, "", "mount -t tmpfs -o size=64k none /dev/shm", ""),
    "file-size-limit": Shortage(2, "File too large", "ulimit -f 40", "--work-dir $W/room"),
    "file-handles-few": Shortage(0, "", "ulimit -n 64", ""),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended: its exit code (-9: it hung and was killed), its result and its log."""

    code: int
    result: dict[str, Any]
    log: str


def run(shortage: Shortage, folder: Path, colours: Path, module: Path) -> Ended:
    """Run `python -m job run` under a shortage, in name spaces of its own."""
    for name in ("small", "room", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "file").write_bytes(b"")
    options = f"--data {colours} --models $W/models --name s --backbone $MODULE {shortage.options}"
    python = shlex.quote(sys.executable)
    script = f"{shortage.setup}\nexec {python} -m job run {options} --log-format json"
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("TMPDIR", "STORAGE_EMULATOR_HOST")},
        "W": str(folder), "MODULE": str(module), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with (folder / "out").open("wb") as out, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*SANDBOX, script], env=environment, cwd=ROOT, stdout=out, stderr=log
        )
        try:
            code = process.wait(HANG)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    lines = (folder / "out").read_text().splitlines()
    result = json.loads(lines[-1]) if lines else {}
    return Ended(code, result, (folder / "log").read_text())


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pooling module, with the same as an archive beside it."""
    folder = tmp_path_factory.mktemp("module")
    pack(write_pooling(folder / "module"), folder / "module.tar.gz")
    return folder / "module"


@pytest.mark.parametrize("name", SHORTAGES)
def test_a_shortage_is_named_and_no_bug(
    name: str, colours: Path, module: Path, tmp_path: Path
) -> None:
    """Each job ends with the code of its shortage, an error that names it, and no traceback."""
    shortage = SHORTAGES[name]
    job = run(shortage, tmp_path / name, colours, module)
    assert job.code == shortage.code, job.log[-3000:]
    assert "Traceback" not in job.log
    assert "stack_trace" not in job.log
    if shortage.code == 0:
        assert job.result["status"] == "published"
        assert re.search(shortage.says, job.log)
    else:
        error = job.result["error"]
        assert re.search(shortage.says, error["message"]), error
        assert error["hint"]
        assert shortage.hint in error["hint"]
        if "small" in shortage.options:
            assert "/small" in error["message"]
