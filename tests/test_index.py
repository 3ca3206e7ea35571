"""The index of a data set: its labels, and what is told when there is nothing to learn."""

from __future__ import annotations

from pathlib import Path

import pytest

from job.dataset import Split
from job.errors import ConfigError, DataError
from job.index import build_index
from job.sources import folder_rows
from job.storage import LocalStore


def tree(root: Path, **folders: int) -> LocalStore:
    """Make folders with so many files each (content does not matter to an index)."""
    for folder, count in folders.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number}.jpg").write_bytes(b"x")
    return LocalStore(root)


def test_labels_are_sorted_folders(tmp_path: Path) -> None:
    """The labels are the sorted folder names; every file in them is an example."""
    index = build_index(folder_rows(tree(tmp_path, zebra=40, ant=40)), 20, 20)
    assert index.labels == ("ant", "zebra")
    assert len(index.examples) == 80
    assert sum(index.count(split) for split in Split) == 80
    by_name = {example.name: example.class_index for example in index.examples}
    assert by_name["ant/1.jpg"] == 0
    assert by_name["zebra/1.jpg"] == 1


def test_labels_can_be_arranged(tmp_path: Path) -> None:
    """In another order of the labels each example still has its own."""
    index = build_index(folder_rows(tree(tmp_path, ant=40, bee=40, cat=40)), 20, 20)
    moved = index.arranged(("cat", "ant", "bee"))
    assert moved.labels == ("cat", "ant", "bee")
    for example in moved.examples:
        assert example.name.startswith(moved.labels[example.class_index])


def test_leftovers_are_passed_over(tmp_path: Path) -> None:
    """Dot files, Thumbs.db and files next to the folders are no examples, dot folders no labels."""
    store = tree(tmp_path, a=40, b=40)
    for name in ("README.md", "a/.DS_Store", "b/Thumbs.db", ".git/config", "a/.cache/x.jpg"):
        store.write(name, b"x")
    assert len(build_index(folder_rows(store), 20, 20).examples) == 80


def test_nested_folders_belong_to_the_label(tmp_path: Path) -> None:
    """A file two folders down is an example of the top folder's label."""
    store = tree(tmp_path, a=40, b=40)
    store.write("a/deeper/1.jpg", b"x")
    index = build_index(folder_rows(store), 20, 20)
    assert index.labels == ("a", "b")
    assert len(index.examples) == 81


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "no images were found"),
        ({"only": 40}, "one label only"),
        ({"a": 40, "b": 40, "empty": 0}, "no images in 'empty'"),
        ({"a": 40, "Red Rose": 40, "red_rose": 40}, r"'Red Rose'.*'red_rose'"),
        ({"a": 40, "café": 40, "cafe\u0301": 40}, "cannot be told apart"),
        (
            {"a": 40, "rare": 2},
            r"no train image of 'rare': there are 2 readable .* at least 3",
        ),
    ],
)
def test_data_that_cannot_be_trained_on(
    tmp_path: Path, folders: dict[str, int], message: str
) -> None:
    """Each fault of the data is named, with what to do about it."""
    with pytest.raises(DataError, match=message) as caught:
        build_index(folder_rows(tree(tmp_path, **folders)), 10, 10)
    assert caught.value.hint


def test_punctuation_makes_different_labels(tmp_path: Path) -> None:
    """c, c++ and c# are three labels."""
    index = build_index(folder_rows(tree(tmp_path, **{"c": 40, "c++": 40, "c#": 40})), 20, 20)
    assert index.labels == ("c", "c#", "c++")


def test_a_small_label_is_on_every_side(tmp_path: Path) -> None:
    """Three images are enough, wherever their names are hashed to."""
    index = build_index(folder_rows(tree(tmp_path, a=40, rare=3)), 10, 10)
    rare = index.labels.index("rare")
    assert {e.split for e in index.examples if e.class_index == rare} == set(Split)


def test_labels_are_renamed_merged_and_left_out(tmp_path: Path) -> None:
    """OLD=NEW merges where NEW is there already; nothing behind the = leaves images out."""
    found = folder_rows(tree(tmp_path, cat=40, kitten=40, dog=40, junk=40))
    renamed = {"kitten": "cat", "dog": "hound", "junk": ""}
    index = build_index(found, 10, 10, renamed=renamed)
    assert index.labels == ("cat", "hound")
    assert len(index.examples) == 120
    with pytest.raises(ConfigError, match=r"'kiten', which no image has; did you mean kitten"):
        build_index(found, 10, 10, renamed={"kiten": "cat"})


def test_images_of_a_group_stay_together(tmp_path: Path) -> None:
    """What the pattern's first group matches is one subject, across labels."""
    store = tree(tmp_path, a=0, b=0)
    for patient in range(60):
        for shot in range(3):
            store.write(f"{'ab'[shot % 2]}/p{patient}_{shot}.jpg", b"x")
    index = build_index(folder_rows(store), 20, 20, group_regex=r"/(p\d+)_")
    sides: dict[str, set[Split]] = {}
    for example in index.examples:
        sides.setdefault(example.name.split("/")[1].split("_")[0], set()).add(example.split)
    assert len(sides) == 60
    assert all(len(found) == 1 for found in sides.values())
