"""The report shows what it should, to whoever opens it, whatever files and labels are called."""

from __future__ import annotations

import base64
import io
import json
import re
import warnings
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from browser import HANDLER, HOSTILE_LABELS, HOSTILE_NAMES, SCRIPT, Look, open_page
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import precision_recall_fscore_support

from job.calibrate import bins_error, reliability
from job.doctor.summary import Line
from job.evaluate import LabelScore, evaluate
from job.figures import matrix, mistakes, p_value, points, shortened, shown
from job.gate import compare, judge
from job.junit import junit
from job.lite import LiteScore
from job.page import MOST_CHANGED, MOST_MISTAKES, duration, render
from job.plots import plot_confusion
from job.report import Facts, markdown, metrics, write_report
from job.thumbnails import SIDE, thumbnails

CLIPART = sorted((ROOT / "samples/clipart").glob("*/*"))
CLIPART_LABELS = tuple(sorted({path.parent.name for path in CLIPART}))

SECTIONS = [
    "Labels", "Confusion", "Calibration", "TFLite models", "Mistakes", "Change", "Data", "Time",
    "Provenance",
]  # fmt: skip


def make_facts(
    labels: tuple[str, ...] = CLIPART_LABELS,
    n: int = 60,
    *,
    compared: bool = True,
    min_accuracy: float = 0.7,
    names: tuple[str, ...] = (),
    skill: float = 2.2,
) -> Facts:
    """Give facts on n clipart images with drawn scores; the first are called `names`."""
    random = np.random.default_rng(11)
    step = len(CLIPART) / n
    files = [CLIPART[int(i * step) % len(CLIPART)] for i in range(n)]
    called = [f"{path.parent.name}/{i}-{path.name}" for i, path in enumerate(files)]
    called[: len(names)] = names
    classes = np.arange(n) * len(labels) // n
    if labels == CLIPART_LABELS:
        classes = np.array([labels.index(path.parent.name) for path in files])
    logits = random.normal(size=(n, len(labels))) + skill * np.eye(len(labels))[classes]
    scores = softmax(skill * logits, axis=1).astype(np.float32)
    report = evaluate(scores, classes, labels)
    right = scores.argmax(axis=1) == classes
    before = np.where(random.random(n) < 0.12, ~right, right)
    before_right = np.where(random.random(n) < 0.03, False, before)
    comparison = (
        compare(1760000000, called, labels, classes, before_right, right) if compared else None
    )
    contents = dict(zip(called, files, strict=True))
    return Facts(
        name="clipart",
        labels=labels,
        names=tuple(called),
        classes=classes,
        scores=scores,
        uncalibrated=softmax(1.8 * skill * logits, axis=1).astype(np.float32),
        temperature=1.8,
        report=report,
        comparison=comparison,
        verdict=judge(
            report, comparison, min_accuracy=min_accuracy, min_recall_per_class=None, alpha=0.05
        ),
        images={
            "total": 12 * n,
            "skipped": 3,
            "train": 10 * n - 3,
            "validation": n,
            "test": n,
            "skipped_names": [
                "bird/broken.jpg: JPEG is truncated",
                "bug/notes.txt: empty file",
                "fruit/x.webp: animated WebP, which TensorFlow cannot read",
            ],
        },
        seconds={
            "index": 0.21,
            "backbone": 3.4,
            "embed": 187.9,
            "fit": 11.2,
            "evaluate": 0.1,
            "export": 9.7,
        },
        provenance={
            "data": "gs://example-bucket/datasets/clipart",
            "data digest": "7d5f1ad0a9e1f0a7f2f7b2c2c8a4f1d3e9b8c7a6f5e4d3c2b1a0918273645546",
            "backbone": "builtin:efficientnet-lite0",
            "backbone digest": "1b0c9f1ad0a9e1f0a7f2f7b2c2c8a4f1d3e9b8c7a6f5e4d3c2b1a091827364554",
            "regraft": "0.1.0",
            "tensorflow": "2.21.0",
        },
        read_image=lambda name: contents[name].read_bytes(),
        lite=(
            LiteScore("model_float16.tflite", 6_790_000, 0.8, (0.7, 0.9), 0.99, 0.004),
            LiteScore("model_int8.tflite", 3_980_000, 0.78, (0.68, 0.88), 0.97, 0.1),
        ),
    )


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """A function that opens HTML in Chromium and gives what `PROBE` found."""
    return partial(open_page, tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 60 clipart images with 8 labels; read only."""
    folder = tmp_path_factory.mktemp("report") / "report"
    write_report(folder, make_facts())
    return folder


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_a_browser_shows_all_of_it(look: Look, folder: Path, width: int, dark: bool) -> None:
    """Every section and picture is there, in a window or on a phone, and nothing is fetched."""
    found = look((folder / "index.html").read_text("utf-8"), width, dark=dark)
    facts = make_facts()
    assert facts.comparison is not None
    assert found["headings"] == ["Passed the gate", *SECTIONS]
    expected = len(mistakes(facts.scores, facts.classes))
    expected += len(facts.comparison.fixed) + len(facts.comparison.broken)
    assert expected > 10
    assert len(found["images"]) == expected
    for source, wide, high in found["images"]:
        assert source == "data:image/jpeg;base64"
        assert 8 <= max(wide, high) <= SIDE
    assert found["loaded"] == []
    assert (found["scripts"], found["handlers"], found["ran"]) == (0, 0, False)
    assert found["overflow"] == 0
    assert found["background"] == ("rgb(15, 20, 25)" if dark else "rgb(245, 246, 248)")
    accuracy = f"{100 * facts.report.accuracy:.1f}\u00a0%"
    for text in (accuracy, "Version 1760000000", "JPEG is truncated", "3\u00a0min 8\u00a0s"):
        assert text in found["text"]


def test_the_probe_sees_what_it_is_there_to_see(look: Look) -> None:
    """A page that runs scripts, fetches, overflows and has a broken picture is found out."""
    found = look(
        "<script>window.ran = 1</script><section><h2>a</h2></section>"
        "<img src='http://127.0.0.1:9/x.png' onerror='0'><div style='width:2000px'>b</div>"
    )
    assert (found["scripts"], found["handlers"], found["ran"]) == (1, 1, True)
    assert found["loaded"] == ["http://127.0.0.1:9/x.png"]
    assert found["images"][0][1] == 0
    assert found["overflow"] > 0
    assert found["headings"] == ["a"]


@pytest.fixture(scope="module")
def hostile() -> Facts:
    """Facts in which every name and label tries to be something else; a refused model."""
    facts = make_facts(HOSTILE_LABELS, names=HOSTILE_NAMES, min_accuracy=0.99, skill=0.2)
    reasons = (*facts.verdict.reasons, SCRIPT)
    return replace(
        facts,
        name=HANDLER,
        verdict=replace(facts.verdict, reasons=reasons),
        images=facts.images | {"skipped_names": list(HOSTILE_NAMES)},
        provenance={SCRIPT: HANDLER, "lone\udcff": "two\nlines"},
        seconds={SCRIPT: 1.0},
    )


def test_hostile_names_are_shown_and_do_nothing(look: Look, hostile: Facts, tmp_path: Path) -> None:
    """Markup in names and labels is text in the page, and what cannot be seen is spelt out."""
    write_report(tmp_path / "report", hostile)
    found = look((tmp_path / "report/index.html").read_text("utf-8"), 390)
    assert (found["scripts"], found["handlers"], found["ran"]) == (0, 0, False)
    assert found["loaded"] == []
    assert found["overflow"] == 0
    assert found["headings"][0] == "Refused by the gate"
    assert all(width > 0 for _, width, _ in found["images"])
    for text in (*HOSTILE_LABELS, *HOSTILE_NAMES, HANDLER):
        assert shown(text) in found["text"]
    for text in (r"two\nlines\r.jpg", r"lone\udcff", r"\u202egpj.exe", r"nul\x00\x1b[31m", "7*7"):
        assert text in found["text"]


def test_many_labels_stay_within_the_page(look: Look, tmp_path: Path) -> None:
    """With 100 labels and mistakes by the dozen, the page is cut and says what it left out."""
    labels = tuple(f"a species with a long name {i:03}" for i in range(100))
    facts = make_facts(labels, 400, skill=0.8)
    write_report(tmp_path, facts)
    found = look((tmp_path / "index.html").read_text("utf-8"), 390)
    wrong = len(mistakes(facts.scores, facts.classes))
    assert wrong > MOST_MISTAKES
    assert len(found["images"]) <= MOST_MISTAKES + 2 * MOST_CHANGED
    assert f"{wrong - MOST_MISTAKES} more are listed in metrics.json" in found["text"]
    assert "70 more labels" in found["text"]
    assert "60 others" in found["text"]
    assert found["overflow"] == 0
    assert (tmp_path / "index.html").stat().st_size < 2_000_000
    with Image.open(tmp_path / "confusion.png") as image:
        # 100 labels of 7.5 points at 110 dpi need 12 pixels each.
        assert min(image.size) > 100 * 12


def test_the_page_forbids_scripts_and_the_network(folder: Path) -> None:
    """The policy in the page holds even if something got past the escaping."""
    page = (folder / "index.html").read_text("utf-8")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}"' in page
    assert not re.search(r"""(src|href)="(?!data:|#)|url\(|@import|https?://""", page)


