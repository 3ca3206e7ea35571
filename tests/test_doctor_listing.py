"""The doctor's CSV goes to people and comes back, whatever the images are called."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from doctor_samples import Sample, make_sample
from hypothesis import given
from hypothesis import strategies as st

from job.doctor.findings import Copies, Findings, Material, Outlier, Suspect
from job.doctor.listing import COLUMNS, Finding, csv_text, read_exclusions, rows, staying
from job.errors import ConfigError
from job.stream import Skipped

# Names near to all that is special here, and any others.
PIECES = st.one_of(
    st.sampled_from("\\'=+-@,;\"\x00\ufeff\udcff\ud83d\uff1d\U0001f600 \t\r\n\u2028"),
    st.sampled_from(("x5c", "udcff", "\\udcff", "name", "cat/", "\r\n")),
)
TEXTS = st.one_of(st.text(st.characters(), min_size=1), st.lists(PIECES, min_size=1).map("".join))


@pytest.fixture(scope="module")
def sample() -> Sample:
    """240 drawings with findings of every kind."""
    return make_sample()


def small(
    names: tuple[str, ...],
    classes: tuple[int, ...],
    *,
    copies: tuple[Copies, ...] = (),
    suspects: tuple[int, ...] = (),
    outliers: tuple[int, ...] = (),
    labels: tuple[str, ...] = ("cat", "dog"),
    skipped: tuple[str, ...] = (),
) -> tuple[Material, Findings]:
    """Give some images and what is found about them; the suspects and outliers are rows."""
    n = len(names)
    empty = np.zeros((n, 0), np.float32)
    numbers = np.arange(n)
    material = Material(
        names, labels, np.array(classes, np.int64), empty, empty, np.zeros((n, 2), np.float32),
        ("0" * 64,) * n, numbers, numbers, tuple(Skipped(name, "no image") for name in skipped),
    )  # fmt: skip
    found = Findings(
        counts=np.bincount(classes, minlength=len(labels)),
        accuracy=0.5,
        copies=copies,
        suspects=tuple(Suspect(r, classes[r], 1 - classes[r], 0.1, 0.9, 0.8) for r in suspects),
        outliers=tuple(Outlier(row, 5.0) for row in outliers),
        alike=(),
        curve=None,
        wishes=(),
        drift=None,
    )
    return material, found


def named(material: Material, findings: Findings) -> dict[str, set[str]]:
    """Give the findings of each image that has a row."""
    found: dict[str, set[str]] = {}
    for row in rows(material, findings):
        found.setdefault(row.name, set()).add(row.finding)
    return found


def test_every_kind_of_finding_has_its_rows(sample: Sample) -> None:
    """The CSV has a line for each image of a finding, with its label and what tells against it."""
    material, findings = sample.material, sample.findings
    table = list(csv.DictReader(io.StringIO(csv_text(material, findings), newline="")))
    assert tuple(table[0]) == COLUMNS
    assert {row["finding"] for row in table} == set(Finding)
    counts = Counter(row["finding"] for row in table)
    assert counts["wrong-label"] == len(findings.suspects)
    assert counts["outlier"] == len(findings.outliers)
    assert counts["unreadable"] == len(material.skipped)
    first, suspect = table[0], findings.suspects[0]
    assert first["name"] == material.names[suspect.row]
    assert first["label"] == material.labels[suspect.given]
    assert first["suggested"] == material.labels[suspect.suggested]
    assert float(first["score"]) == pytest.approx(suspect.score, rel=1e-5)
    by_name = dict(zip(material.names, material.classes, strict=True))
    for row in table:
        if row["finding"] in ("copy", "near-copy"):
            assert row["label"] == material.labels[by_name[row["name"]]]
            assert by_name[row["name"]] == by_name[row["with"]]
            assert row["name"] != row["with"]
        if row["finding"] == "contradiction":
            assert by_name[row["name"]] != by_name[row["with"]]


def test_nothing_found_is_a_header(sample: Sample) -> None:
    """Without findings the CSV has its header, and excludes nothing."""
    material, findings = small(("cat/1", "dog/1"), (0, 1))
    assert csv_text(material, findings) == ",".join(COLUMNS) + "\r\n"
    assert read_exclusions(csv_text(material, findings)) == frozenset()


def test_of_copies_the_first_one_that_nobody_doubts_stays() -> None:
    """A copy that is an outlier or likely wrong goes before one that is not."""
    names = ("cat/1", "cat/2", "cat/3", "dog/1")
    groups = (Copies((2, 1, 0), (0,), exact=True),)
    found = named(*small(names, (0, 0, 0, 1), copies=groups))
    assert found == {"cat/2": {"copy"}, "cat/3": {"copy"}}
    found = named(*small(names, (0, 0, 0, 1), copies=groups, suspects=(0,)))
    assert found == {"cat/1": {"copy", "wrong-label"}, "cat/3": {"copy"}}
    near = (replace(groups[0], exact=False),)
    found = named(*small(names, (0, 0, 0, 1), copies=near, outliers=(0, 1, 2)))
    assert found == {
        "cat/1": {"outlier"}, "cat/2": {"near-copy", "outlier"}, "cat/3": {"near-copy", "outlier"},
    }  # fmt: skip


def test_of_a_contradiction_the_majority_stays() -> None:
    """One image stays, with the label of most that are not doubted; of a tie none stays."""
    names, classes = ("a", "b", "c", "d"), (0, 0, 1, 1)
    tie = small(names, classes, copies=(Copies((0, 2), (0, 1), exact=True),))
    assert named(*tie) == {"a": {"contradiction"}, "c": {"contradiction"}}
    assert [(row.suggested, row.other) for row in rows(*tie)] == [("", "c"), ("", "a")]
    more = small(names, classes, copies=(Copies((0, 1, 2), (0, 1), exact=False),))
    assert named(*more) == {"b": {"near-copy"}, "c": {"contradiction"}}
    assert [(row.suggested, row.other) for row in rows(*more)] == [("", "a"), ("cat", "a")]
    group = (Copies((0, 2), (0, 1), exact=True),)
    judged = small(names, classes, copies=group, suspects=(0,))
    assert named(*judged) == {"a": {"wrong-label", "contradiction"}}
    unsure = small(names, classes, copies=group, suspects=(0, 2))
    assert set(named(*unsure)) == {"a", "c"}


@given(st.data())
def test_given_back_whole_one_of_each_group_stays(data: st.DataObject) -> None:
    """However groups of one label overlap, an undoubted image of each connected lot stays."""
    n = 8
    picks = st.lists(st.integers(0, n - 1), min_size=2, max_size=4, unique=True)
    groups = data.draw(st.lists(picks, max_size=6))
    doubted = data.draw(st.sets(st.integers(0, n - 1)))
    names = tuple(data.draw(st.permutations("abcdefgh")))
    copies = tuple(Copies(tuple(group), (0,), exact=len(group) % 2 == 0) for group in groups)
    material, findings = small(names, (0,) * n, copies=copies, outliers=tuple(doubted))
    gone = read_exclusions(csv_text(material, findings))
    lots = [{row} for row in range(n)]
    for group in groups:
        joined = set().union(*(lots[row] for row in group))
        for row in joined:
            lots[row] = joined
    for lot in lots:
        left = {names[row] for row in lot} - gone
        assert bool(left) == bool(lot - doubted)
    disjoint = Counter(row for group in groups for row in group).most_common(1)
    if disjoint and disjoint[0][1] == 1:
        for group in groups:
            assert len({names[row] for row in group} - gone) <= 1
    for kept, group in zip(staying(material, findings), groups, strict=True):
        assert kept in group


@given(st.lists(TEXTS, min_size=4, max_size=4, unique=True), TEXTS, TEXTS)
def test_names_come_back_exactly(names: list[str], first: str, second: str) -> None:
    """Whatever a name holds, the file is UTF-8, and reading gives the name itself."""
    text = csv_text(
        *small(
            tuple(names[:3]),
            (0, 0, 1),
            copies=(Copies((0, 1, 2), (0, 1), exact=True),),
            outliers=(0, 1, 2),
            labels=(first, second),
            skipped=(names[3],),
        )
    )
    assert text.encode("utf-8").decode("utf-8") == text
    assert read_exclusions(text) == frozenset(names)
    # Nor is there a cell that a spreadsheet would run.
    for row in csv.reader(io.StringIO(text, newline="")):
        assert not [cell for cell in row if re.match(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]", cell)]


@given(st.lists(TEXTS.filter(lambda name: not set(name) & set("\r\n")), unique=True))
def test_a_list_of_names_is_taken_as_well(names: list[str]) -> None:
    """Lines of names, with either line end, are names: commas, quotes and spaces are theirs."""
    lines = [f"cat/{name}".replace("\\", "/") for name in names]
    for end in ("\n", "\r\n"):
        assert read_exclusions(end.join(lines)) == frozenset(lines)
        assert read_exclusions("".join(line + end for line in [*lines, ""])) == frozenset(lines)


def test_the_file_may_have_been_through_a_spreadsheet(sample: Sample) -> None:
    """A mark at the start, semicolons, other columns and empty rows change nothing."""
    text = csv_text(sample.material, sample.findings)
    expected = read_exclusions(text)
    assert len(expected) > 40
    table = list(csv.reader(io.StringIO(text, newline="")))
    for delimiter, end in ((";", "\r\n"), ("\t", "\n")):
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([*row, "seen"] for row in [*table[:9], [""] * 6, *table[9:]])
        assert read_exclusions("\ufeff" + file.getvalue()) == expected
    assert read_exclusions("name\ncat/1\n\ncat/2\n") == {"cat/1", "cat/2"}


def test_a_row_that_is_deleted_keeps_its_image() -> None:
    """Each row is a decision of its own: an image with another row left stays excluded."""
    group = (Copies((0, 1), (0,), exact=True),)
    text = csv_text(*small(("cat/1", "cat/2"), (0, 0), copies=group, outliers=(1,)))
    header, copy, outlier = text.split("\r\n")[:3]
    assert read_exclusions("\r\n".join((header, copy))) == {"cat/2"}
    assert read_exclusions("\r\n".join((header, outlier))) == {"cat/2"}
    assert read_exclusions(header) == frozenset()


def test_a_list_that_begins_like_a_header_is_a_list() -> None:
    """A label may be called `name,`: an image's name has a slash, a header none."""
    assert read_exclusions("name,finding/1.jpg\ncat/'2.jpg\n") == {
        "name,finding/1.jpg", "cat/'2.jpg",
    }  # fmt: skip


def test_a_quote_without_its_match_is_refused() -> None:
    """A CSV that was cut in a quoted name is an error that names the line, not a short list."""
    with pytest.raises(ConfigError, match="at line 3"):
        read_exclusions('name,finding\r\n"cat/1\r\n2.jpg,copy\r\n')
