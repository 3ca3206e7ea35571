"""The doctor's page and its short forms say what was found, whatever the images are called."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from browser import HANDLER, HOSTILE_LABELS, HOSTILE_NAMES, SCRIPT, Look, open_page
from doctor_samples import Sample, make_curve, make_sample, without_findings
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from markdown_it import MarkdownIt
from rich.console import Console

from job.doctor import page
from job.doctor.charts import byte_bars, bytes_text, curve_chart, size_grid
from job.doctor.findings import Copies, Curve, CurvePoint, Outlier, Suspect
from job.doctor.listing import rows
from job.doctor.summary import MOST_SUSPECTS, as_json, lines, markdown, table
from job.figures import percent, shown
from job.stream import Skipped
from job.thumbnails import SIDE

HEADINGS = [
    "What to do", "Likely wrong labels", "The same image under several labels", "Copies",
    "Labels that are hard to tell apart", "Outliers", "Images a label", "Sizes",
    "Unreadable files", "Drift", "Learning curve", "What to photograph next", "Left out",
]  # fmt: skip


def render(sample: Sample, title: str = "clipart") -> str:
    """Give the page of a sample."""
    return page.render(sample.material, sample.findings, sample.read_image, title)


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """A function that opens HTML in Chromium and gives what it found."""
    return partial(open_page, tmp_path)


@pytest.fixture(scope="module")
def sample() -> Sample:
    """240 drawings with findings of every kind."""
    return make_sample()


@pytest.fixture(scope="module")
def hostile() -> Sample:
    """Findings on images, labels and reasons that each try to be something else."""
    made = make_sample(60, HOSTILE_LABELS, HOSTILE_NAMES)
    skipped = tuple(Skipped(name, HANDLER) for name in HOSTILE_NAMES)
    drift = made.findings.drift
    assert drift is not None
    moved = tuple(replace(item, before=SCRIPT) for item in drift.relabelled)
    findings = replace(
        made.findings,
        drift=replace(drift, gone=HOSTILE_NAMES, relabelled=moved),
        left_out=(SCRIPT,),
    )
    return Sample(replace(made.material, skipped=skipped), findings, made.read_image)


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_a_browser_shows_all_of_it(look: Look, sample: Sample, width: int, dark: bool) -> None:
    """Every section and picture is there, in a window or on a phone, and nothing is fetched."""
    found = look(render(sample), width, dark=dark)
    material, findings = sample.material, sample.findings
    assert found["headings"] == HEADINGS
    expected = list(page.contents(material, findings).names())
    assert len(found["images"]) == len(expected) > 60
    for source, wide, high in found["images"]:
        assert source == "data:image/jpeg;base64"
        assert 8 <= max(wide, high) <= SIDE
    assert (found["scripts"], found["handlers"], found["ran"]) == (0, 0, False)
    assert found["loaded"] == []
    assert found["overflow"] == 0
    assert found["background"] == ("rgb(15, 20, 25)" if dark else "rgb(245, 246, 248)")
    for text in (
        "240 images, 8 labels, cross-validated accuracy 86.2\u00a0%",
        *(material.names[suspect.row] for suspect in findings.suspects),
        "JPEG is truncated",
        "version 1760000000",
        "yes: p = 0.010, distance 0.0713",
        *findings.left_out,
    ):
        assert text in found["text"]
    smallest = page.smallest(material)[0]
    assert f"{smallest.image.name}" in found["text"]
    assert "--exclude @findings.csv" in found["text"]


def test_hostile_names_are_text(look: Look, hostile: Sample) -> None:
    """No name, label, reason or title becomes markup, and what cannot be seen is spelt out."""
    found = look(render(hostile, HANDLER), 390)
    assert (found["scripts"], found["handlers"], found["ran"]) == (0, 0, False)
    assert found["loaded"] == []
    assert found["overflow"] == 0
    assert found["headings"] == HEADINGS
    assert all(width > 0 for _, width, _ in found["images"])
    for text in (SCRIPT, HANDLER, *HOSTILE_LABELS, *HOSTILE_NAMES):
        assert shown(text) in found["text"]


def test_the_page_forbids_scripts_and_the_network(sample: Sample) -> None:
    """The policy in the page holds even if something got past the escaping."""
    text = render(sample)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}"' in text
    assert not re.search(r"""(src|href)="(?!data:|#)|url\(|@import|https?://""", text)
    anchors = set(re.findall(r'href="#([^"]*)"', text))
    assert anchors == set(re.findall(r'section id="([^"]*)"', text))


