"""The findings in short: for pipelines, for machines and for a terminal. No TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from job.doctor.listing import Finding, is_contradiction, rows
from job.figures import markdown_text, percent, plain, shown

if TYPE_CHECKING:  # their module loads TensorFlow
    from job.doctor.findings import Alike, Drift, Findings, Material, Suspect

# More than this is not read in a job's log or its summary.
MOST_SUSPECTS = 10
MOST_LABELS = 3


@dataclass(frozen=True, slots=True)
class Line:
    """One kind of finding: its section on the page, how many, of what, and what to do."""

    section: str
    count: int
    what: str
    advice: str


def lines(material: Material, findings: Findings) -> tuple[Line, ...]:
    """Give a line for each kind of finding that was looked for, also where there is none."""
    contradictions = sum(is_contradiction(group) for group in findings.copies)
    copies = {r.name for r in rows(material, findings) if r.finding in _COPIES}
    wishes = [material.labels[wish.label] for wish in findings.wishes]
    first = ", ".join(wishes[:MOST_LABELS])
    counts = {
        "suspects": len(findings.suspects),
        "contradictions": contradictions,
        "copies": len(copies),
        "alike": len(findings.alike),
        "outliers": len(findings.outliers),
        "unreadable": len(material.skipped),
    }
    if findings.curve is not None:  # or else nobody has looked
        counts["wishes"] = len(wishes)
    found = []
    for section, count in counts.items():
        one, many, advice = _WORDS[section]
        what = one if count == 1 else many
        found.append(Line(section, count, what, advice.format(labels=first) if count else ""))
    return tuple(found)


_COPIES = (Finding.COPY, Finding.NEAR_COPY)

# Of each kind: one of them, several, and what to do about it.
_WORDS = {
    "suspects": (
        "label that is likely wrong",
        "labels that are likely wrong",
        "Look through them, the surest first, and move an image to the label that is right.",
    ),
    "contradictions": (
        "image under more than one label",
        "images under more than one label",
        "Keep each under the one that is right; as they are they teach nothing.",
    ),
    "copies": (
        "superfluous copy",
        "superfluous copies",
        "Keep one of each: copies weigh double in training, and add nothing.",
    ),
    "alike": (
        "pair of labels that are hard to tell apart",
        "pairs of labels that are hard to tell apart",
        "Make them one label, or sort their images by a clearer rule.",
    ),
    "outliers": (
        "image unlike all others",
        "images unlike all others",
        "Remove what shows something else; keep what is only rare.",
    ),
    "unreadable": (
        "file that cannot be read",
        "files that cannot be read",
        "Save it again as JPEG or PNG, or delete it; until then it is skipped.",
    ),
    "wishes": (
        "label that more images would help",
        "labels that more images would help",
        "Photograph these first: {labels}.",
    ),
}


def share(value: float) -> str:
    """Give a share in percent, or a dash where it is no number."""
    return percent(value) if value == value else "\u2013"


def headline(material: Material, findings: Findings) -> str:
    """Give how much was looked at, and how well the labels are told apart."""
    return (
        f"{len(material.names):,} images, {len(material.labels)} labels, "
        f"cross-validated accuracy {share(findings.accuracy)}"
    )


def markdown(material: Material, findings: Findings) -> str:
    """Give a summary in GitHub's Markdown: what was found, what to do, the first suspects."""
    text = ["## Data", "", f"**{headline(material, findings)}**", ""]
    text += ["| | found | what to do |", "|---:|---|---|"]
    for line in lines(material, findings):
        text.append(f"| {line.count:,} | {line.what} | {markdown_text(line.advice)} |")
    suspects = findings.suspects[:MOST_SUSPECTS]
    if suspects:
        text += ["", "| likely wrong | given | suggested |", "|---|---|---|"]
    for suspect in suspects:
        cells = (markdown_text(cell) for cell in _cells(material, suspect))
        text.append(f"| {' | '.join(cells)} |")
    if len(findings.suspects) > len(suspects):
        text += ["", f"{len(findings.suspects) - len(suspects)} more are in the CSV."]
    if findings.left_out:
        text += ["", "Left out:", ""]
        text += [f"- {markdown_text(sentence)}" for sentence in findings.left_out]
    return "\n".join(text) + "\n"


