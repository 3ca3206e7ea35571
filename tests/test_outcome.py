"""What CI shows of a run that has no report, by its result alone."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from job import outcome
from job.cli import main
from job.cli_announce import Announcement
from job.errors import DataError, GateRejected, RegraftError, Stopped, UnavailableError
from job.result import Result


def result_of(status: str, error: RegraftError | None = None) -> dict[str, Any]:
    """Give a result as it is written, of a run that reached its end or ended by an error."""
    result = Result(status, 17, "gs://b/m/flowers/17", ["rose", "tulip"])
    result.images = {"total": 9, "train": 5, "validation": 2, "test": 2}
    result.metrics = {"test_accuracy": 0.75, "n_test": 2}
    if error:
        result.fail(error)
    return dict(json.loads(result.to_json()))


ENDINGS = [
    (result_of("published"), None, "version 17 is published"),
    (result_of("planned"), None, "planned"),
    (result_of("unchanged"), "skipped", "unchanged, version 17 stays in service"),
    (result_of("embedded"), "skipped", "embedded"),
    (result_of("helped"), "skipped", "helped"),
    (result_of("x", GateRejected("too bad", hint="see")), "failure", "rejected by the gate"),
    (result_of("x", DataError("no images", hint="put some")), "error", "failed"),
    (result_of("x", UnavailableError("bucket is out", hint="wait")), "error", "failed"),
    (result_of("x", Stopped("SIGTERM", hint="again")), "error", "stopped, run it again"),
]


@pytest.mark.parametrize(("result", "tag", "words"), ENDINGS)
def test_each_ending_is_the_case_that_it_is(
    result: dict[str, Any], tag: str | None, words: str
) -> None:
    """JUnit: passed, skipped, failed by the gate or an error; summary and case say why."""
    suite = ET.fromstring(outcome.junit("flowers", result)).find("testsuite")  # noqa: S314 - ours
    assert suite is not None
    (case,) = suite.findall("testcase")
    assert [child.tag for child in case if child.tag != "system-out"] == ([tag] if tag else [])
    sums = {"skipped": "skipped", "failure": "failures", "error": "errors"}
    counted = {name: suite.get(name) for name in sums.values()}
    assert counted == {name: "1" if tag and name == sums[tag] else "0" for name in counted}
    text = outcome.markdown("flowers", result)
    heading, *body = text.splitlines()
    assert heading == f"## flowers: {words}"
    assert "9 images: 5 train, 2 validation, 2 test." in body
    assert "| test\\_accuracy | 0.7500 |" in body
    if error := result["error"]:
        assert error["message"] in text
        assert f"{error['message']}. {error['hint']}" in str(case[0].get("message"))


def test_a_result_with_next_to_nothing_in_it_is_an_error() -> None:
    """A pod may have left anything; no status is no success."""
    suite = ET.fromstring(outcome.junit("", {})).find("testsuite")  # noqa: S314 - ours
    assert suite is not None
    assert suite.get("errors") == "1"
    assert outcome.markdown("", {"error": {"message": "gone"}}).startswith("## run: failed\n\ngone")
    assert outcome.annotation("", {}).startswith("::error title=run%3A failed::")


def test_hostile_text_stays_text() -> None:
    """No name or message makes a second line, markup, broken XML or another workflow command."""
    nasty = "a\n::error::x <b> | `%0A` \x07\u202e\udcff"
    result = result_of("x", DataError(nasty, hint=nasty))
    assert outcome.markdown(nasty, result).count("\n#") == 0
    assert "<b>" not in outcome.markdown(nasty, result).replace("\\<b", "")
    ET.fromstring(outcome.junit(nasty, result))  # noqa: S314 - ours
    line = outcome.annotation(nasty, result)
    assert len(line.splitlines()) == 1
    assert "%250A" in line  # its own % is escaped, so it stays what it was
    assert line.startswith("::error title=a\\n%3A%3Aerror")


def test_the_annotation_is_never_empty() -> None:
    """Where nothing went wrong and nothing is published it counts the images."""
    result = {**result_of("planned"), "uri": None}
    said = "9 images: 5 train, 2 validation, 2 test."
    assert outcome.annotation("flowers", result) == f"::notice title=flowers%3A planned::{said}"


@pytest.mark.parametrize("status", ["published", "rejected"])
def test_what_the_report_has_told_is_not_told_twice(status: str, tmp_path: Path) -> None:
    """The gate's own summary and cases stay as they are."""
    files = {"summary_file": tmp_path / "s.md", "junit_file": tmp_path / "j.xml"}
    for file in files.values():
        file.write_text("by the report")
    Announcement(files).make(Result(status, 17))
    assert [file.read_text() for file in files.values()] == ["by the report"] * 2


def test_a_failure_after_the_gate_replaces_its_cases(tmp_path: Path) -> None:
    """The summary goes on, and the cases, which all passed, make way for the error."""
    files = {"summary_file": tmp_path / "s.md", "junit_file": tmp_path / "j.xml"}
    for file in files.values():
        file.write_text("by the report\n")
    result = Result()
    result.fail(DataError("no", hint=""))
    Announcement({**files, "name": "flowers"}).make(result)
    assert files["summary_file"].read_text().startswith("by the report\n## flowers")
    assert "<error" in files["junit_file"].read_text()


def test_what_cannot_be_written_costs_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result is told all the same."""
    (tmp_path / "none").write_text("a file, where a folder would have to be")
    files = {key: tmp_path / "none" / key for key in ("summary_file", "junit_file", "result_file")}
    Announcement(files).make(Result("unchanged", 17))
    told = capsys.readouterr()
    assert json.loads(told.out)["status"] == "unchanged"
    assert len(told.err.splitlines()) == 3


def test_a_refused_option_is_told_to_ci(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad usage ends before the run, and GitHub's page and summary say what was wrong with it."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert main(["run", "--data", "d", "--models", "m", "--nmae", "flowers"]) == 2
    told = capsys.readouterr()
    assert json.loads(told.out.splitlines()[-1])["error"]["type"] == "ConfigError"
    assert "::error title=run%3A failed::No such option" in told.err
    assert "nmae" in (tmp_path / "summary.md").read_text()