def test_long_lists_are_cut(look: Look) -> None:
    """However much is found, the page is small and says where the rest is."""
    made = make_sample(584)
    n, last = len(made.material.names), len(made.material.labels) - 1
    suspects = tuple(Suspect(r, 0, 1, 0.1, 0.9, 0.8) for r in range(n))
    pairs = tuple(Copies((r, r + 1), (0,), exact=False) for r in range(0, n, 2))
    contrary = tuple(Copies((r, n - 1 - r), (0, last), exact=False) for r in range(40))
    alike = made.findings.alike[:1] * 20
    findings = replace(
        made.findings,
        suspects=suspects,
        copies=(*pairs, *contrary, Copies(tuple(range(n)), (0,), exact=True)),
        outliers=tuple(Outlier(r, 5.0) for r in range(n)),
        alike=alike,
    )
    skipped = tuple(Skipped(f"bird/{i}", "empty file") for i in range(1000))
    cut = replace(made, material=replace(made.material, skipped=skipped), findings=findings)
    text = render(cut)
    assert len(text) < 4_000_000
    found = look(text, 390)
    groups = page.MOST_GROUPS
    most = page.MOST_SUSPECTS + 2 * groups * page.MOST_IN_GROUP + page.MOST_OUTLIERS
    most += page.MOST_PAIRS * 2 * page.MOST_OF_A_LABEL
    assert len(found["images"]) <= most < 400
    counts = (n - page.MOST_SUSPECTS, 40 - groups, len(pairs) + 1 - groups, 1000 - page.MOST_NAMES)
    for left in (*counts, n - page.MOST_OUTLIERS):
        assert f"{left} more in the CSV" in found["text"]
    assert f"{20 - page.MOST_PAIRS} more in the JSON" in found["text"]
    assert found["overflow"] == 0


def test_many_labels_stay_within_the_page(look: Look) -> None:
    """With 100 labels of which some have no image, the bars are cut and fit a phone."""
    labels = tuple(f"a species with a long name {i:03}" for i in range(100))
    made = make_sample(584)
    counts = np.arange(100)
    many = replace(
        made,
        material=replace(made.material, labels=labels),
        findings=replace(made.findings, counts=counts),
    )
    found = look(render(many), 390)
    assert f"{100 - page.MOST_ROWS} more labels" in found["text"]
    assert found["overflow"] == 0


def test_nothing_found_has_its_words(sample: Sample) -> None:
    """Without findings no section is empty, and nothing is claimed that was not looked at."""
    text = render(without_findings(sample))
    assert "<img" not in text
    assert text.count("None found.") == 6
    assert "cross-validated accuracy \u2013" in text
    assert "Found no labels that are likely wrong, no images under more than one label" in text
    assert "Not measured." in text
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_an_image_that_cannot_be_read_has_a_place(sample: Sample) -> None:
    """A picture that is gone or damaged since is said to be missing, and the page stands."""
    gone = replace(sample, read_image=lambda name: None if "0" in name else b"no image")
    text = render(gone)
    assert "<img" not in text
    assert "image not available" in text


def test_a_group_shows_what_stays_and_every_label(sample: Sample) -> None:
    """Of many copies the one that stays comes first, then one of each label, then others."""
    material = sample.material
    first = {int(c): int(np.flatnonzero(material.classes == c)[0]) for c in (0, 1, 2)}
    group = Copies((*range(first[1], first[1] + 6), first[2], first[0]), (0, 1, 2), exact=False)
    findings = replace(without_findings(sample).findings, copies=(group,))
    (made,) = page.contents(material, findings).contradictions
    assert made.count == 8
    assert [image.name for image in made.images] == [
        material.names[row] for row in (first[1], first[2], first[0], first[1] + 1)
    ]
    assert made.kept == made.images[0].name
    assert len(replace(made, exact=True).pictures) == 1