def test_an_image_that_cannot_be_read_has_a_place(tmp_path: Path) -> None:
    """A picture that is gone or damaged since is said to be missing, and the report stands."""
    facts = make_facts()
    broken = replace(facts, read_image=lambda name: None if "0" in name else b"no image")
    write_report(tmp_path, broken)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "<img" not in page
    assert "image not available" in page


def test_the_first_version_and_a_flawless_one_have_their_words(tmp_path: Path) -> None:
    """Nothing to compare with, no mistake and no skipped image leave no empty section."""
    facts = make_facts(compared=False, skill=50.0)
    images = {"total": 600, "train": 480, "validation": 60, "test": 60, "skipped": 0}
    write_report(tmp_path, replace(facts, images=images, seconds={}, provenance={}))
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "every test image was classified rightly" in page
    assert "no version in service to compare" in page
    assert "Skipped" not in page


def test_what_the_doctor_found_is_with_the_data(look: Look) -> None:
    """The kinds of finding that there are have their line and advice in the section on data."""
    facts = make_facts()
    assert "data doctor" not in render(facts)
    lines = (
        Line("suspects", 1234, SCRIPT, HANDLER),
        Line("copies", 0, "copies", ""),
        Line("outliers", 0, "outliers", ""),
    )
    found = look(render(replace(facts, findings=lines)), 390)
    assert found["headings"] == ["Passed the gate", *SECTIONS]
    for text in ("1,234", SCRIPT, HANDLER, "Found no copies and no outliers."):
        assert text in " ".join(found["text"].split())
    assert (found["scripts"], found["ran"], found["overflow"]) == (0, False, 0)


