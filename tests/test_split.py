"""The split leaks nothing, moves nobody, and has the shares that were asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.dataset import Example, Split
from job.errors import DataError
from job.ledger import Ledger, Line, known_sides, lines_of, make_ledger
from job.split import Sides, assign, check_split, number_groups, splitter
from job.storage import Entry

LABELS = ("a", "b")
PERCENTS = (10.0, 10.0)

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(st.lists(names, min_size=1, max_size=50, unique=True), st.randoms())
def test_the_side_depends_on_the_name_alone(paths: list[str], random: object) -> None:
    """Order, number and neighbours do not matter; the same name always falls the same way."""
    split_of = splitter(10, 10)
    alone = {path: split_of(path) for path in paths}
    assert {path: split_of(path) for path in reversed(paths)} == alone
    assert splitter(10, 10)(paths[0]) == alone[paths[0]]


@given(names, names, names)
def test_nohash_keeps_shots_together(label: str, first: str, second: str) -> None:
    """What follows _nohash_ in the file's name does not change the side."""
    split_of = splitter(10, 10)
    label, first, second = (text.replace("/", "") for text in (label, first, second))
    one = split_of(f"{label}/subject_nohash_{first}.jpg")
    assert one is split_of(f"{label}/subject_nohash_{second}.jpg")


def test_nohash_in_a_folder_name_does_not_merge_the_label() -> None:
    """A label called x_nohash_y still spreads over the sides."""
    split_of = splitter(30, 30)
    assert len({split_of(f"x_nohash_y/{number}.jpg") for number in range(50)}) == 3


def test_the_rule_is_that_of_retrain_py() -> None:
    """Recorded sides, computed by hand from SHA-1 as retrain.py does: a change would reshuffle."""
    split_of = splitter(10, 10)
    sides = {f"daisy/{number}.jpg": split_of(f"daisy/{number}.jpg") for number in range(200)}
    # sha1("daisy/0.jpg") mod 2^27 and so on, in percent, from an independent one-liner.
    assert [n for n, s in sides.items() if s is Split.TEST][:4] == RECORDED_TEST
    assert [n for n, s in sides.items() if s is Split.VALIDATION][:4] == RECORDED_VALIDATION


RECORDED_TEST = ["daisy/9.jpg", "daisy/16.jpg", "daisy/19.jpg", "daisy/24.jpg"]
RECORDED_VALIDATION = ["daisy/29.jpg", "daisy/57.jpg", "daisy/60.jpg", "daisy/64.jpg"]


def test_shares_are_as_asked() -> None:
    """Of 20,000 names about a tenth falls on each small side."""
    split_of = splitter(10, 20)
    sides = [split_of(f"label/{number}.jpg") for number in range(20_000)]
    assert sides.count(Split.VALIDATION) / 200 == pytest.approx(10, abs=0.8)
    assert sides.count(Split.TEST) / 200 == pytest.approx(20, abs=1.0)