@given(
    st.lists(
        st.tuples(st.integers(1, 10**7), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 3),
)
def test_a_curve_is_drawn_within_its_axes(
    points: list[tuple[int, float, float, float]], beyond: int
) -> None:
    """Whatever was measured, all of it lies within the axes, and their numbers are few."""
    curve = []
    for images, *shares in points:
        low, accuracy, high = sorted(shares)
        curve.append(CurvePoint(images, accuracy, (low, high)))
    cut = max(len(curve) - beyond, 1)
    chart = curve_chart(Curve(tuple(curve[:cut]), tuple(curve[cut:])))
    assert (len(chart.measured), len(chart.expected)) == (cut, len(curve) - cut)
    for dot in (*chart.measured, *chart.expected):
        assert -1e-6 <= dot.low <= dot.y <= dot.high <= 1 + 1e-6
        assert 0 <= dot.x <= 1
    for ticks in (chart.x_ticks, chart.y_ticks):
        assert 1 <= len(ticks) <= 9
        assert [t.at for t in ticks] == sorted(t.at for t in ticks)
        assert all(-1e-6 <= t.at <= 1 + 1e-6 for t in ticks)


def test_a_curve_has_round_numbers_at_its_axes() -> None:
    """The axes end at numbers that can be read, and more images lie further right."""
    chart = curve_chart(make_curve(240))
    assert [tick.text for tick in chart.x_ticks] == ["20", "50", "100", "200", "500", "1,000"]
    assert [tick.text for tick in chart.y_ticks] == ["60", "70", "80", "90", "100"]
    x = [dot.x for dot in (*chart.measured, *chart.expected)]
    # Doublings are as far apart on a logarithmic axis.
    assert np.diff(x) == pytest.approx([math.log(2) / math.log(50)] * 5)


@given(arrays(np.float32, st.tuples(st.integers(0, 30), st.just(2)), elements=st.integers(0, 9999)))
def test_every_known_size_is_in_the_grid(sizes: np.ndarray) -> None:
    """Each image is in the cell whose ends are around its width and height."""
    grid = size_grid(sizes)
    known = [(int(w), int(h)) for w, h in sizes if w and h]
    if grid is None:
        assert not known
        return
    assert grid.unknown == len(sizes) - len(known)

    def ends(text: str) -> tuple[int, int]:
        low, _, high = text.partition("\u2013")
        return int(low), int(high or low)

    for i, height in enumerate(map(ends, grid.heights)):
        for j, width in enumerate(map(ends, grid.widths)):
            inside = [
                1 for w, h in known if width[0] <= w <= width[1] and height[0] <= h <= height[1]
            ]
            assert grid.counts[i, j] == len(inside)
    assert sum(count for _, count in grid.common) <= grid.counts.sum() == len(known)


@given(st.lists(st.integers(0, 10**10), max_size=30))
def test_every_file_is_in_a_bar(sizes: list[int]) -> None:
    """The bars hold all files, the first and the last have some, and the longest is full."""
    bars = byte_bars(np.array(sizes, np.int64))
    assert sum(bar.count for bar in bars) == len(sizes)
    if sizes:
        assert bars[0].count
        assert bars[-1].count
        assert max(bar.share for bar in bars) == 1.0


def test_bytes_read_well() -> None:
    """Bytes have their unit and no more digits than matter."""
    found = [bytes_text(n).replace("\u00a0", " ") for n in (0, 812, 9600, 20_000, 999_700, 3e6)]
    assert found == ["0 B", "812 B", "9.6 kB", "20 kB", "1 MB", "3 MB"]
    assert bytes_text(12e12) == "12000\u00a0GB"


def parsed(text: str) -> list[str]:
    """Give the texts in Markdown as the reader sees them; HTML is refused."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [token for token in tokens if token.type == "inline"]
    kinds = {child.type for token in inline for child in token.children or []}
    kinds |= {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "code_inline"}
    assert "table_open" in kinds
    return ["".join(c.content for c in token.children or []) for token in inline]


def test_the_markdown_summary_says_what_to_do(sample: Sample, hostile: Sample) -> None:
    """GitHub shows each kind of finding, the first suspects, and no markup of its own."""
    texts = parsed(markdown(sample.material, sample.findings))
    for line in lines(sample.material, sample.findings):
        at = texts.index(line.what)
        assert texts[at - 1 : at + 2] == [f"{line.count}", line.what, line.advice]
    first, last = (sample.findings.suspects[i].row for i in (0, MOST_SUSPECTS))
    assert sample.material.names[first] in texts
    assert sample.material.names[last] not in texts
    assert f"{len(sample.findings.suspects) - MOST_SUSPECTS} more are in the CSV." in texts
    texts = parsed(markdown(hostile.material, hostile.findings))
    suspect = hostile.findings.suspects[0]
    assert shown(hostile.material.names[suspect.row]) in texts
    given = shown(HOSTILE_LABELS[suspect.given])
    assert f"{given} {percent(suspect.p_given)}" in texts
    assert SCRIPT in texts
    nothing = without_findings(sample)
    assert "suggested" not in markdown(nothing.material, nothing.findings)


def test_the_lines_count_what_the_csv_lists(sample: Sample) -> None:
    """The numbers of the summary are those of the CSV's rows, or of the lists on the page."""
    material, findings = sample.material, sample.findings
    found = {line.section: line for line in lines(material, findings)}
    kinds = [row.finding for row in rows(material, findings)]
    assert found["suspects"].count == kinds.count("wrong-label")  # type: ignore[arg-type]
    copies = {row.name for row in rows(material, findings) if row.finding.endswith("copy")}
    assert found["copies"].count == len(copies)
    assert found["contradictions"].count == 2
    assert found["unreadable"].count == len(material.skipped)
    assert "bird, bug, clothing" in found["wishes"].advice
    one = replace(findings, outliers=findings.outliers[:1])
    words = {line.section: line.what for line in lines(material, one)}
    assert words["outliers"] == "image unlike all others"


def test_json_holds_every_finding_by_name(hostile: Sample) -> None:
    """Machines get every finding, images and labels by their exact names, and never a row."""
    material, findings = hostile.material, hostile.findings
    found = json.loads(json.dumps(as_json(material, findings), allow_nan=False))
    names, labels = material.names, material.labels
    assert [item["label"] for item in found["labels"]] == list(HOSTILE_LABELS)
    assert [item["count"] for item in found["labels"]] == findings.counts.tolist()
    for item, suspect in zip(found["suspects"], findings.suspects, strict=True):
        assert item["name"] == names[suspect.row]
        assert (item["label"], item["suggested"]) == (
            labels[suspect.given],
            labels[suspect.suggested],
        )
        assert item["suggested_score"] == pytest.approx(suspect.p_suggested, rel=1e-5)
    for item, group in zip(found["copies"], findings.copies, strict=True):
        assert item["names"] == [names[row] for row in group.rows]
        assert item["labels"] == [labels[i] for i in group.labels]
    assert [item["name"] for item in found["outliers"]] == [
        names[item.row] for item in findings.outliers
    ]
    assert [item["labels"] for item in found["alike"]] == [
        [labels[pair.first], labels[pair.second]] for pair in findings.alike
    ]
    assert [item["label"] for item in found["wishes"]] == [
        labels[wish.label] for wish in findings.wishes
    ]
    drift = findings.drift
    assert drift is not None
    assert found["drift"]["new"] == [names[row] for row in drift.new]
    assert found["drift"]["gone"] == list(HOSTILE_NAMES)
    assert found["drift"]["relabelled"][0] == {
        "name": names[3], "before": SCRIPT, "label": labels[0],
    }  # fmt: skip
    assert len(found["curve"]["measured"]) == 4
    assert found["unreadable"][0] == {"name": HOSTILE_NAMES[0], "reason": HANDLER}
    nothing = without_findings(hostile)
    empty = as_json(nothing.material, nothing.findings)
    assert empty["accuracy"] is None
    assert (empty["curve"], empty["drift"], empty["suspects"]) == (None, None, [])


def test_a_terminal_gets_counts_and_the_first_suspects(sample: Sample, hostile: Sample) -> None:
    """A terminal shows each kind of finding and the suspects, and no name controls it."""

    def printed(shown_sample: Sample) -> str:
        file = io.StringIO()
        console = Console(file=file, width=160)
        console.print(table(shown_sample.material, shown_sample.findings))
        return file.getvalue()

    text = printed(sample)
    for line in lines(sample.material, sample.findings):
        assert re.search(rf"\b{line.count} +{re.escape(line.what)}", text)
    assert sample.material.names[sample.findings.suspects[0].row] in text
    assert "suggested" in text
    assert "suggested" not in printed(without_findings(sample))
    assert "\x1b" not in printed(hostile)
    assert r"two\nlines\r.jpg" in printed(hostile)