def test_thumbnails_keep_shape_and_are_small(tmp_path: Path) -> None:
    """The longer side becomes SIDE, a small image stays as it is, each name is read once."""
    files = {"wide": (640, 160), "tiny": (9, 5), "line": (2000, 1)}
    for name, size in files.items():
        Image.new("RGB", size, (200, 30, 90)).save(tmp_path / name, "PNG")
    reads: list[str] = []

    def read(name: str) -> bytes:
        reads.append(name)
        return (tmp_path / name).read_bytes()

    found = thumbnails([*files, "wide"], read)
    assert sorted(reads) == sorted(files)
    sizes = {}
    for name, uri in found.items():
        assert uri is not None
        head, _, body = uri.partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(body))) as image:
            sizes[name] = image.size
            assert image.getpixel((0, 0)) == pytest.approx((200, 30, 90), abs=4)
    assert sizes == {"wide": (SIDE, SIDE // 4), "tiny": (9, 5), "line": (SIDE, 1)}


def test_metrics_json_holds_every_figure(folder: Path) -> None:
    """Machines get the report's own figures, the confusion matrix and each mistake by name."""
    facts = make_facts()
    found = json.loads((folder / "metrics.json").read_text("ascii"))
    report, comparison = facts.report, facts.comparison
    assert comparison is not None
    assert found["verdict"] == {"passed": True, "reasons": []}
    assert found["test"]["n"] == 60
    assert found["test"]["accuracy"] == pytest.approx(report.accuracy, abs=1e-6)
    assert found["test"]["accuracy_ci95"] == pytest.approx(report.accuracy_ci95, abs=1e-6)
    assert found["confusion"] == report.confusion.tolist()
    _, _, f1, count = precision_recall_fscore_support(facts.classes, facts.scores.argmax(axis=1))
    assert [item["label"] for item in found["labels"]] == list(facts.labels)
    assert [item["f1"] for item in found["labels"]] == pytest.approx(f1, abs=1e-6)
    assert [item["count"] for item in found["labels"]] == list(count)
    calibration = found["calibration"]
    for side, scores in (("before", facts.uncalibrated), ("after", facts.scores)):
        error = bins_error(reliability(scores, facts.classes))
        assert calibration[side]["error"] == pytest.approx(error, abs=1e-6)
        assert sum(item["count"] for item in calibration[side]["bins"]) == 60
    assert calibration["before"]["error"] != calibration["after"]["error"]
    assert found["comparison"]["fixed"] == list(comparison.fixed)
    assert found["comparison"]["difference_ci95"] == pytest.approx(
        comparison.difference_ci95, rel=1e-5
    )
    assert found["images"] == facts.images
    assert found["provenance"] == facts.provenance
    assert len(found["mistakes"]) == 60 - report.confusion.trace()
    scores = [item["predicted_score"] for item in found["mistakes"]]
    assert scores == sorted(scores, reverse=True)
    for item in found["mistakes"]:
        row = facts.names.index(item["name"])
        assert item["label"] == facts.labels[facts.classes[row]]
        assert item["label_score"] == pytest.approx(facts.scores[row, facts.classes[row]], abs=1e-6)


def test_figures_that_are_no_numbers_are_null(tmp_path: Path) -> None:
    """Scores of a model that diverged still give a report, and JSON that any parser reads."""
    facts = make_facts(compared=False)
    scores = facts.scores.copy()
    scores[3] = np.nan
    report = evaluate(scores, facts.classes, facts.labels)
    write_report(tmp_path, replace(facts, scores=scores, report=report))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "metrics.json").read_text("ascii")
    assert json.loads(text, parse_constant=refuse)["test"]["log_loss"] is None


def test_the_names_in_metrics_json_are_exact(hostile: Facts) -> None:
    """What a page must escape, a program that joins on names needs as it is."""
    found = json.loads(json.dumps(metrics(hostile)))
    assert [item["label"] for item in found["labels"]] == list(HOSTILE_LABELS)
    wrong = {item["name"] for item in found["mistakes"]}
    assert wrong
    assert wrong <= set(hostile.names)


def parsed(text: str) -> list[list[str]]:
    """Give the cells of a Markdown text's tables as the reader sees them; HTML is refused."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [token for token in tokens if token.type == "inline"]
    kinds = {child.type for token in inline for child in token.children or []}
    kinds |= {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "code_inline"}
    shown_text = ["".join(c.content for c in token.children or []) for token in inline]
    rows = text.count("\n|") - 1
    cells = shown_text[len(shown_text) - 5 * rows :]
    return [cells[i : i + 5] for i in range(0, len(cells), 5)]


def test_the_markdown_summary_is_a_table_of_labels(hostile: Facts) -> None:
    """GitHub shows verdict, accuracy, comparison and each label, and no markup of its own."""
    facts = make_facts()
    text = markdown(facts)
    assert text.startswith("## clipart: passed the gate\n")
    assert f"**Accuracy {100 * facts.report.accuracy:.1f}\u00a0%** of 60 test images" in text
    assert "Version 1760000000 had" in text
    header, *rows = parsed(text)
    assert header == ["label", "images", "precision", "recall", "F1"]
    assert sorted(row[0] for row in rows) == sorted(facts.labels)
    assert [row[4] for row in rows] == sorted((row[4] for row in rows), key=lambda f: float(f[:-2]))
    _, *rows = parsed(markdown(hostile))
    assert sorted(row[0] for row in rows) == sorted(shown(label) for label in HOSTILE_LABELS)
    assert "refused by the gate" in markdown(hostile)


def test_a_long_markdown_summary_is_cut() -> None:
    """Of 100 labels the 30 weakest are listed."""
    text = markdown(make_facts(tuple(f"label {i}" for i in range(100)), 200, compared=False))
    assert len(parsed(text)) == 31
    assert text.endswith("70 more labels did better.\n")


def read_xml(text: str) -> ET.Element:
    """Parse XML as a file of it would be."""
    return ET.fromstring(text.encode("utf-8"))  # noqa: S314 - it is our own


def test_junit_has_a_case_for_the_gate_and_each_label() -> None:
    """A reason of the gate fails the case that it is about, and no other."""
    facts = make_facts(compared=False)
    few = replace(facts.report, per_label=(*facts.report.per_label[:7], LabelScore("x", 0, 0, 0)))
    recalls = sorted((score.recall, score.label) for score in few.per_label[:7])
    assert recalls[0][0] < recalls[1][0]
    minimum = (recalls[0][0] + recalls[1][0]) / 2
    verdict = judge(facts.report, None, min_accuracy=0.99, min_recall_per_class=minimum, alpha=0.05)
    refused = replace(facts, report=few, labels=(*facts.labels[:7], "x"), verdict=verdict)
    suite = read_xml(junit(refused)).find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == ["all images", *refused.labels]
    failed = {
        case.get("name"): case.find("failure") for case in cases if len(case.findall("failure"))
    }
    assert set(failed) == {"all images", recalls[0][1]}
    assert "expected at least 0.99" in str(failed["all images"].get("message"))
    assert "the recall of" in str(failed[recalls[0][1]].get("message"))
    assert cases[-1].find("skipped") is not None
    counts = {name: suite.get(name) for name in ("tests", "failures", "skipped", "errors")}
    assert counts == {"tests": "9", "failures": "2", "skipped": "1", "errors": "0"}
    passed = read_xml(junit(facts)).find("testsuite")
    assert passed is not None
    assert passed.get("failures") == "0"


def test_junit_with_hostile_names_is_xml(hostile: Facts) -> None:
    """Names that XML cannot hold are spelt out; the rest comes back as it was."""
    text = junit(hostile)
    cases = read_xml(text).findall(".//testcase")
    assert [case.get("name") for case in cases[1:]] == [shown(label) for label in HOSTILE_LABELS]
    assert len(read_xml(text).findall(".//failure")) >= 1


def test_the_plots_draw_any_label_without_a_warning(hostile: Facts, tmp_path: Path) -> None:
    """Labels with dollar signs, line breaks or letters that the font lacks are drawn as text."""
    labels = ("$\\frac{1}$", "two\nlines", "猫", "lone\udcff", "x" * 300, "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(tmp_path, replace(hostile, labels=labels))
    for name in ("confusion.png", "reliability.png"):
        with Image.open(tmp_path / name) as image:
            image.load()
            assert 300 < image.width < 1200
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50


def test_mistakes_come_the_most_confident_first() -> None:
    """A sure mistake is worth more of a reader's time than a close one; ties keep their order."""
    scores = np.array([[0.6, 0.4], [0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])
    assert mistakes(scores, np.array([1, 0, 1, 1, 0])) == [1, 3, 0, 4]


def test_a_cut_matrix_keeps_its_sums() -> None:
    """The labels with the most mistakes stay, and what is left out is summed up, not lost."""
    confusion = np.array([[5, 0, 1, 0], [0, 4, 0, 0], [3, 0, 2, 1], [0, 0, 0, 9]])
    cut = matrix(confusion, ("a", "b", "c", "d"), 2)
    assert cut.labels == ("a", "c", "2 others")
    assert cut.counts.tolist() == [[5, 1, 0], [3, 2, 1], [0, 0, 13]]
    assert matrix(confusion, ("a", "b", "c", "d"), 4).counts is confusion


@given(st.text(st.characters()))
def test_shown_text_can_be_written_anywhere(text: str) -> None:
    """Whatever a name holds, what is shown is UTF-8, XML and one line, and is shown as it is."""
    safe = shown(text)
    safe.encode("utf-8")
    assert len(safe.splitlines()) <= 1
    assert shown(safe) == safe
    element = ET.Element("a", b=safe)
    element.text = safe
    back = read_xml(ET.tostring(element, "unicode"))
    assert (back.get("b"), back.text or "") == (safe, safe)


@given(st.text(), st.integers(4, 30))
def test_shortened_text_keeps_both_ends(text: str, most: int) -> None:
    """What is cut loses its middle: the ends of labels are what tells them apart."""
    short = shortened(text, most)
    assert len(short) == min(most, len(shown(text)))
    assert short[0:1] == shown(text)[0:1]
    assert short[-1:] == shown(text)[-1:]


def test_durations_differences_and_p_values_read_well() -> None:
    """Figures are rounded to what matters, and a difference of nothing has no sign."""
    found = [duration(s).replace("\u00a0", " ") for s in (0.04, 9.97, 59.6, 200, 7500)]
    assert found == ["0.0 s", "10 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
    assert [points(d) for d in (0.017, -0.1, -0.0001)] == ["+1.7", "\u221210.0", "0.0"]
    assert [p_value(p) for p in (0.03125, 0.0001, 1.0)] == ["p = 0.031", "p < 0.001", "p = 1.000"]


def test_a_large_matrix_has_its_largest_counts_written(tmp_path: Path) -> None:
    """With thousands of pairs the plot numbers the frequent ones only: time and ink are limited."""
    labels = tuple(f"{i:02}" for i in range(60))
    confusion = np.ones((60, 60), np.int64)
    plot_confusion(tmp_path / "ones.png", confusion, labels)  # as many ones as that: none of them
    plot_confusion(tmp_path / "empty.png", 0 * confusion, labels)
    np.fill_diagonal(confusion, 9)
    plot_confusion(tmp_path / "nines.png", confusion, labels)
    dark = {}
    for name in ("ones", "empty", "nines"):
        with Image.open(tmp_path / f"{name}.png") as image:
            # The ink is the same grey everywhere; labels and frame are on all three.
            dark[name] = int((np.asarray(image.convert("L")) < 80).sum())
    assert dark["ones"] == dark["empty"] < dark["nines"]
