"""`inspect`, whole: what was planted is found, and none of the images is touched."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_colours
from modules import write_pooling

from job.cli import main
from job.doctor.listing import read_exclusions
from job.storage import open_store

sys.path.insert(0, str(ROOT / "benchmarks"))
from planted import RE_ENCODED, Truth, plant

Captured = pytest.CaptureFixture[str]


@dataclass(frozen=True, slots=True)
class Inspected:
    """The sample drawings with copies and wrong labels planted, and what `inspect` left."""

    data: Path
    truth: Truth
    output: Path
    cache: Path
    code: int

    @property
    def findings(self) -> dict[str, Any]:
        """The findings as JSON."""
        found: dict[str, Any] = json.loads((self.output / "findings.json").read_text())
        return found


def digests(folder: Path) -> dict[str, str]:
    """Give the SHA-256 of every file by its path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Inspected:
    """Inspect once, with the default backbone."""
    folder = tmp_path_factory.mktemp("inspected")
    truth = plant(ROOT / "samples" / "clipart", folder / "data", seed=0)
    before = digests(folder / "data")
    places = ["--data", str(folder / "data"), "--output", str(folder / "out")]
    code = main(["inspect", *places, "--cache", str(folder / "cache")])
    assert digests(folder / "data") == before
    return Inspected(folder / "data", truth, folder / "out", folder / "cache", code)


def test_swapped_labels_are_among_the_first_suspects(inspected: Inspected) -> None:
    """At least 70 % of 30 in the first 60."""
    assert inspected.code == 0
    first = {suspect["name"] for suspect in inspected.findings["suspects"][:60]}
    found = [swap for swap in inspected.truth.swaps if swap.name in first]
    assert len(found) >= 0.7 * len(inspected.truth.swaps)


def test_copies_that_were_encoded_again_are_found(inspected: Inspected) -> None:
    """At least 95 % of them, each in a group with its original; groups stay small."""
    groups = [set(group["names"]) for group in inspected.findings["copies"]]
    again = [copy for copy in inspected.truth.copies if copy.kind in RE_ENCODED]
    found = [c for c in again if any({c.name, c.original} <= group for group in groups)]
    assert len(found) >= 0.95 * len(again)
    assert max(map(len, groups)) <= 8


def test_no_planted_copy_crosses_the_split(inspected: Inspected, capsys: Captured) -> None:
    """Of a run on the same data, whose ledger says who went where."""
    models = inspected.output.parent / "models"
    places = ["--data", str(inspected.data), "--models", str(models), "--name", "planted"]
    assert main(["run", *places, "--cache", str(inspected.cache), "--max-skipped", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = (Path(result["uri"]) / "ledger.csv").read_text("utf-8").splitlines()
    side = {row.split(",")[3]: row.split(",")[1] for row in lines[1:]}
    assert len(side) == len(list(inspected.data.glob("*/*")))
    crossed = [c for c in inspected.truth.copies if side[c.name] != side[c.original]]
    assert crossed == []


def test_the_csv_comes_back_as_what_to_leave_out(inspected: Inspected, capsys: Captured) -> None:
    """`--exclude @FILE` takes it whole: what it names is not among the images any more."""
    listing = inspected.output / "findings.csv"
    names = read_exclusions(listing.read_bytes().decode())
    models = str(inspected.output.parent / "other")
    command = ["plan", "--data", str(inspected.data), "--models", models, "--name", "x"]
    assert main([*command, "--exclude", f"@{listing}"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    total = len(list(inspected.data.glob("*/*")))
    assert result["images"]["total"] == total - len(names)
    assert main([*command, "--exclude", "@nowhere.csv"]) == 2
    assert "it does not exist" in capsys.readouterr().out


def test_what_changed_since_a_version_is_told(tmp_path: Path, capsys: Captured) -> None:
    """New, gone and relabelled images, by the data of the version in service."""
    data = write_colours(tmp_path / "data")
    module = str(write_pooling(tmp_path / "module"))
    common = ["--data", str(data), "--models", str(tmp_path / "m"), "--name", "squares"]
    common += ["--backbone", module]
    assert main(["run", *common]) == 0
    (data / "cyan" / "000.jpg").unlink()
    (data / "cyan" / "001.jpg").rename(data / "yellow" / "moved.jpg")
    new = data / "cyan" / "new.jpg"
    new.write_bytes((data / "cyan" / "002.jpg").read_bytes() + b"x")
    (data / "cyan" / "broken.jpg").write_bytes(b"no image")
    capsys.readouterr()
    output = tmp_path / "out"
    summary = tmp_path / "summary.md"
    flags = ["--output", str(output), "--summary-file", str(summary)]
    assert main(["inspect", *common, *flags]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["status"] == "inspected"
    assert said["found"]["unreadable"] == 1
    drift = json.loads((output / "findings.json").read_text())["drift"]
    assert drift["gone"] == ["cyan/000.jpg"]
    assert drift["new"] == ["cyan/new.jpg"]
    moved = {"name": "yellow/moved.jpg", "before": "cyan", "label": "yellow"}
    assert drift["relabelled"] == [moved]
    assert summary.read_text().startswith("## Data")
    capsys.readouterr()
    assert main(["inspect", *common[:4], "--output", str(output)]) == 2
    assert "--name is None" in capsys.readouterr().err


def test_data_that_cannot_be_trained_on_is_looked_at(tmp_path: Path, capsys: Captured) -> None:
    """Labels with an image or two, or none: that is what a doctor is for."""
    data = write_colours(tmp_path / "data", 2)
    (data / "empty").mkdir()
    flags = ["--backbone", str(write_pooling(tmp_path / "module")), "--cache", "off"]
    command = ["inspect", "--data", str(data), "--output", str(tmp_path / "out"), *flags]
    assert main(command) == 0
    found = json.loads((tmp_path / "out" / "findings.json").read_text())
    assert found["images"] == 6
    assert found["left_out"]
    for path in data.rglob("*.jpg"):
        path.write_bytes(b"no image")
    assert main(command) == 3
    assert "none of 6 images could be read" in capsys.readouterr().err


def test_bucket_in_and_bucket_out(
    upload: Callable[[Path, str], str], bucket: str, tmp_path: Path, capsys: Captured
) -> None:
    """The images, the page and the CSV that comes back are all in a bucket."""
    folder = write_colours(tmp_path / "data", 20)
    (folder / "cyan" / "020.jpg").write_bytes((folder / "cyan" / "000.jpg").read_bytes())
    data = upload(folder, "data")
    output = f"gs://{bucket}/inspection"
    flags = ["--backbone", str(write_pooling(tmp_path / "module")), "--cache", "off"]
    assert main(["inspect", "--data", data, "--output", output, *flags]) == 0
    store = open_store(output)
    assert "cyan/020.jpg,copy,cyan,,,cyan/000.jpg" in store.read("findings.csv").decode()
    assert b"<html" in store.read("index.html")
    capsys.readouterr()
    models = f"gs://{bucket}/models"
    plan = ["plan", "--data", data, "--models", models, "--name", "x"]
    assert main([*plan, "--exclude", f"@{output}/findings.csv"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    named = read_exclusions(store.read("findings.csv").decode())
    assert result["images"]["total"] == 61 - len(named)
