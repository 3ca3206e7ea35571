"""Objects and label folders whose names try to be something else, through the whole job."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import COLOURS, ROOT, jpeg, write_colours
from modules import write_pooling

from job.cli import main
from job.dataset import Split
from job.errors import DataError
from job.figures import shown
from job.index import build_index
from job.labels import label_line
from job.sources import folder_rows
from job.split import splitter
from job.storage import Entry, Store, open_store

# No name of the report's own elements and attributes is among these.
ELEMENT, ATTRIBUTE = "evil-element", "data-evil"
LINE = "INJECTED LINE"

NAMES = [
    "with spaces",
    " led and followed ",
    "tab\tand\x01\x1b[31mcontrol\x7f",
    f"new\n{LINE}\nlines",
    f"return\r{LINE}",
    "quotes ' \" ` and \\ backslash",
    f"<script>alert(1)<script><{ELEMENT} {ATTRIBUTE}=1>",
    f'" {ATTRIBUTE}="1" onload="alert(1)',
    "& &lt; &#60;",
    "=cmd|' /C calc'!A0,comma;semicolon",
    "long " * 40,
    "emoji \U0001f600 \U0001f468\u200d\U0001f469",
    "turned \u202eright to left\u2066 \u200f",
    "line\u2028separator\u0085next",
    "decomposed e\u0301",
    "%2e%2e%2f..",
    "a..b",
    "a{b}${c}$(d)",
]
# What only a folder can hold. A bucket has no line ends in its names; two slashes are among those
# that it may have and that the server here makes one of.
LOCAL_NAMES = [os.fsdecode(b"not \xff\xfe utf-8"), *NAMES]
BUCKET_NAMES = [name for name in NAMES if "\n" not in name and "\r" not in name]
# Dot files are passed over, and all that lead elsewhere are among them.
HIDDEN = ["..", ".hidden"]
BUCKET_HIDDEN = [*HIDDEN, "../../escaped", "a/../../escaped"]

# The label folders, by the colour that is in them.
FOLDERS = {
    "cyan": f"<{ELEMENT} {ATTRIBUTE}=1>cyan & 'co'",
    "magenta": 'magenta\t"\x01 \u202e\u2028magenta',
    "yellow": "yellow %2e%2e \U0001f600, =1+1",
}


class Markup(HTMLParser):
    """Collects the elements, the names of all attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text += data

    def is_ours(self) -> bool:
        """Tell whether nothing in the page was made by a name."""
        theirs = {"script", ELEMENT} & self.elements
        return not theirs and not [a for a in self.attributes if a.startswith(("on", ATTRIBUTE))]


@dataclass(frozen=True, slots=True)
class Data:
    """Files by their names: `good` ones, `wrong` ones that have another label, `broken` ones.

    `hidden` ones are passed over.
    """

    good: dict[str, bytes]
    wrong: dict[str, bytes]
    broken: dict[str, bytes]
    hidden: dict[str, bytes]

    @property
    def files(self) -> dict[str, bytes]:
        """All of them."""
        return self.good | self.wrong | self.broken | self.hidden


def hostile(names: Iterable[str], hidden: Iterable[str]) -> Data:
    """Put all names into each folder, besides 60 plain ones; the wrong ones are test images."""
    data = Data({}, {}, {}, {})
    split_of = splitter(10, 10)
    seeds = itertools.count()
    for colour, folder in FOLDERS.items():
        for number in range(60):
            data.good[f"{folder}/{number:03}.jpg"] = jpeg(COLOURS[colour], next(seeds), 16)
        for name in hidden:
            data.hidden[f"{folder}/{name} 1.jpg"] = jpeg(COLOURS[colour], next(seeds), 16)
        for name in names:
            data.broken[f"{folder}/{name} broken.jpg"] = b"<script>no image</script>"
            if colour == "cyan":
                tries = (f"{folder}/{name} {number}.jpg" for number in itertools.count())
                found = next(name for name in tries if split_of(name) is Split.TEST)
                data.wrong[found] = jpeg(COLOURS["yellow"], next(seeds), 16)
    return data


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pooling module."""
    return write_pooling(tmp_path_factory.mktemp("module") / "tf2")


def everything(folder: Path) -> set[bytes]:
    """Give the paths of all that is below a folder."""
    walk = os.walk(os.fsencode(folder))
    return {os.path.join(base, name) for base, dirs, files in walk for name in dirs + files}  # noqa: PTH118


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run left: the result, the version as a local folder, and what it printed."""

    result: dict[str, Any]
    version: Path
    printed: str
    summary: str
    junit: str


def run(data: str, models: str, module: Path, place: Path) -> Ran:
    """Run the job in an empty folder, with a home and a place for temporary files of its own."""
    for name in ("home", "tmp", "empty", "work"):
        (place / name).mkdir()
    before = everything(place)
    command = [sys.executable, "-m", "job", "run", "--name", "colours", "--data", data]
    command += ["--models", models, "--backbone", str(module), "--max-skipped", "100"]
    command += ["--work-dir", str(place / "work"), "--summary-file", str(place / "summary.md")]
    command += ["--junit-file", str(place / "junit.xml")]
    own = {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=os.environ | own, cwd=place / "empty", capture_output=True, timeout=250,
        check=False,
    )  # fmt: skip
    printed = (done.stdout + done.stderr).decode(errors="surrogateescape")
    assert done.returncode == 0, printed[-3000:]
    # Keras and matplotlib keep things in the home folder, TensorFlow among the temporary files.
    ours = ("work", "models", "home", "tmp", "summary.md", "junit.xml")
    kept = tuple(os.fsencode(place / name) for name in ours)
    assert [path for path in everything(place) - before if not path.startswith(kept)] == []
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["status"] == "published"
    version = Path(result["uri"])
    if models.startswith("gs://"):
        store, version = open_store(result["uri"]), place / "fetched"
        for entry in store.list():
            path = version / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.read(entry.name))
    summary, junit = (place / name for name in ("summary.md", "junit.xml"))
    return Ran(result, version, printed, summary.read_text("utf-8"), junit.read_text("utf-8"))


