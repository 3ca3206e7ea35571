"""Folders and import files, one or several, in a bucket or on a disk, give the same rows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.dataset import Split
from job.errors import ConfigError, DataError
from job.importfile import Listed, parse_import
from job.sources import Found, Row, Selection, find_images
from job.storage import open_store

Upload = Callable[[Path, str], str]


def write(folder: Path, *names: str) -> Path:
    """Make files that hold their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def find(*uris: str, select: Selection | None = None, several: bool = False) -> Found:
    """List sources as a run does."""
    return find_images(uris, open_store, select, several=several)


def told(row: Row) -> tuple[str, tuple[str, ...], str, Split | None]:
    """Give what a test compares of a row."""
    return row.entry.name, row.labels, row.key, row.use


def test_one_folder_has_relative_names(tmp_path: Path) -> None:
    """Its store is read from directly, so the names are what they have always been."""
    found = find(str(write(tmp_path, "cat/1.jpg", "dog/2.jpg")))
    assert [told(row)[:3] for row in found.rows] == [
        ("cat/1.jpg", ("cat",), "cat/1.jpg"),
        ("dog/2.jpg", ("dog",), "dog/2.jpg"),
    ]


def test_several_folders_have_whole_names_and_relative_keys(tmp_path: Path, upload: Upload) -> None:
    """The split goes by the key, so an image is on its side whatever other sources there are."""
    here = write(tmp_path / "here", "cat/1.jpg")
    there = upload(write(tmp_path / "there", "cat/1.jpg", "cow/3.jpg"), "there")
    found = find(str(here), there)
    assert [told(row)[:3] for row in found.rows] == [
        (f"{here}/cat/1.jpg", ("cat",), "cat/1.jpg"),
        (f"{there}/cat/1.jpg", ("cat",), "cat/1.jpg"),
        (f"{there}/cow/3.jpg", ("cow",), "cow/3.jpg"),
    ]
    for row in found.rows:
        assert found.store.read(row.entry.name, row.entry).decode() == row.key
        assert next(iter(found.store.list(row.entry.name))) == row.entry


CSV = """\
training,cat/1.jpg,cat
TEST,"cat/with, comma.jpg",cat

cow/3.jpg,cow
cow/none.jpg
cow/4.jpg , cow
"""


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_csv_import_file(tmp_path: Path, upload: Upload, place: str) -> None:
    """Uses, commas, blank lines and images without a label; a missing image is told when read."""
    names = ("cat/1.jpg", "cat/with, comma.jpg", "cow/3.jpg", "cow/none.jpg")
    folder = write(tmp_path / "d", *names)
    (folder / "import.csv").write_text(CSV)
    found = find((upload(folder, "d") if place == "bucket" else str(folder)) + "/import.csv")
    assert [told(row) for row in found.rows] == [
        ("cat/1.jpg", ("cat",), "cat/1.jpg", Split.TRAIN),
        ("cat/with, comma.jpg", ("cat",), "cat/with, comma.jpg", Split.TEST),
        ("cow/3.jpg", ("cow",), "cow/3.jpg", None),
        ("cow/4.jpg", ("cow",), "cow/4.jpg", None),
    ]
    assert found.unlabelled == 1
    for row in found.rows[:3]:
        assert found.store.read(row.entry.name, row.entry).decode() == row.key
    with pytest.raises(FileNotFoundError):
        found.store.read("cow/4.jpg", found.rows[3].entry)


def test_json_lines_name_objects_of_any_bucket(tmp_path: Path, upload: Upload) -> None:
    """As Vertex AI writes them; what is not below the file's folder has its whole URI."""
    there = upload(write(tmp_path / "there", "x/cat/1.jpg", "x/cow/2.jpg"), "there")
    rows = [
        {
            "imageGcsUri": f"{there}/x/cat/1.jpg",
            "classificationAnnotation": {
                "displayName": "cat",
                "annotationResourceLabels": {"aiplatform.googleapis.com/annotation_set_name": "s"},
            },
            "dataItemResourceLabels": {"aiplatform.googleapis.com/ml_use": "validation"},
        },
        {
            "imageGcsUri": f"{there}/x/cow/2.jpg",
            "classificationAnnotation": {"displayName": "cow"},
        },
        {"imageGcsUri": f"{there}/x/cow/9.jpg"},
    ]
    file = tmp_path / "import.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    found = find(str(file))
    assert [told(row) for row in found.rows] == [
        (f"{there}/x/cat/1.jpg", ("cat",), f"{there}/x/cat/1.jpg", Split.VALIDATION),
        (f"{there}/x/cow/2.jpg", ("cow",), f"{there}/x/cow/2.jpg", None),
    ]
    assert found.unlabelled == 1
    assert found.store.read(f"{there}/x/cow/2.jpg", found.rows[1].entry) == b"x/cow/2.jpg"


