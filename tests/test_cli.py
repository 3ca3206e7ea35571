"""The command line: options from three places, exit codes, and a result however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_colours

from job.cli import main

Captured = pytest.CaptureFixture[str]


def result_of(capsys: Captured) -> dict[str, Any]:
    """Read the last line of stdout."""
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def plan(*arguments: str) -> int:
    """Run `plan`."""
    return main(["plan", *arguments])


@pytest.fixture
def places(colours: Path, tmp_path: Path) -> list[str]:
    """Flags for a valid run."""
    return ["--data", str(colours), "--models", str(tmp_path / "models"), "--name", "squares"]


def test_help_answers_without_tensorflow() -> None:
    """--help imports neither TensorFlow nor the SDK nor numpy: that is what makes it quick."""
    code = (
        "import sys; from job.cli import main; main(['run', '--help']);"
        "print([m for m in ('tensorflow', 'google.cloud', 'numpy', 'rich') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.splitlines()[-1] == "[]"
    assert "--data" in shown.stdout


def test_plan_checks_and_publishes_nothing(
    places: list[str], capsys: Captured, tmp_path: Path
) -> None:
    """A valid configuration is planned: counts are there, no version is."""
    assert plan(*places) == 0
    result = result_of(capsys)
    assert result["status"] == "planned"
    assert result["images"]["total"] == 120
    assert not [path for path in (tmp_path / "models").rglob("*") if path.is_file()]


def test_flag_beats_environment_beats_file(
    places: list[str], capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same option from three places: the nearest to the hand wins."""

    def test_images() -> int:
        assert plan(*arguments) == 0
        return int(result_of(capsys)["images"]["test"])

    def images_at(percent: str) -> int:
        assert plan(*places, "--test-percent", percent) == 0
        return int(result_of(capsys)["images"]["test"])

    by_percent = {percent: images_at(percent) for percent in ("20", "30", "40")}
    assert len(set(by_percent.values())) == 3
    file = tmp_path / "job.yaml"
    file.write_text("test-percent: 20\n")
    arguments = [*places, "--config", str(file)]
    assert test_images() == by_percent["20"]
    monkeypatch.setenv("REGRAFT_TEST_PERCENT", "30")
    assert test_images() == by_percent["30"]
    arguments += ["--test-percent", "40"]
    assert test_images() == by_percent["40"]


def test_a_misspelt_option_is_exit_2_with_its_neighbour(
    places: list[str], capsys: Captured
) -> None:
    """retrain.py ignored unknown flags; here the result says which one was meant."""
    assert plan(*places, "--bach-size", "8") == 2
    assert "--batch-size" in result_of(capsys)["error"]["message"]


def test_a_missing_option_is_exit_2(capsys: Captured) -> None:
    """Without --data there is nothing to do: the result names the flag."""
    assert plan("--models", "m", "--name", "n") == 2
    assert "--data" in result_of(capsys)["error"]["message"]


def test_a_misspelt_variable_is_exit_2_with_its_neighbour(
    places: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that would silently do nothing is refused; what Kubernetes sets is not."""
    monkeypatch.setenv("REGRAFT_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("REGRAFT_PORT_80_TCP_ADDR", "10.0.0.1")
    assert plan(*places) == 0
    monkeypatch.setenv("REGRAFT_BACH_SIZE", "8")
    capsys.readouterr()
    assert plan(*places) == 2
    assert "did you mean REGRAFT_BATCH_SIZE" in result_of(capsys)["error"]["message"]


def test_a_misspelt_key_is_exit_2(places: list[str], capsys: Captured, tmp_path: Path) -> None:
    """A key of the YAML file that is no option is refused as a flag would be."""
    file = tmp_path / "job.yaml"
    file.write_text("bach-size: 8\n")
    assert plan(*places, "--config", str(file)) == 2
    assert "did you mean batch_size" in result_of(capsys)["error"]["message"]


def test_the_result_file_has_what_stdout_has(
    places: list[str], capsys: Captured, tmp_path: Path
) -> None:
    """Success and failure both leave the file."""
    file = tmp_path / "result.json"
    for flags, code in (([], 0), (["--data", str(tmp_path / "nope")], 2)):
        assert plan(*places, *flags, "--result-file", str(file)) == code
        assert json.loads(file.read_text()) == result_of(capsys)


def test_text_on_request(places: list[str], capsys: Captured) -> None:
    """--log-format text gives sentences with hints instead of JSON lines."""
    assert plan(*places, "--data", "/nope", "--log-format", "text") == 2
    shown = capsys.readouterr().err
    assert "error: /nope does not exist" in shown
    assert "hint: " in shown


def test_interrupt_is_130_and_sigterm_143(colours: Path, tmp_path: Path) -> None:
    """A signal ends the process with the code of the contract; SIGTERM leaves a result."""
    data = write_colours(tmp_path / "many", 200)
    command = [sys.executable, "-m", "job", "run", "--data", str(data)]
    command += ["--models", str(tmp_path / "models"), "--name", "squares"]
    # While TensorFlow traces a backbone, an exception from a handler comes out wrapped in its own.
    for number, code, wait in (
        (signal.SIGTERM, 143, 0.7), (signal.SIGTERM, 143, 1.5), (signal.SIGINT, 130, 0.2)
    ):  # fmt: skip
        job = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert job.stderr is not None
        for line in job.stderr:
            if "backbone: started" in line:
                break
        time.sleep(wait)
        job.send_signal(number)
        out, _ = job.communicate(timeout=120)
        assert job.returncode == code
        result = json.loads(out.splitlines()[-1])
        assert result["status"] == ("preempted" if code == 143 else "failed")
    assert not list((tmp_path / "models").rglob("saved_model.pb"))


def test_every_environment_variable_of_the_help_works() -> None:
    """Each option of `run` names a variable after itself."""
    from job.cli import run

    for param in run.params:
        expected = "REGRAFT_" + re.sub("-", "_", param.opts[0].lstrip("-")).upper()
        assert param.envvar == expected, param.name


def test_output_is_pure_json_off_a_terminal(places: list[str]) -> None:
    """Every line of stderr and stdout is one JSON object, TensorFlow's notes included."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-m", "job", "plan", *places],
        cwd=ROOT, capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    for line in [*done.stdout.splitlines(), *done.stderr.splitlines()]:
        assert isinstance(json.loads(line), dict)


def test_a_signal_at_the_very_end_changes_nothing() -> None:
    """What was told stands: the process ends with the code that goes with it."""
    told = []

    def end(code: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        told.append(code)

    assert main(["--version"], end=end) == 0
    assert told == [0]