def written(name: str) -> str:
    """Give a name as UTF-8 can hold it."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def check(ran: Ran, data: Data) -> None:
    """Hold all that was published against the data set."""
    labels = sorted(label_line(folder) for folder in FOLDERS.values())
    assert ran.result["labels"] == labels
    text = (ran.version / "labels.txt").read_bytes().decode()
    assert text.splitlines() == text.split("\n")[:-1] == labels
    with (ran.version / "examples.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert set(rows) == {written(name) for name in data.good | data.wrong}
    assert all(label_line(name.partition("/")[0]) == rows[name]["label"] for name in rows)
    manifest = json.loads((ran.version / "manifest.json").read_text("utf-8"))
    skipped = {item["name"]: item["reason"] for item in manifest["inputs"]["data"]["skipped"]}
    assert set(skipped) == set(data.broken)
    assert all(skipped.values())
    assert ran.result["images"]["skipped"] == len(data.broken)
    check_report(ran, data)


def check_report(ran: Ran, data: Data) -> None:
    """Hold page, plots' figures, summary and JUnit file against the data set."""
    page = Markup((ran.version / "report/index.html").read_text("utf-8"))
    assert page.is_ours()
    for name in data.wrong:
        assert shown(name) in page.text
    metrics = json.loads((ran.version / "report/metrics.json").read_text("utf-8"))
    assert {mistake["name"] for mistake in metrics["mistakes"]} >= set(data.wrong)
    # Markdown shows `\<` as it is; a backslash before the backslash would undo that.
    assert not re.search(r"(?<!\\)(\\\\)*<", ran.summary)
    assert "<" in ran.summary
    cases = ET.fromstring(ran.junit).findall(".//testcase")  # noqa: S314 - our own file
    labels = {shown(label_line(folder)) for folder in FOLDERS.values()}
    assert {case.get("name") for case in cases} == {"all images", *labels}
    for text in (ran.printed, ran.summary):
        assert not [line for line in text.splitlines() if line.startswith(LINE)]


def test_a_folder_of_hostile_names(module: Path, tmp_path: Path) -> None:
    """Every name that a file system can hold is read rightly and harmless in all that comes out."""
    data = hostile(LOCAL_NAMES, HIDDEN)
    place = tmp_path / "place"
    for name, contents in data.files.items():
        path = place / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    check(run(str(place / "data"), str(place / "models"), module, place), data)


def test_a_bucket_of_hostile_names(bucket: str, module: Path, tmp_path: Path) -> None:
    """Names that lead elsewhere, were they paths, are names like all others in a bucket."""
    data = hostile(BUCKET_NAMES, BUCKET_HIDDEN)
    store = open_store(f"gs://{bucket}/data")
    for name, contents in data.files.items():
        store.write(name, contents)
    place = tmp_path / "place"
    place.mkdir()
    check(run(f"gs://{bucket}/data", f"gs://{bucket}/models", module, place), data)


REFUSED = {
    "not utf-8": ([os.fsdecode(b"\xff\xfe")], "not UTF-8"),
    "spaces only": (["  "], "no name"),
    "control characters only": (["\x01\x02"], "no name"),
    "one line of labels.txt": (["cyan\n", "cyan\t"], "cannot be told apart"),
    "look alike": (["CYAN"], "cannot be told apart"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_can_be_no_label_is_refused(
    name: str, module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that cannot be a line of labels.txt ends the job with exit code 3, and why."""
    folders, why = REFUSED[name]
    data = write_colours(tmp_path / "data", 3)
    for folder in folders:
        (data / folder).mkdir()
        (data / folder / "1.jpg").write_bytes(jpeg(COLOURS["cyan"], 1, 16))
    error = refused(str(data), tmp_path, module, capsys)
    assert why in error["message"]
    assert any(repr(folder) in error["message"] for folder in folders)


def test_an_object_behind_two_slashes_is_refused() -> None:
    """An object in a folder without a name has no label (the server here joins the slashes)."""

    class Listing:
        uri = "gs://bucket/data"

        def list(self, prefix: str = "") -> Iterator[Entry]:
            names = ("/1.jpg", "cat/1.jpg", "dog/1.jpg")
            return (Entry(name, 1, 1) for name in names if name.startswith(prefix))

    with pytest.raises(DataError, match="the label '' has no name"):
        build_index(folder_rows(cast(Store, Listing())), 10, 10)


def refused(
    data: str, tmp_path: Path, module: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """Run the job in this process, which must end with exit code 3: the error of its result."""
    flags = ["--data", data, "--models", str(tmp_path / "models"), "--backbone", str(module)]
    assert main(["run", "--name", "colours", *flags]) == 3
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["status"] == "failed"
    error: dict[str, str] = result["error"]
    return error


def test_the_parser_sees_what_it_is_there_to_see() -> None:
    """Each of the names that try to be markup is found out where it is not escaped."""
    tries = [name for name in NAMES if ELEMENT in name or ATTRIBUTE in name]
    assert len(tries) == 2
    assert not Markup(f"<p>{tries[0]}</p>").is_ours()
    assert not Markup(f'<p title="{tries[1]}"></p>').is_ours()
    assert Markup('<p title="a" class="b"><svg></svg></p>').is_ours()