def examples(names: list[str]) -> list[Example]:
    """Give examples of these names, of two labels by turns."""
    return [
        Example(Entry(name, 1, 1), (row % 2,), Split.TRAIN, name) for row, name in enumerate(names)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_shares_keep_their_bound(seed: int) -> None:
    """On 500 data sets a seed, 10,000 in all, the share is within Hoeffding's bound each time."""
    random = np.random.default_rng(seed)
    for _ in range(500):
        sizes = random.integers(1, random.integers(2, 9), random.integers(8, 60))
        groups = np.repeat(np.arange(len(sizes)), sizes)
        asked = tuple(random.uniform(5, 40, 2))
        listed = examples([f"{random.integers(2**60)}.jpg" for _ in groups])
        known: list[Split | None] = [None] * len(listed)
        sides = assign(listed, groups, known, ("a", "b"), asked).splits
        # One in 1e9 for each of 20,000 shares. A side that lacks a label takes a group for it.
        bound = math.sqrt(math.log(2 / 1e-9) * float((sizes**2).sum()) / 2) + 2 * sizes.max()
        for side, percent in zip((Split.VALIDATION, Split.TEST), asked, strict=True):
            assert abs(sides.count(side) - percent / 100 * len(sides)) <= bound


contents = st.lists(st.tuples(names, st.integers(0, 12)), min_size=1, max_size=40,
                    unique_by=lambda item: item[0])  # fmt: skip


def split_files(files: dict[str, int], before: Ledger) -> tuple[dict[str, Split | None], Ledger]:
    """Split files, the content of each by its name; gives where each is, None for left out."""
    listed = examples(sorted(files))
    digests = [f"{files[example.name]:064}" for example in listed]
    first: dict[str, int] = {}
    pairs = [(first.setdefault(digest, row), row) for row, digest in enumerate(digests)]
    groups = number_groups([example.key for example in listed], None, pairs)
    known = known_sides(before, listed, digests)
    sides = assign(listed, groups, known, (), PERCENTS)
    where = {
        example.name: None if row in sides.left_out else sides.splits[row]
        for row, example in enumerate(listed)
    }
    return where, before.followed_by(lines_of(listed, digests, sides, known))


@settings(max_examples=300, deadline=None)
@given(st.lists(contents, min_size=2, max_size=5))
def test_nobody_changes_sides_and_copies_are_together(
    versions: list[list[tuple[str, int]]],
) -> None:
    """Files come, go, are renamed and copied from version to version, in any way at all."""
    ledger = Ledger()
    sides: dict[int, Split] = {}
    for listed in versions:
        files = dict(listed)
        where, ledger = split_files(files, ledger)
        for content in set(files.values()):
            found = {where[name] for name in files if files[name] == content} - {None}
            assert len(found) <= 1
            for side in found:
                assert sides.setdefault(content, side) is side


@settings(max_examples=200, deadline=None)
@given(contents, st.lists(st.tuples(names, st.integers(100, 120)), max_size=20), st.randoms())
def test_adding_renaming_and_moving_moves_nobody(
    listed: list[tuple[str, int]], added: list[tuple[str, int]], random: object
) -> None:
    """Each content is where it was, under whatever names it comes, whatever comes with it."""
    files = dict(listed)
    where, ledger = split_files(files, Ledger())
    moved = {f"moved/{row}-{name}": content for row, (name, content) in enumerate(listed)}
    copies = {f"copy/{row}": content for row, (_, content) in enumerate(listed)}
    again, _ = split_files({**dict(added), **moved, **copies}, ledger)
    for row, (name, _) in enumerate(listed):
        assert again[f"moved/{row}-{name}"] is where[name]
        assert again[f"copy/{row}"] is where[name]
    unchanged, _ = split_files({**files, **copies}, ledger)
    assert {name: unchanged[name] for name in files} == where


def sides_of(known: list[Split | None], groups: list[int], uses: list[Split | None]) -> Sides:
    """Assign images of one label."""
    listed = [
        Example(Entry(f"{row}", 1, 1), (0,), Split.TRAIN, f"{row}", use)
        for row, use in enumerate(uses)
    ]
    return assign(listed, np.array(groups), known, (), PERCENTS)


def test_of_copies_on_two_sides_the_test_image_stays() -> None:
    """None may move, so the others take no part; what is new goes with the one that stays."""
    train, validation, test = Split.TRAIN, Split.VALIDATION, Split.TEST
    sides = sides_of([train, test, None, validation, train], [0, 0, 0, 0, 1], [None] * 5)
    assert sides.splits[:3] == (test, test, test)
    assert sides.left_out == (0, 3)
    assert sides.splits[4] is train


def test_an_import_file_decides_for_its_images_and_their_copies() -> None:
    """ML_USE is taken as it is; a copy without one goes where the other goes."""
    sides = sides_of([None, None], [0, 0], [Split.TEST, None])
    assert sides.splits == (Split.TEST, Split.TEST)
    with pytest.raises(DataError, match=r"'0' was on the train side .* says test") as caught:
        sides_of([Split.TRAIN], [0], [Split.TEST])
    assert "--resplit" in caught.value.hint


def test_groups_are_numbered_as_they_come() -> None:
    """By name up to _nohash_, by the pattern, and by chains of pairs."""
    keys = ["x_nohash_1", "y", "x_nohash_2", "p1-a", "p1-b", "z", "q-", "r-"]
    groups = number_groups(keys, r"^(p\d+|)-?", [(1, 5)])
    assert groups.tolist() == [0, 1, 0, 2, 2, 1, 3, 4]
    assert number_groups([], None, ()).tolist() == []


def test_a_label_that_lacks_a_side_is_told_with_what_it_needs() -> None:
    """Copies count once: four files of two pictures are too few."""
    listed = examples(["0", "1", "2", "3"])
    groups = np.array([0, 1, 0, 1])
    sides = assign(listed, groups, [None] * 4, LABELS, PERCENTS)
    with pytest.raises(DataError, match=r"there are 1, 1 readable .* at least 3 of each label"):
        check_split(listed, LABELS, sides.groups.tolist())


def test_a_ledger_knows_content_better_than_names() -> None:
    """What was tested on stays a test image; a name is asked for what was edited."""
    ledger = make_ledger(
        [
            Line("d1", Split.TRAIN, "a"),
            Line("d1", Split.TEST, "b"),
            Line("d2", Split.VALIDATION, "c"),
        ]
    )
    assert ledger.side("a", "d1") is Split.TEST
    assert ledger.side("a", "d1", Split.TRAIN) is Split.TRAIN
    assert ledger.own_side("a", "d1") is Split.TRAIN
    assert ledger.side("renamed", "d2") is Split.VALIDATION
    assert ledger.side("a", "d2") is Split.VALIDATION
    assert ledger.side("a", "edited") is Split.TRAIN
    assert ledger.side("new", "new") is None
