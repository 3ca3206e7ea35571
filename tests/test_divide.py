"""The split of embedded images: copies on one side, nobody moved, the rows where they belong."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_colours
from hypothesis import given
from hypothesis import strategies as st
from modules import write_pooling

from job.cli import main
from job.dataset import Example, Index, Split
from job.divide import find_copies, move_rows
from job.embed import Embeddings
from job.errors import ConfigError
from job.ledger import GONE, LEFT_OUT, WRONG_LABEL, read_ledger
from job.storage import Entry, LocalStore
from job.traits import traits

Captured = pytest.CaptureFixture[str]


@given(st.integers(0, 30).flatmap(lambda n: st.tuples(st.just(n), st.permutations(range(n)))),
       st.integers(0, 30))  # fmt: skip
def test_rows_are_moved_in_place(drawn: tuple[int, list[int]], kept: int) -> None:
    """Row i becomes what row order[i] was; of rows that are in no order nothing is asked."""
    count, order = drawn
    chosen = np.array(order[: min(kept, count)], np.int64)
    table = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
    before = table.copy()
    move_rows(table[:, :2], chosen)
    assert np.array_equal(table[: len(chosen), :2], before[chosen, :2])
    assert np.array_equal(table[:, 2], before[:, 2])


def test_a_mirrored_copy_is_none_under_another_label() -> None:
    """It may be left and right that the labels tell apart; a straight one is a copy under any."""
    random = np.random.default_rng(3)
    pictures = [np.kron(random.random((6, 6, 3)), np.ones((8, 8, 1))) for _ in range(30)]
    shown = [*pictures, pictures[0][:, ::-1], pictures[1][:, ::-1], pictures[2]]
    labels = [0] * 30 + [0, 1, 1]
    features = np.maximum(0, random.normal(size=(30, 64)))[[*range(30), 0, 1, 2]]
    examples = tuple(
        Example(Entry(f"{row}", 1, 1), (label,), Split.TRAIN) for row, label in enumerate(labels)
    )
    embeddings = Embeddings(
        Index(("a", "b"), examples),
        features.astype(np.float32),
        np.stack([traits(b"", pixels.astype(np.float32)) for pixels in shown]),
        tuple(map(str, range(33))),
        (),
        {},
        0,
    )
    assert find_copies(embeddings).tolist() == [[0, 30], [2, 32]]


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny pooling module in TF2 format."""
    return str(write_pooling(tmp_path_factory.mktemp("module") / "tf2"))


class Story:
    """Versions of one model, published one after the other as its data changes."""

    def __init__(self, folder: Path, module: str) -> None:
        self.data, self.models = folder / "data", folder / "m"
        self._module, self._result = module, folder / "result.json"

    def run(self, *flags: str, code: int = 0) -> dict[str, Any]:
        """Train and publish; gives the result."""
        places = ["--data", str(self.data), "--models", str(self.models), "--name", "squares"]
        places += ["--result-file", str(self._result)]
        found = main(["run", *places, "--backbone", self._module, "--gate-alpha", "0", *flags])
        result: dict[str, Any] = json.loads(self._result.read_text())
        assert found == code, result["error"]
        return result

    def ledger(self, result: dict[str, Any]) -> dict[str, dict[str, str]]:
        """Give the rows of a version's ledger by name."""
        version = self.models / "squares" / str(result["version"])
        rows = csv.DictReader((version / "ledger.csv").read_text("utf-8").splitlines())
        return {row["name"]: row for row in rows}


Beginning = tuple[Path, dict[str, Any]]
Begun = tuple[Story, dict[str, Any]]


@pytest.fixture
def story(tmp_path: Path, module: str) -> Story:
    """Squares of three colours, not published yet."""
    write_colours(tmp_path / "data")
    return Story(tmp_path, module)


@pytest.fixture(scope="session")
def beginning(module: str, tmp_path_factory: pytest.TempPathFactory) -> Beginning:
    """The folder of a story whose first version is published, and its result; read only."""
    folder = tmp_path_factory.mktemp("beginning")
    write_colours(folder / "data")
    return folder, Story(folder, module).run()


