"""A version is checked by a process that shares nothing with the run, and outlives nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import COLOURS, ROOT, jpeg
from modules import write_pooling

from job.backbone import load_backbone
from job.errors import ConfigError, GateRejected, PublishError
from job.export import Classifier, export
from job.formats import MAX_PIXELS
from job.head import Head
from job.images import loader
from job.seal import canonical, describe_files, seal
from job.verifier import Verifier, standby
from job.verify import Golden, golden_record, write_warmup

SIZE = (32, 32)

# Says where its process is, then waits as the real one does.
WAITING = "import os, sys; print(os.getpid(), file=open(sys.argv[1], 'w')); sys.stdin.readline()"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound version on the pooling module."""
    place = tmp_path_factory.mktemp("version")
    backbone = load_backbone(str(write_pooling(place / "module")), cache_dir=place)
    kernel = np.random.default_rng(0).normal(size=(backbone.feature_dim, 3)).astype(np.float32)
    head = Head(kernel, np.zeros(3, np.float32))
    export(Classifier(backbone, head, tuple(COLOURS)), place / "bundle")
    decode, goldens = loader(backbone.image_size), []
    for label, colour in COLOURS.items():
        contents = jpeg(colour, seed=7)
        features = backbone.embed(tf.constant(decode(contents)[None])).numpy()
        goldens.append(Golden(f"{label}/7.jpg", contents, head.probabilities(features)[0]))
    write_warmup(place / "bundle", goldens)
    write_manifest(place / "bundle", golden_record(goldens))
    return place / "bundle"


def write_manifest(folder: Path, golden: dict[str, Any]) -> None:
    """Write a manifest that fits the files as they are."""
    (folder / "manifest.json").unlink(missing_ok=True)
    manifest = {"labels": list(COLOURS), "golden": golden, "files": describe_files(folder)}
    manifest["configuration"] = {"exact_decode": False, "max_pixels": MAX_PIXELS}
    (folder / "manifest.json").write_text(canonical(seal(manifest)))


