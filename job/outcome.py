"""What CI shows of a run by its result alone: Markdown, JUnit, GitHub's annotation. No TensorFlow.

A run that reaches the gate has a report, and `report.markdown` and `junit.junit` say more of it.
This is for a run that ends before, and for those who have nothing but its result.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

from job import figures
from job.junit import document

# How a run ends that leaves things as they were, and why that is as it should be.
SKIPPED = {
    "unchanged": "Data, options and backbone are those of the version in service.",
    "embedded": "This job's share is in the cache, job 0 goes on.",
    "helped": "This job has trained together with worker 0, which has published.",
}
# The others that are no failure.
DONE = ("published", "planned", "succeeded")


def status_of(result: Mapping[str, Any]) -> str:
    """Give its status; a result that another program left need not have one."""
    return str(result.get("status") or "failed")


def headline(name: str, result: Mapping[str, Any]) -> str:
    """Give what became of the model `name` in a few words, on one line."""
    return f"{figures.shown(name or 'run')}: {_words(result)}"


def _words(result: Mapping[str, Any]) -> str:
    version, status = result.get("version"), status_of(result)
    return {
        "published": f"version {version} is published",
        "unchanged": f"unchanged, version {version} stays in service",
        "rejected": "rejected by the gate",
        "preempted": "stopped, run it again",
    }.get(status, figures.shown(status))


def reason(result: Mapping[str, Any]) -> str:
    """Give why a run ended as it did: the error with what to do about it, empty where all went."""
    error = result.get("error")
    if error:
        said = (error.get("message"), error.get("hint"))
        return figures.shown(". ".join(str(part) for part in said if part))
    return SKIPPED.get(status_of(result), "")


def markdown(name: str, result: Mapping[str, Any]) -> str:
    """Give a summary in GitHub's Markdown of the model `name`, by a result as `Result` has it."""
    lines = [f"## {figures.markdown_text(name or 'run')}: {_words(result)}", ""]
    if why := reason(result):
        lines += [figures.markdown_text(why), ""]
    if found := _images(result):
        lines += [found, ""]
    metrics = result.get("metrics") or {}
    scores = {key: value for key, value in metrics.items() if isinstance(value, float)}
    if scores:
        lines += ["| metric | |", "|---|---:|"]
        lines += [f"| {figures.markdown_text(key)} | {scores[key]:.4f} |" for key in scores]
        lines += [""]
    if result.get("uri"):
        lines += [figures.markdown_text(f"{result['uri']}/report/index.html"), ""]
    return "\n".join(lines)


def junit(name: str, result: Mapping[str, Any]) -> str:
    """Give JUnit XML with the run as its one case.

    It fails when the gate said no, is an error when the run could not be finished, and is skipped
    when there was nothing to do.
    """
    shown = figures.shown(name or "run")
    suite = ET.Element("testsuite", name=shown)
    case = ET.SubElement(suite, "testcase", classname=f"{shown}.run", name="run", time="0")
    why, status = reason(result), status_of(result)
    if status in SKIPPED:
        ET.SubElement(case, "skipped", message=why)
    elif status not in DONE:
        tag = "failure" if status == "rejected" else "error"
        kind = figures.shown(str((result.get("error") or {}).get("type") or status))
        ET.SubElement(case, tag, message=why, type=kind).text = why
    ET.SubElement(case, "system-out").text = headline(name, result)
    return document(suite)


def annotation(name: str, result: Mapping[str, Any]) -> str:
    """Give the line that GitHub Actions shows at the top of a workflow run's page.

    Its toolkit's `command.ts` has the escapes.
    """
    level = "notice" if status_of(result) in (*SKIPPED, *DONE) else "error"
    said = reason(result) or str(result.get("uri") or _images(result))
    title = _escaped(headline(name, result)).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={title}::{_escaped(said)}"


def _images(result: Mapping[str, Any]) -> str:
    images = result.get("images") or {}
    if "total" not in images:
        return ""
    sides = ", ".join(f"{images.get(side)} {side}" for side in ("train", "validation", "test"))
    return f"{images['total']} images: {sides}."


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
