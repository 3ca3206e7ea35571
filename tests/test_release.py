"""What a published name promises: its labels, its quality, and that a bad model stays out."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_colours
from gcs_server import free_port
from modules import write_pooling

from job import pipeline
from job.cli import main
from job.fit import Fit
from job.head import Head
from job.lbfgs import fit
from job.serving import wait_available

Captured = pytest.CaptureFixture[str]


class Job:
    """A data set, a store and a small backbone; `run` gives the exit code and the result."""

    def __init__(self, folder: Path, capsys: Captured) -> None:
        self.data = write_colours(folder / "data")
        self.models = folder / "m"
        self.capsys = capsys
        self.module = write_pooling(folder / "module")

    def run(self, *flags: object, command: str = "run") -> tuple[int, dict[str, Any]]:
        """Run the job in this process."""
        self.capsys.readouterr()
        code = main([
            command, "--data", str(self.data), "--models", str(self.models), "--name", "squares",
            "--backbone", str(self.module), *map(str, flags),
        ])  # fmt: skip
        return code, json.loads(self.capsys.readouterr().out.splitlines()[-1])

    def versions(self) -> list[int]:
        """Give the versions that TensorFlow Serving would see."""
        return sorted(int(p.name) for p in (self.models / "squares").iterdir() if p.name.isdigit())

    def ask(self, command: str, *flags: str) -> tuple[int, str]:
        """Run a command on the model; its exit code and what it printed."""
        self.capsys.readouterr()
        code = main([command, "--models", str(self.models), "--name", "squares", *flags])
        return code, self.capsys.readouterr().out


@pytest.fixture
def job(tmp_path: Path, capsys: Captured) -> Job:
    """A job that has not run."""
    return Job(tmp_path, capsys)


def test_the_life_of_a_model(job: Job) -> None:
    """Unchanged, label contract, rollback, promote, serving-config, prune, verify: one story."""
    _, first = job.run()
    assert job.run()[1]["status"] == "unchanged"
    assert job.versions() == [first["version"]]
    code, foreseen = job.run(command="plan")
    assert (code, foreseen["status"], foreseen["uri"]) == (0, "unchanged", first["uri"])
    assert job.run("--force", command="plan")[1]["status"] == "planned"
    # A new label goes to the end, however it sorts.
    shutil.copytree(job.data / "cyan", job.data / "azure")
    for path in (job.data / "azure").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\xff\xd9", b"\xff\xd9 "))
    code, second = job.run("--gate-alpha", 0, command="plan")
    assert (code, second["labels"]) == (0, ["cyan", "magenta", "yellow", "azure"])
    assert second["status"] == "planned"
    shutil.rmtree(job.data / "azure")
    # A label that is gone is refused, before anything is trained; with a word it is allowed.
    aside = job.data.parent / "aside"
    shutil.move(job.data / "cyan", aside)
    code, refused = job.run()
    assert code == 5
    assert "'cyan'" in refused["error"]["message"]
    assert "backbone" not in refused["seconds"]
    code, planned = job.run("--allow-label-change", command="plan")
    assert (code, planned["labels"]) == (0, ["magenta", "yellow"])
    shutil.move(aside, job.data / "cyan")
    # The same inputs again, by force; then back, and forth.
    _, forced = job.run("--force")
    assert forced["status"] == "published"
    assert job.versions() == [first["version"], forced["version"]]
    assert json.loads(job.ask("rollback")[1])["version"] == first["version"]
    assert job.versions() == [first["version"]]
    # What a person took back does not come again by itself; the first one's inputs are the same.
    assert job.run()[1]["status"] == "unchanged"
    assert job.versions() == [first["version"]]
    assert job.ask("promote", "--version", str(forced["version"]))[0] == 0
    assert job.versions() == [first["version"], forced["version"]]
    listed = [json.loads(line) for line in job.ask("versions")[1].splitlines()]
    assert [v["in_service"] for v in listed] == [False, True]
    assert listed[0]["accuracy"] == 1.0
    assert str(forced["version"]) in job.ask("serving-config")[1]
    assert job.ask("prune", "--keep", "1") == (0, '{"deleted": []}\n')  # it is `previous`
    # Every byte counts.
    job.capsys.readouterr()
    assert main(["verify", "--model", first["uri"]]) == 0
    assert json.loads(job.capsys.readouterr().out)["problems"] == []
    weights = Path(first["uri"]) / "variables" / "variables.data-00000-of-00001"
    contents = bytearray(weights.read_bytes())
    contents[len(contents) // 2] ^= 1
    weights.write_bytes(contents)
    assert main(["verify", "--model", first["uri"]]) == 5
    assert weights.name in job.capsys.readouterr().out


def test_the_gate_refuses_and_keeps_the_report(job: Job, tmp_path: Path) -> None:
    """Below a minimum: exit 4, nothing published; report, summary and JUnit say why."""
    summary, cases = tmp_path / "summary.md", tmp_path / "junit.xml"
    for number in range(0, 40, 2):  # every other square is under the next label
        first, second = (job.data / label / f"{number:03}.jpg" for label in ("cyan", "yellow"))
        swapped = first.read_bytes(), second.read_bytes()
        second.write_bytes(swapped[0])
        first.write_bytes(swapped[1])
    code, result = job.run("--min-accuracy", 0.95, "--summary-file", summary, "--junit-file", cases)
    assert code == 4
    assert result["status"] == "rejected"
    assert "accuracy" in result["error"]["message"]
    assert job.versions() == []
    report = Path(result["uri"]) / "report" / "index.html"
    assert ".rejected" in report.parts
    assert report.exists()
    assert summary.read_text()
    assert ET.parse(cases).getroot().iter("failure").__next__() is not None  # noqa: S314 - ours


def worse(change: str) -> Any:
    """Give a fit whose head is spoilt in one way."""

    def spoilt(*arguments: Any, **options: Any) -> Fit:
        made = fit(*arguments, **options)
        kernel, bias = made.head.kernel.copy(), made.head.bias.copy()
        if change == "swapped":
            kernel[:, [0, 1]], bias[[0, 1]] = kernel[:, [1, 0]], bias[[1, 0]]
        else:
            np.random.default_rng(0).shuffle(kernel)
        head = Head(kernel, bias)
        return Fit(head, made.l2, made.loss, made.validation_loss, 0.0, made.iterations)

    return spoilt


@pytest.mark.parametrize("change", ["swapped", "shuffled"])
def test_a_worse_model_does_not_replace_the_one_in_service(
    change: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained badly on the same images, it loses the paired test: exit 4, the old one stays."""
    _, first = job.run("--test-percent", 30)
    monkeypatch.setattr("job.lbfgs.fit", worse(change))
    code, result = job.run("--test-percent", 30, "--force")
    assert code == 4
    assert str(first["version"]) in result["error"]["message"]
    assert job.versions() == [first["version"]]