def test_several_labels(tmp_path: Path) -> None:
    """In both formats; an image without any is a negative one where the list is empty."""
    write(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "a.csv").write_text("1.jpg,cat,dog\n1.jpg,cow\n2.jpg\n")
    none: list[object] = []
    lines = [
        {"imageGcsUri": "3.jpg", "classificationAnnotations": none},
        {"imageGcsUri": "2.jpg", "classificationAnnotations": [{"displayName": "cat"}]},
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = find(str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl"), several=True)
    assert [row.labels for row in found.rows] == [("cat", "dog", "cow"), ("cat",), ()]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "1.jpg,cat,dog\n2.jpg,cat\n"),
        (
            "a.jsonl",
            '{"imageGcsUri":"1.jpg","classificationAnnotations":'
            '[{"displayName":"cat"},{"displayName":"dog"}]}',
        ),
    ],
)
def test_one_row_with_several_labels_is_refused_by_name(
    tmp_path: Path, name: str, text: str
) -> None:
    """Where an image has one label: the hint names the task, and who looks at one label only."""
    write(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"^1\.jpg has the labels 'cat', 'dog', expected") as caught:
        find(str(tmp_path / name))
    assert "--task multilabel" in caught.value.hint
    assert "`inspect` looks at images with one label each" in caught.value.hint
    assert find(str(tmp_path / name), several=True).rows[0].labels == ("cat", "dog")


def test_a_label_that_a_row_names_twice_is_one(tmp_path: Path) -> None:
    """Once an image has it, it has it."""
    (write(tmp_path, "1.jpg") / "a.csv").write_text("1.jpg,cat,cat\n")
    assert [row.labels for row in find(str(tmp_path / "a.csv")).rows] == [("cat",)]