def table(material: Material, findings: Findings) -> RenderableType:
    """Give the same for a terminal: a line a kind of finding, then the first suspects."""
    counts = Table(
        title=headline(material, findings), title_justify="left", show_header=False, box=None
    )
    counts.add_column(justify="right", style="bold", no_wrap=True)
    counts.add_column(no_wrap=True)
    counts.add_column(overflow="fold")
    for line in lines(material, findings):
        style = "" if line.count else "dim"
        cells = (f"{line.count:,}", line.what, shown(line.advice))
        counts.add_row(*(Text(cell) for cell in cells), style=style)
    suspects = Table("likely wrong", "given", "suggested", title_justify="left")
    for suspect in findings.suspects[:MOST_SUSPECTS]:
        suspects.add_row(*(Text(shown(cell)) for cell in _cells(material, suspect)))
    left_out = [Text(f"left out: {shown(sentence)}") for sentence in findings.left_out]
    return Group(counts, *([suspects] if findings.suspects else []), *left_out)


def _cells(material: Material, suspect: Suspect) -> tuple[str, str, str]:
    labels = material.labels
    return (
        material.names[suspect.row],
        f"{labels[suspect.given]} {share(suspect.p_given)}",
        f"{labels[suspect.suggested]} {share(suspect.p_suggested)}",
    )


def as_json(material: Material, findings: Findings) -> dict[str, Any]:
    """Give every finding, ready for JSON: images and labels by name, floats have 6 digits.

    What is no number is null.
    """
    names, labels = material.names, material.labels
    found: dict[str, Any] = plain(
        {
            "images": len(names),
            "labels": [
                {"label": label, "count": int(count)}
                for label, count in zip(labels, findings.counts, strict=True)
            ],
            "accuracy": findings.accuracy,
            "suspects": [_suspect(material, suspect) for suspect in findings.suspects],
            "copies": [
                {
                    "names": [names[row] for row in group.rows],
                    "labels": [labels[i] for i in group.labels],
                    "exact": group.exact,
                }
                for group in findings.copies
            ],
            "outliers": [{"name": names[o.row], "score": o.score} for o in findings.outliers],
            "alike": _alike(labels, findings.alike),
            "curve": asdict(findings.curve) if findings.curve else None,
            "wishes": [asdict(w) | {"label": labels[w.label]} for w in findings.wishes],
            "drift": _drift(material, findings.drift) if findings.drift else None,
            "unreadable": [asdict(skipped) for skipped in material.skipped],
            "left_out": findings.left_out,
        }
    )
    return found


def _suspect(material: Material, suspect: Suspect) -> dict[str, Any]:
    return {
        "name": material.names[suspect.row],
        "label": material.labels[suspect.given],
        "label_score": suspect.p_given,
        "suggested": material.labels[suspect.suggested],
        "suggested_score": suspect.p_suggested,
        "score": suspect.score,
    }


def _alike(labels: tuple[str, ...], pairs: Iterable[Alike]) -> list[dict[str, Any]]:
    return [
        {
            "labels": [labels[pair.first], labels[pair.second]],
            "accuracy": pair.accuracy,
            "accuracy_ci95": pair.accuracy_ci95,
            "count": pair.count,
        }
        for pair in pairs
    ]


def _drift(material: Material, drift: Drift) -> dict[str, Any]:
    moved = [
        {
            "name": material.names[item.row],
            "before": item.before,
            "label": material.labels[material.classes[item.row]],
        }
        for item in drift.relabelled
    ]
    new = [material.names[row] for row in drift.new]
    return asdict(drift) | {"new": new, "relabelled": moved}