@pytest.mark.parametrize("change", ["swapped", "shuffled"])
def test_an_export_that_is_not_the_trained_model_is_not_published(
    change: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written answers otherwise than what was trained: exit 5, nothing published."""
    from job import stages

    right = stages.Classifier

    def wrong(backbone: Any, head: Head, labels: tuple[str, ...], **options: Any) -> Any:
        kernel = head.kernel[:, [1, 0, 2]] if change == "swapped" else head.kernel[::-1].copy()
        return right(backbone, Head(kernel, head.bias), labels, **options)

    monkeypatch.setattr(stages, "Classifier", wrong)
    code, result = job.run()
    assert code == 5
    assert "saved_model.pb" in result["error"]["message"]
    assert "expected the trained model's" in result["error"]["message"]
    assert job.versions() == []


def test_pipeline_reads_as_one_screen() -> None:
    """`run` is the story: it fits on a screen."""
    import inspect

    assert len(inspect.getsource(pipeline.run).splitlines()) <= 50


@contextlib.contextmanager
def serving(base: Path, log: Path) -> Iterator[str]:
    """Keep the stand-in for TensorFlow Serving alive on a base path; gives its URL."""
    port = free_port()
    script = Path(__file__).with_name("serving_standin.py")
    flags = ["--base-path", str(base), "--name", "squares", "--port", str(port)]
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, script, *flags, "--poll-seconds", "0.2"], stdout=file, stderr=file
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def test_a_run_waits_for_the_server_and_takes_back_what_does_not_come_up(
    job: Job, tmp_path: Path
) -> None:
    """Served: done. A server that looks elsewhere never has it: exit 5, the old one in service."""
    with serving(job.models / "squares", tmp_path / "log") as url:
        code, first = job.run("--serving-url", url, "--serving-timeout", 120)
    assert code == 0, (tmp_path / "log").read_text()
    assert "serving" in first["seconds"]
    shutil.copytree(first["uri"], tmp_path / "elsewhere" / str(first["version"]))
    with serving(tmp_path / "elsewhere", tmp_path / "log2") as url:
        wait_available(url, "squares", first["version"], timeout=120)
        code, second = job.run("--force", "--serving-url", url, "--serving-timeout", 3)
    assert code == 5
    assert second["status"] == "failed"
    assert job.versions() == [first["version"]]
    withdrawn = [v for v in job.ask("versions")[1].splitlines() if '"withdrawn"' in v]
    assert len(withdrawn) == 1
    channels = json.loads((job.models / "squares" / "channels.json").read_text())
    assert channels["stable"] == first["version"]