def test_an_empty_list_of_labels_says_something_only_where_several_are_allowed(
    tmp_path: Path,
) -> None:
    """A negative image then; else there is nothing to learn from it, as without a list."""
    write(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    rows: list[dict[str, object]] = [
        {"imageGcsUri": "1.jpg", "classificationAnnotations": [{"displayName": "cat"}]},
        {"imageGcsUri": "2.jpg", "classificationAnnotations": []},
        {"imageGcsUri": "3.jpg"},
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    one, any_number = find(str(file)), find(str(file), several=True)
    assert ([row.labels for row in one.rows], one.unlabelled) == ([("cat",)], 2)
    assert ([row.labels for row in any_number.rows], any_number.unlabelled) == ([("cat",), ()], 1)


def test_the_same_image_in_two_sources(tmp_path: Path) -> None:
    """It counts once; under two labels, or for two sides, it is an error that names it."""
    write(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "a.csv").write_text("1.jpg,cat\n2.jpg,dog\n")
    (tmp_path / "b.csv").write_text("1.jpg,cat\n")
    both = str(tmp_path / "a.csv"), str(tmp_path / "b.csv")
    assert len(find(*both).rows) == 2
    (tmp_path / "b.csv").write_text("1.jpg,dog\n")
    with pytest.raises(DataError, match=r"1\.jpg is listed twice, as 'cat', 'dog'"):
        find(*both)
    (tmp_path / "b.csv").write_text("test,1.jpg,cat\n")
    with pytest.raises(DataError, match=r"listed twice, as None and test"):
        find(*both)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "test,,cat\n", "line 1: found ',cat', expected"),
        ("a.csv", '1.jpg,cat\n"2.jpg,cat\n', "line 2: found unexpected end of data"),
        ("a.csv", "../1.jpg,cat\n", r"names the image '\.\./1\.jpg'"),
        ("a.csv", "https://x/1.jpg,cat\n", "names the image 'https://x/1.jpg'"),
        ("a.jsonl", '{"imageGcsUri": "1.jpg"}\n{"x": 1}\n', "line 2: found .*KeyError"),
        ("a.jsonl", "[1]\n", "line 1: found .*expected an object"),
        ("a.jsonl", '{"imageGcsUri": 7}\n', "where there should be text"),
        (
            "a.jsonl",
            '{"imageGcsUri":"1","dataItemResourceLabels":'
            '{"aiplatform.googleapis.com/ml_use":"tset"}}',
            "'tset', expected training, validation or test",
        ),
        ("a.csv", b"\xff\xfe1.jpg", "is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    """With what was found and what was expected."""
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as caught:
        find(str(tmp_path / name))
    assert caught.value.hint
    with pytest.raises(ConfigError, match="does not exist"):
        find(str(tmp_path / "other.csv"))


@given(st.binary(max_size=200), st.sampled_from(["gs://b/x.csv", "gs://b/x.jsonl"]))
def test_any_bytes_are_rows_or_a_clear_error(contents: bytes, uri: str) -> None:
    """An import file comes from outside: it never ends in a bug."""
    with contextlib.suppress(DataError):
        assert all(isinstance(row, Listed) and row.path for row in parse_import(uri, contents))


def test_patterns_and_names_choose(tmp_path: Path) -> None:
    """--include, --exclude and what a file names, on the name that people see."""
    store = str(write(tmp_path, "cat/1.jpg", "cat/old/2.jpg", "dog/3.jpg", "dog/[4].jpg"))

    def names(select: Selection) -> list[str]:
        return [row.key for row in find(store, select=select).rows]

    assert names(Selection(include=("cat/*",))) == ["cat/1.jpg", "cat/old/2.jpg"]
    assert names(Selection(exclude=("*/old/*", "*/[[]4].jpg"))) == ["cat/1.jpg", "dog/3.jpg"]
    chosen = Selection(("dog/*",), names=frozenset(["dog/[4].jpg", "dog/mangled.jpg"]))
    assert names(chosen) == ["dog/3.jpg"]
    assert find(store, select=chosen).excluded == 3
    assert find(store, select=chosen).unmatched == 1


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_pattern_stands_for_import_files(tmp_path: Path, upload: Upload, place: str) -> None:
    """Vertex AI names the files of a data set so; what they end in does not matter."""
    folder = write(tmp_path / "d", "images/1.jpg", "images/2.jpg", "images/3.jpg")
    files = {"training-00001-of-00002": 1, "training-00002-of-00002": 2, "test-1.jsonl": 3}
    for name, number in files.items():
        row = {
            "imageGcsUri": f"images/{number}.jpg",
            "classificationAnnotation": {"displayName": "cat"},
            "dataItemResourceLabels": {"aiplatform.googleapis.com/ml_use": name.split("-")[0]},
        }
        (folder / name).write_text(json.dumps(row))
    base = upload(folder, "d") if place == "bucket" else str(folder)
    found = find(f"{base}/training-*", f"{base}/test-*")
    assert [(row.key, row.use) for row in found.rows] == [
        ("images/1.jpg", Split.TRAIN),
        ("images/2.jpg", Split.TRAIN),
        ("images/3.jpg", Split.TEST),
    ]
    assert [row.key for row in find(f"{base}/test-*").rows] == ["images/3.jpg"]
    with pytest.raises(ConfigError, match=r"validation-\* fits no file"):
        find(f"{base}/validation-*")


def test_only_the_asterisk_is_special(tmp_path: Path) -> None:
    """Brackets in the name of a file are brackets."""
    folder = write(tmp_path, "1.jpg")
    for name in ("a[1]-x.csv", "a1-x.csv"):
        (folder / name).write_text(f"1.jpg,{name[:4]}")
    assert [row.labels for row in find(f"{folder}/a[1]-*").rows] == [("a[1]",)]


def test_a_folder_may_have_an_asterisk_in_its_name(tmp_path: Path) -> None:
    """A path that is there is no pattern."""
    found = find(str(write(tmp_path / "a*b", "cat/1.jpg")))
    assert [row.key for row in found.rows] == ["cat/1.jpg"]
