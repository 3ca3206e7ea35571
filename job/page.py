"""The report as one HTML page: what the template is given, and nothing about how it looks.

The page runs no script and loads nothing: its Content-Security-Policy forbids both. Every string
goes through `shown` and then through the template's escaping, whoever chose it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from job import figures
from job.calibrate import Bin, bins_error
from job.evaluate import LabelScore, wilson
from job.multilabel import mistakes
from job.thumbnails import thumbnails

if TYPE_CHECKING:
    from job.report import Facts

# A page of megabytes opens slowly on a phone; metrics.json holds the rest.
MOST_MISTAKES = 60
MOST_CHANGED = 24
MOST_ROWS = 30
MOST_MATRIX_LABELS = 40
MOST_CONFUSIONS = 8
MOST_NAMES = 200
BARS = 3
LABEL_BARS = 5


@dataclass(frozen=True, slots=True)
class Bar:
    """One label's score of one image, in [0,1]."""

    label: str
    score: float
    is_true: bool
    is_predicted: bool


@dataclass(frozen=True, slots=True)
class Card:
    """A test image: its picture (None: unreadable) and the scores that matter, the best first."""

    name: str
    picture: str | None
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A label's line in the table; the interval is Wilson's at 95 %, of the recall."""

    score: LabelScore
    f1: float
    recall_ci95: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """A bin of the reliability diagram: its accuracy, with Wilson's interval at 95 %."""

    bin: Bin
    accuracy: float
    accuracy_ci95: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Diagram:
    """One reliability diagram; `largest` is the count of the fullest bin."""

    title: str
    error: float
    points: tuple[Point, ...]
    largest: int


def render(facts: Facts) -> str:
    """Give the page; reads the test images that it shows through `facts.read_image`."""
    page = PAGES[facts.task]
    wrong = page.mistakes(facts)
    rows = {name: row for row, name in enumerate(facts.names)}
    changed = facts.comparison
    broken = [rows[name] for name in changed.broken] if changed else []
    fixed = [rows[name] for name in changed.fixed] if changed else []
    shown = [wrong[:MOST_MISTAKES], broken[:MOST_CHANGED], fixed[:MOST_CHANGED]]
    names = [facts.names[row] for part in shown for row in part]
    pictures = thumbnails(names, facts.read_image)
    wrong_cards, broken_cards, fixed_cards = (
        [Card(facts.names[row], pictures[facts.names[row]], page.bars(facts, row)) for row in part]
        for part in shown
    )
    return (
        environment()
        .get_template(page.template)
        .render(
            facts=facts,
            report=facts.report,
            comparison=changed,
            rows=[label_row(score) for score in figures.weakest_first(facts.report.per_label)],
            **page.others(facts),
            diagrams=diagrams(facts),
            mistakes=wrong_cards,
            mistake_count=len(wrong),
            broken=broken_cards,
            fixed=fixed_cards,
            changed_labels=[c for c in changed.per_label if c.fixed or c.broken] if changed else [],
            most_rows=MOST_ROWS,
            most_names=MOST_NAMES,
        )
    )


def _best_bars(facts: Facts, row: int) -> tuple[Bar, ...]:
    """Give an image's best scores, the true label's always among them."""
    scores, true = facts.scores[row], int(facts.classes[row])
    order = [int(i) for i in (-scores).argsort(kind="stable")]
    kept = order[:BARS] if true in order[:BARS] else [*order[: BARS - 1], true]
    return tuple(Bar(facts.labels[i], float(scores[i]), i == true, i == order[0]) for i in kept)


def _wrong_bars(facts: Facts, row: int) -> tuple[Bar, ...]:
    """Give an image's labels, true or selected, by falling score; those that are wrong first."""
    scores, true = facts.scores[row], facts.classes[row]
    selected = facts.labelling.choose(scores, facts.thresholds)
    order = [int(i) for i in (-scores).argsort(kind="stable") if true[i] or selected[i]]
    order.sort(key=lambda i: bool(true[i] == selected[i]))
    return tuple(
        Bar(facts.labels[i], float(scores[i]), bool(true[i]), bool(selected[i]))
        for i in order[:LABEL_BARS]
    )


def _confused(facts: Facts) -> dict[str, Any]:
    confusion = facts.report.confusion
    if confusion is None:
        raise ValueError("a report of single labels has a confusion matrix, and there is none")
    return {
        "matrix": figures.matrix(confusion, facts.labels, MOST_MATRIX_LABELS),
        "confusions": figures.confusions(confusion)[:MOST_CONFUSIONS],
    }


def _counted(facts: Facts) -> dict[str, Any]:
    """Count the labels that were selected wrongly, and those that were missed."""
    chosen, true = facts.chosen, facts.classes
    return {
        "selected_wrongly": int((chosen & ~true).sum()),
        "missed": int((~chosen & true).sum()),
    }


@dataclass(frozen=True, slots=True)
class Page:
    """What a task's page has of its own.

    `mistakes` gives the rows of the images that are not right, the surest mistake first, `bars` the
    scores on an image's card, and `others` what only the template of that name asks for.
    """

    template: str
    mistakes: Callable[[Facts], list[int]]
    bars: Callable[[Facts, int], tuple[Bar, ...]]
    others: Callable[[Facts], dict[str, Any]]


PAGES: dict[str, Page] = {
    "single": Page(
        "report.html",
        lambda facts: figures.mistakes(facts.scores, facts.classes),
        _best_bars,
        _confused,
    ),
    "multilabel": Page(
        "multilabel.html",
        lambda facts: list(
            dict.fromkeys(m.row for m in mistakes(facts.scores, facts.classes, facts.chosen))
        ),
        _wrong_bars,
        _counted,
    ),
}


def label_row(score: LabelScore) -> LabelRow:
    """Give a label's line; one without test images has the interval of ignorance, 0 to 1."""
    hits = round(score.recall * score.count)
    interval = wilson(hits, score.count) if score.count else (0.0, 1.0)
    return LabelRow(score, figures.f1(score), interval)


def diagrams(facts: Facts) -> list[Diagram]:
    """Give the reliability diagrams before and after temperature scaling."""
    found = []
    after = f"After: scores with temperature {facts.temperature:.2f}"
    for title, scores in (("Before: scores as fitted", facts.uncalibrated), (after, facts.scores)):
        bins = facts.labelling.reliability(scores, facts.classes)
        points = tuple(Point(b, b.right / b.count, wilson(b.right, b.count)) for b in bins)
        found.append(Diagram(title, bins_error(bins), points, max(b.count for b in bins)))
    return found


def duration(seconds: float) -> str:
    """Give seconds as `0.4 s`, `12 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f}\u00a0s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}\u00a0s"
    if whole < 3600:
        return f"{whole // 60}\u00a0min {whole % 60}\u00a0s"
    return f"{whole // 3600}\u00a0h {whole % 3600 // 60}\u00a0min"


def environment() -> jinja2.Environment:
    """Give what renders the templates, with their filters; it escapes all that goes in."""
    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters |= {
        "percent": figures.percent,
        "hundred": lambda share: f"{100 * share:.1f}",
        "shortened": figures.shortened,
        "points": figures.points,
        "p_value": figures.p_value,
        "duration": duration,
        "width": lambda share: f"{100 * share:.1f}%",
        "total": lambda values: sum(_numbers(values)),
    }
    return environment


def _finalize(value: Any) -> Any:
    """See to it that no string of the outside world reaches the page without `shown`."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return figures.shown(value) if is_text else value


def _numbers(values: Iterable[float]) -> list[float]:
    return [value for value in values if value == value]