@pytest.fixture(scope="module")
def broken(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same version, whose manifest says that other answers were trained."""
    folder = tmp_path_factory.mktemp("broken")
    for path in bundle.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(bundle)
            target.parent.mkdir(exist_ok=True)
            os.link(path, target)
    golden = json.loads((bundle / "manifest.json").read_text())["golden"]
    golden["predictions"] = [row[::-1] for row in golden["predictions"]]
    write_manifest(folder, golden)
    return folder


def python(code: str, *arguments: str) -> tuple[str, ...]:
    """Give a command that runs a piece of Python in place of the check."""
    return (sys.executable, "-c", code, *arguments)


def test_nothing_is_found_in_a_sound_version(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process passes it, whatever the working folder is."""
    monkeypatch.chdir("/")
    with standby(SIZE, False, MAX_PIXELS) as verifier:
        verifier.check(bundle)


def test_what_is_broken_is_told(broken: Path) -> None:
    """The problems that the process finds are the message of a PublishError."""
    with (
        standby(SIZE, False, MAX_PIXELS) as verifier,
        pytest.raises(PublishError, match="serve_bytes at batch size 3 gives 'cyan'") as raised,
    ):
        verifier.check(broken)
    assert raised.value.exit_code == 5
    assert "nothing was published" in raised.value.hint


def test_the_process_has_its_own_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No option of the run reaches it, and no GPU, whose memory the run holds."""
    monkeypatch.setenv("REGRAFT_MODEL", "nowhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    code = """
import json, os
seen = {k: v for k, v in os.environ.items() if k.startswith(("REGRAFT_", "CUDA_VISIBLE"))}
print(json.dumps({"problems": [] if seen == {"CUDA_VISIBLE_DEVICES": "-1"} else [seen]}))
"""
    with standby(SIZE, False, MAX_PIXELS, command=python(code)) as verifier:
        verifier.check(tmp_path)


def test_any_folder_can_be_named(tmp_path: Path) -> None:
    """A name that is no Unicode arrives as it is."""
    folder = tmp_path / os.fsdecode(b"\xff b\xc3\xa4r")
    code = """
import json, os, sys
asked = sys.stdin.buffer.readline()[:-1]
print(json.dumps({"problems": [] if asked.endswith(b"/\\xff b\\xc3\\xa4r") else [repr(asked)]}))
"""
    with standby(SIZE, False, MAX_PIXELS, command=python(code)) as verifier:
        verifier.check(folder)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "ended with -6"),
        ("print('{\"problems\": []}'); raise SystemExit(9)", "ended with 9"),
        ("import sys; sys.exit('no such command')", "no such command"),
        ("print('fine')", "ended with 0, expected 0 and a list of problems"),
        ("print('{\"problems\": null}')", "ended with 0"),
        ("import sys; sys.stdin.readline()", "ended with 0"),
    ],
    ids=["abort", "late failure", "usage", "no list", "null", "silence"],
)
def test_a_crash_is_no_success(tmp_path: Path, code: str, said: str) -> None:
    """A process that dies, or says nothing of problems, refuses the version."""
    with (
        standby(SIZE, False, MAX_PIXELS, command=python(code)) as verifier,
        pytest.raises(PublishError, match=said),
    ):
        verifier.check(tmp_path)


def test_a_process_that_died_while_it_waited_is_reported(bundle: Path) -> None:
    """Killed before it is asked, as for want of memory: the configuration is to blame."""
    with standby(SIZE, False, MAX_PIXELS) as verifier:
        process_of(verifier).kill()
        process_of(verifier).wait()
        with pytest.raises(ConfigError, match="killed, most likely because there was no memory"):
            verifier.check(bundle)


def test_the_process_has_its_time(tmp_path: Path) -> None:
    """One that hangs is ended, and refuses the version."""
    with standby(
        SIZE, False, MAX_PIXELS, command=python("import time; time.sleep(60)")
    ) as verifier:
        with pytest.raises(PublishError, match=r"not verified within 0\.5 seconds"):
            verifier.check(tmp_path, timeout=0.5)
        started = time.monotonic()
    assert process_of(verifier).returncode == -signal.SIGKILL
    assert time.monotonic() - started < 30  # it would sleep twice as long


def test_a_run_that_fails_takes_the_process_with_it() -> None:
    """Refused by the gate, a run leaves no process behind, not even a dead one to be reaped."""
    with pytest.raises(GateRejected), standby(SIZE, False, MAX_PIXELS) as verifier:
        raise GateRejected("worse")
    assert process_of(verifier).returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(process_of(verifier).pid, 0)


def process_of(verifier: Verifier) -> subprocess.Popen[bytes]:
    """Give the process behind a verifier."""
    return verifier._process


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process with a verifier that waits: the former, and the latter's number."""
    note = tmp_path / "pid"
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from job.verifier import standby
with standby((32, 32), False, 2**26, command=[sys.executable, "-c", {WAITING!r}, {str(note)!r}]):
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
        yield process, int(note.read_text())
    finally:
        process.kill()
        process.wait()


def test_a_killed_run_leaves_no_process(parent: tuple[subprocess.Popen[bytes], int]) -> None:
    """After SIGKILL, which nobody can handle, the process that waits ends by itself."""
    process, child = parent
    assert is_alive(child)
    process.kill()
    process.wait()
    wait_until(lambda: not is_alive(child))


def test_the_real_process_ends_with_its_input() -> None:
    """What is started for real ends quietly once nobody can ask it any more."""
    done = subprocess.run(
        [sys.executable, "-m", "job.verifier", "32", "32", "0", "1000000"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (0, b"")


def is_alive(number: int) -> bool:
    """Tell whether a process is there and has not ended."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Any) -> None:
    """Wait for a condition, half a minute at most."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