@pytest.fixture
def begun(beginning: Beginning, tmp_path: Path, module: str) -> Begun:
    """A story of one version, and the result of that."""
    shutil.copytree(beginning[0], tmp_path, dirs_exist_ok=True)
    return Story(tmp_path, module), beginning[1]


def test_an_image_keeps_its_side_wherever_it_goes(begun: Begun) -> None:
    """Renamed, moved, copied, and gone for a version: the side is that of the first version."""
    story, result = begun
    first = story.ledger(result)
    assert len(first) == 120
    assert {row["note"] for row in first.values()} == {""}
    for path in sorted((story.data / "cyan").iterdir()):
        path.rename(path.with_name(f"renamed-{path.name}"))
    for path in sorted((story.data / "yellow").iterdir())[:20]:
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    hidden = story.data / "magenta" / "000.jpg"
    contents = hidden.read_bytes()
    hidden.unlink()
    second = story.ledger(story.run())
    assert second["magenta/000.jpg"]["note"] == GONE
    (story.data / "magenta" / "back.jpg").write_bytes(contents)
    third = story.ledger(story.run())
    by_digest = {row["sha256"]: row["split"] for row in first.values()}
    assert {row["sha256"] for row in third.values()} == set(by_digest)
    for ledger in (second, third):
        assert {r["name"]: r["split"] for r in ledger.values()} == {
            r["name"]: by_digest[r["sha256"]] for r in ledger.values()
        }
    assert len(third) == 140
    first_name = "yellow/000.jpg"
    assert third[first_name]["group"] == third["yellow/copy-000.jpg"]["group"] == first_name
    assert third["cyan/renamed-000.jpg"]["group"] == ""


def test_copies_that_were_apart_come_together(story: Story) -> None:
    """A version split by name alone had them on two sides: what was tested on is a test image."""
    for number in range(40):
        for copy in range(3):
            source = story.data / "cyan" / f"{number:03}.jpg"
            shutil.copy(source, source.with_name(f"c{copy}-{source.name}"))
    before = story.ledger(story.run("--keep-copies-apart"))
    sides: dict[str, set[str]] = {}
    for row in before.values():
        sides.setdefault(row["sha256"], set()).add(row["split"])
    apart = {digest for digest, found in sides.items() if len(found) > 1}
    assert apart
    result = story.run()
    after = story.ledger(result)
    assert result["images"]["total"] == 240
    assert {row["note"] for row in after.values()} == {""}
    for row in after.values():
        had = sides[row["sha256"]]
        best = next(side for side in ("test", "validation", "train") if side in had)
        assert row["split"] == best
    assert story.ledger(story.run("--force")) == after


def test_a_group_that_was_apart_takes_part_on_one_side(begun: Begun) -> None:
    """Its other images are left out, and stay on their sides for the day the group is no more."""
    story, first = begun
    before = story.ledger(first)
    by_ten = ("--group-regex", r"cyan/0([012])")
    result = story.run(*by_ten)
    after = story.ledger(result)
    assert {n: r["split"] for n, r in after.items()} == {n: r["split"] for n, r in before.items()}
    left_out = {name for name, row in after.items() if row["note"] == LEFT_OUT}
    assert result["images"]["left_out"] == len(left_out) > 0
    assert result["images"]["total"] == 120
    for tens in "012":
        group = {name for name in after if name.startswith(f"cyan/0{tens}")}
        assert len({after[name]["split"] for name in group - left_out}) == 1
    assert story.ledger(story.run(*by_ten, "--force")) == after
    assert story.ledger(story.run("--force"))["cyan/000.jpg"]["note"] == ""


def test_resplit_assigns_anew(begun: Begun) -> None:
    """Another share is for new images only, until --resplit; unchanged inputs are trained again."""
    story, first = begun
    wider = story.run("--test-percent", "40")
    assert story.ledger(wider) == story.ledger(first)
    anew = story.run("--test-percent", "40", "--resplit")
    assert anew["images"]["test"] > 2 * wider["images"]["test"]
    assert story.run("--test-percent", "40")["status"] == "unchanged"


