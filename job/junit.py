"""The gate's checks as JUnit XML, which CI systems show as tests. No TensorFlow."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from job import figures

if TYPE_CHECKING:
    from job.evaluate import Report
    from job.report import Facts


def junit(facts: Facts) -> str:
    """Give JUnit XML: one test case for all images together, and one for each label.

    A case fails for the reasons of the verdict that concern it, the first for those which name no
    label; a label without test images is skipped.
    """
    reasons = {label: _about(label, facts) for label in facts.labels}
    claimed = {reason for found in reasons.values() for reason in found}
    general = [reason for reason in facts.verdict.reasons if reason not in claimed]
    if not facts.verdict.passed and not facts.verdict.reasons:
        general = ["refused without a reason"]
    name = figures.shown(facts.name)
    suite = ET.Element("testsuite", name=name)
    _case(suite, f"{name}.gate", "all images", general, _figures_line(facts.report))
    for score in facts.report.per_label:
        shares = (f"{name} {value:.4f}" for name, value in score.figures().items())
        line = f"{', '.join(shares)}, {score.count} images"
        skipped = "" if score.count else "no test images"
        _case(suite, f"{name}.labels", score.label, reasons[score.label], line, skipped)
    return document(suite)


def document(suite: ET.Element) -> str:
    """Give a `testsuite` with its cases as an XML document, the sums set."""
    for attribute, path in (
        ("tests", "testcase"),
        ("failures", ".//failure"),
        ("errors", ".//error"),
        ("skipped", ".//skipped"),
    ):
        suite.set(attribute, str(len(suite.findall(path))))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _about(label: str, facts: Facts) -> list[str]:
    # The gate writes a label into its reasons as Python does.
    return [reason for reason in facts.verdict.reasons if repr(label) in reason]


def _case(
    suite: ET.Element, group: str, name: str, reasons: list[str], line: str, skipped: str = ""
) -> None:
    case = ET.SubElement(suite, "testcase", classname=group, name=figures.shown(name), time="0")
    if reasons:
        text = figures.shown("; ".join(reasons))
        ET.SubElement(case, "failure", message=text, type="gate").text = text
    elif skipped:
        ET.SubElement(case, "skipped", message=skipped)
    ET.SubElement(case, "system-out").text = line


def _figures_line(report: Report) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in report.metrics.items())
