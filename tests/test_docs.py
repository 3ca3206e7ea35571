"""The documents say what is there: links and paths lead somewhere, commands parse."""

from __future__ import annotations

import re
import shlex
from functools import cache
from itertools import chain
from pathlib import Path

import click
import pytest
from conftest import ROOT

from job.cli import cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def named(page: Path) -> str:
    """Give a page's name, for the report of a test."""
    return page.relative_to(ROOT).as_posix()


def section(page: Path, title: str) -> str:
    """Give what stands between a heading of the second level and the next one."""
    return page.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def indented(text: str) -> list[str]:
    """Give the indented lines of a text, each with those that continue it."""
    blocks = re.findall(r"(?:^    .*(?:\n|\Z))+", text, re.M)
    lines = "".join(re.sub(r"^    ", "", block, flags=re.M) for block in blocks)
    return re.sub(r"(\\|\|)\n\s+", lambda found: found[1].strip("\\"), lines).splitlines()


# Links and anchors


def without_code(text: str) -> str:
    """Take fenced and indented code out of a page."""
    return re.sub(
        r"^(?:    |\t).*$", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M
    )


@cache
def anchors(page: Path) -> set[str]:
    """Give the anchors that GitHub makes of a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", without_code(page.read_text()), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = sum(
            re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other) is not None for other in found
        )
        found.add(f"{anchor}-{count}" if count else anchor)
    return found


def dead_links(page: Path) -> list[str]:
    """Give the relative links of a page that lead nowhere."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page is to a file that is there, and to a heading of it."""
    assert dead_links(page) == []


# What is committed at the top: other folders are what a run or a build leaves.
TOPS = (r"\.ci", "benchmarks", "ci", "docs", "job", "k8s", "samples", "tests")


def lost_paths(text: str) -> list[str]:
    """Give what looks like a path of this repository and is none."""
    paths = re.findall(rf"(?<![\w./:-])((?:{'|'.join(TOPS)})/[\w./*-]*)", text)
    return [path for path in paths if not list(ROOT.glob(path.rstrip("./")))]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_paths_are_there(page: Path) -> None:
    """Every file or folder of this repository that a page names in code exists."""
    text = page.read_text()
    blocks = "\n".join(re.findall(r"`([^`\n]+)`", without_code(text)) + indented(text))
    assert lost_paths(blocks) == []


# Commands


def commands(text: str) -> list[list[str]]:
    """Give the arguments of every `python -m job` in a page, and of a container that runs the job.

    What stands for several commands (`versions | promote`) becomes each of them; optional parts
    lose their brackets, and of `--wait/--no-wait` the first counts.
    """
    joined = re.sub(r"\\\n\s+|\n\s+(?=\[--)", " ", text)
    found = []
    for line in re.findall(r"(?:python -m job|IMAGE|regraft:\w+) +([^\s.].*)", joined):
        line = re.split(r"`| #| > |[;)](?:\s|$)", line)[0]
        line = re.sub(r"/--\S+|[][]", "", re.sub(" +", " ", line))
        names, rest = re.fullmatch(r"((?:\S+ \| )*\S+)(.*)", line.strip()).groups()
        found += [[name, *shlex.split(rest)] for name in names.split(" | ")]
    return found


def check(words: list[str]) -> None:
    """Parse a command line as the job would; what has no placeholder also has its values checked.

    Raises click's errors.
    """
    command: click.Command = cli
    rest = words
    while isinstance(command, click.Group) and rest:
        if rest[0] not in command.commands:
            raise click.UsageError(f"no such command: {rest[0]}")
        command, rest = command.commands[rest[0]], rest[1:]
    if "--" in rest:
        split = rest.index("--")
        rest, options = rest[:split], rest[split + 1 :]
        check(["run", *(word for word in options if word not in ("OPTIONS", "OF", "run"))])
    context = click.Context(command, info_name=words[0])
    values, *_ = command.make_parser(context).parse_args(list(rest))
    for param in command.params:
        given = values.get(param.name or "")
        texts = given if isinstance(given, list | tuple) else [given]
        known = [
            text
            for text in texts
            if isinstance(text, str) and not re.search(r"[A-Z]{2}|…|\.\.\.", text)
        ]
        if known:
            param.type_cast_value(context, known if isinstance(given, list | tuple) else known[0])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_parse(page: Path) -> None:
    """Every line of the job in a page has options that there are, with values that they take."""
    for words in commands(page.read_text()):
        try:
            check(words)
        except click.ClickException as error:
            pytest.fail(f"{shlex.join(words)}: {error.format_message()}")


def test_the_pages_are_read() -> None:
    """What is looked for is found: a pattern that matches nothing would pass everything."""
    every = "\n".join(page.read_text() for page in PAGES)
    assert {words[0] for words in commands(every)} >= {
        "run", "inspect", "submit", "predict", "evaluate", "versions", "prune", "cache", "verify"
    }  # fmt: skip
    assert len(commands(every)) > 50
    with pytest.raises(click.UsageError):
        check(["rn", "--data", "gs://bucket/images"])
    with pytest.raises(click.NoSuchOption):
        check(["run", "--dta", "gs://bucket/images"])
    with pytest.raises(click.NoSuchOption):
        check(["submit", "k8s/base", "--", "--dta", "gs://bucket/images"])
    with pytest.raises(click.BadParameter):
        check(["run", "--epochs", "some"])
    assert lost_paths("see job/pipeline.py, job/pipelin.py and k8s/overlays/*") == [
        "job/pipelin.py"
    ]


def test_the_containers_options_are_those_of_the_image() -> None:
    """The build arguments that the page gives are arguments of the Dockerfile."""
    known = re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.M)
    pages = "\n".join(page.read_text() for page in PAGES)
    given = re.findall(r"--build-arg[ =]([A-Z_]+)", pages)
    assert given
    assert set(given) <= set(known)


def phases() -> dict[str, list[str]]:
    """Give the phases of docs/architecture.md, each with what it names of job/."""
    table = section(ROOT / "docs" / "architecture.md", "The line").partition("\n|---")[2]
    rows = re.findall(r"^\| ([a-z]+) \| .*? \| (.*?) \|$", table, re.M)
    return {phase: re.findall(r"`([a-z_/]+)`", modules) for phase, modules in rows}


def test_the_architecture_is_that_of_the_code() -> None:
    """The picture has the phases of the page, and the modules of both exist."""
    picture = (ROOT / "docs" / "architecture.svg").read_text()
    assert re.findall(r'<text x="\d+" y="254">(\w+)</text>', picture) == list(phases())
    drawn = re.findall(r'<text x="\d+" y="(?:284|299|314)">(.+?)</text>', picture)
    for name in {*chain(*phases().values()), *", ".join(drawn).split(", ")}:
        assert (ROOT / "job" / (name if name.endswith("/") else f"{name}.py")).exists(), name