def test_evaluate_knows_the_sides_by_content(begun: Begun, capsys: Captured) -> None:
    """The test images of the version are scored, under whatever names they lie there now."""
    story, result = begun
    for path in sorted(story.data.rglob("*.jpg")):
        path.rename(path.with_name(f"other-{path.name}"))
    capsys.readouterr()
    command = ["evaluate", "--model", result["uri"], "--data", str(story.data)]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["n_test"] == result["images"]["test"]


def test_an_import_file_decides_the_split_it_names(story: Story) -> None:
    """ML_USE is obeyed, labels are renamed, rows without a file are told as skipped."""
    rows = []
    for path in sorted(story.data.rglob("*.jpg")):
        use = ["training", "validation", "test", ""][int(path.stem) % 4]
        rows.append(f"{use},{path.relative_to(story.data)},{path.parent.name}")
    file = story.data / "import.csv"
    file.write_text("\n".join([*rows, "test,gone.jpg,cyan"]))
    story.data = file
    result = story.run("--label-map", "cyan=blue", "--exclude", "magenta/00*")
    assert result["labels"] == ["blue", "magenta", "yellow"]
    assert result["images"]["total"] == 111
    assert result["images"]["skipped_names"] == ["gone.jpg: it is not there, or not any more"]
    uses = {"0": "train", "1": "validation", "2": "test"}
    for name, row in story.ledger(result).items():
        number = str(int(Path(name).stem) % 4)
        assert row["split"] == uses.get(number, row["split"])
    moved = file.read_text().replace("training,", "test,")
    file.write_text(moved)
    error = story.run("--label-map", "cyan=blue", code=3)["error"]
    assert "was on the train side" in error["message"]
    assert "--resplit" in error["hint"]


def test_a_damaged_ledger_is_an_error(tmp_path: Path) -> None:
    """Without it images would change sides; a version from before there was one has examples."""
    store = LocalStore(tmp_path)
    assert read_ledger(store, None).lines == ()
    assert read_ledger(store, 5).lines == ()
    store.write("5/examples.csv", b"name,label,split,sha256\r\na.jpg,cat,test,d1\r\n")
    assert [line.name for line in read_ledger(store, 5).lines] == ["a.jpg"]
    for rows in (b"d2,nonsense,x\r\n", b'd2,test,"x\r\n', b"\xff", b"d2\r\n"):
        store.write("5/ledger.csv", b"sha256,split,name\r\n" + rows)
        with pytest.raises(ConfigError, match=r"5/ledger\.csv cannot be read") as caught:
            read_ledger(store, 5)
        assert "--resplit" in caught.value.hint


def test_suspects_are_dropped_from_the_training_images_alone(begun: Begun) -> None:
    """Those with a label that is likely wrong take no part; test images stay, right or wrong."""
    story, published = begun
    first = story.ledger(published)
    moved = {}
    for side in ("train", "test"):
        name = min(n for n, r in first.items() if r["split"] == side and n.startswith("cyan/"))
        moved[side] = f"yellow/{side}.jpg"
        (story.data / name).rename(story.data / moved[side])
    result = story.run("--drop-suspects")
    ledger = story.ledger(result)
    dropped = {name for name, row in ledger.items() if row["note"] == WRONG_LABEL}
    assert dropped == {moved["train"]}
    assert result["images"]["dropped"] == 1
    assert result["images"]["train"] == sum(r["split"] == "train" for r in ledger.values()) - 1
    listing = (Path(result["uri"]) / "report" / "findings.csv").read_text("utf-8")
    assert f"{moved['test']},wrong-label,yellow,cyan" in listing
    whole = story.run()
    assert "dropped" not in whole["images"]
    assert whole["metrics"]["test_accuracy"] < 1


def test_without_the_doctor(story: Story) -> None:
    """The report has no findings; there are none to drop images by."""
    result = story.run("--skip-doctor")
    assert "examine" not in result["seconds"]
    assert not (Path(result["uri"]) / "report" / "findings.csv").exists()
    error = story.run("--skip-doctor", "--drop-suspects", code=2)["error"]
    assert "--drop-suspects means nothing to --skip-doctor" in error["message"]
