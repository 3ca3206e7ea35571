"""The documents say what is there: links lead somewhere, commands parse, the quick start runs."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import cache
from http.server import ThreadingHTTPServer
from itertools import chain
from pathlib import Path

import click
import pytest
import serving_standin
import yaml
from conftest import ROOT
from manifests import environment, kubectl, newest_releases, parsed
from modules import write_pooling
from standin_versions import Folder, Manager
from test_k8s_schema import problem

from job.cli import cli, main
from job.serving import wait_available

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUICKSTART = ROOT / "docs" / "quickstart.md"


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
    for line in re.findall(r"(?:python -m job|IMAGE|regraft:\w+) +(.+)", joined):
        line = re.split(r"`| #|  +(?![-\[])| > | && |[;)](?:\s|$)", line)[0].strip()
        names, alternatives = line, re.match(r"((?:[a-z-]+ \| )+[a-z-]+) +(.*)", line)
        if alternatives:
            found += [
                [name, *shlex.split(alternatives[2])] for name in alternatives[1].split(" | ")
            ]
        else:
            words = shlex.split(re.sub(r"[][]", "", names))
            found.append(
                [word.partition("/--")[0] if word.startswith("--") else word for word in words]
            )
    return [words for words in found if words and words[0] in cli.commands]


def check(words: list[str]) -> None:
    """Parse a command line as the job would; what has no placeholder also has its values checked.

    Raises click's errors.
    """
    command, rest = cli.commands[words[0]], words[1:]
    while isinstance(command, click.Group) and rest:
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
    with pytest.raises(click.NoSuchOption):
        check(["run", "--dta", "gs://bucket/images"])
    with pytest.raises(click.NoSuchOption):
        check(["submit", "k8s/base", "--", "--dta", "gs://bucket/images"])
    with pytest.raises(click.BadParameter):
        check(["run", "--epochs", "some"])
    assert lost_paths("see job/pipeline.py, job/pipelin.py and k8s/overlays/*") == [
        "job/pipelin.py"
    ]


# The quick start


def overlays() -> dict[str, str]:
    """Give the two overlays of the page by the folder that the text puts them into."""
    text = section(QUICKSTART, "GKE")
    return dict(
        zip(
            ("training", "serving"),
            re.findall(r"^```yaml\n(.*?)^```$", text, re.M | re.S),
            strict=True,
        )
    )


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader of the quick start has it: k8s/, overlays, 24 images of two labels."""
    folder = tmp_path_factory.mktemp("laptop")
    shutil.copytree(ROOT / "k8s", folder / "k8s")
    for name, text in overlays().items():
        (folder / name).mkdir()
        (folder / name / "kustomization.yaml").write_text(text)
    for label, sample in (("cat", "mammal"), ("dog", "vehicle")):
        (folder / "photos" / label).mkdir(parents=True)
        for number, image in enumerate(
            sorted((ROOT / "samples/clipart" / sample).glob("*.jpg"))[:12]
        ):
            shutil.copy(image, folder / "photos" / label / f"{number}.jpg")
    write_pooling(folder / "module")
    return folder


def in_bash(line: str) -> str:
    """Run a line of the page in bash; gives what it wrote to stdout."""
    bash = shutil.which("bash") or ""
    done = subprocess.run([bash, "-euo", "pipefail", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


def by_the_job(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a `python -m job` line of the page, its words as bash makes them; gives its stdout.

    In this process, because each further one would import TensorFlow for seconds.
    """
    words = in_bash(f"printf '%s\\n' {line}").splitlines()
    assert words[:3] == ["python", "-m", "job"]
    capsys.readouterr()
    code = main(words[3:])
    out, errors = capsys.readouterr()
    assert code == 0, f"{line}\n{errors[-2000:]}"
    return out


@contextlib.contextmanager
def served(base: Path, name: str) -> Iterator[int]:
    """Keep the stand-in for TensorFlow Serving alive, a model loaded; gives its port."""
    serving_standin.Handler.manager = Manager(Folder(str(base)), name, 0, 1.0)
    serving_standin.Handler.manager.poll()
    serving_standin.Handler.manager.manage()
    with ThreadingHTTPServer(("127.0.0.1", 0), serving_standin.Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        wait_available(f"http://127.0.0.1:{server.server_port}", name, newest(base), timeout=60)
        yield server.server_port
        server.shutdown()
        thread.join()


def newest(base: Path) -> int:
    """Give the newest version below a model's folder."""
    return max(int(path.name) for path in base.iterdir() if path.name.isdigit())


def test_the_laptop_part_runs(
    laptop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the page has a reader type gives a report, answers, a version and a served prediction.

    `make demo` is a step of .ci/run and docker one of `make image-test`; a pooling layer stands in
    for the backbone, which makes of minutes seconds.
    """
    monkeypatch.chdir(laptop)
    monkeypatch.setenv("REGRAFT_BACKBONE", "module")
    lines = indented(section(QUICKSTART, "Laptop"))
    python = [line for line in lines if line.startswith("python -m job")]
    assert [line.split()[3] for line in python] == ["inspect", "run", "predict", "versions"]
    for line in (line for line in lines if line.startswith("mkdir")):
        in_bash(line)
    out = [by_the_job(line, capsys) for line in python]
    assert Path("inspection/index.html").is_file()
    assert list(json.loads(out[1].splitlines()[-1])["seconds"]) == list(phases())
    assert len(out[2].splitlines()) == 24
    version = newest(laptop / "models/photos")
    assert Path(f"models/photos/{version}/report/index.html").is_file()
    assert str(version) in out[3]
    (request,) = [line for line in lines if "curl" in line]
    with served(laptop / "models/photos", "photos") as port:
        assert '"scores"' in in_bash(request.replace("8501", str(port)))


def test_the_containers_options_are_those_of_the_image() -> None:
    """The build arguments that the page gives are arguments of the Dockerfile."""
    known = re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.M)
    pages = "\n".join(page.read_text() for page in PAGES)
    given = re.findall(r"--build-arg[ =]([A-Z_]+)", pages)
    assert given
    assert set(given) <= set(known)


@pytest.mark.parametrize("name", overlays())
def test_the_overlays_build(name: str, laptop: Path) -> None:
    """Each overlay of the page is valid, in its namespace, with its own values."""
    objects = parsed(kubectl("kustomize", str(laptop / name)))
    for item in objects:
        assert not problem(newest_releases(1)[0], json.dumps(item, sort_keys=True))
    assert {item["metadata"]["namespace"] for item in objects} == {"training"}
    assert "your-bucket" in str(objects)


def test_submit_renders_the_overlay(
    laptop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`submit --dry-run` as the page has it gives a Job with the image, options and account."""
    (line,) = [line for line in indented(section(QUICKSTART, "GKE")) if "--dry-run" in line]
    monkeypatch.chdir(laptop)
    monkeypatch.setenv("IMAGE", "host/regraft:1")
    objects = list(yaml.safe_load_all(by_the_job(line, capsys)))
    (container,) = objects[-1]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "host/regraft:1"
    assert container["args"] == ["run", "--min-accuracy", "0.8"]
    assert environment(objects)["REGRAFT_NAME"] == "photos"
    (account,) = [item for item in objects if item["kind"] == "ServiceAccount"]
    assert account["metadata"]["annotations"] == {
        "iam.gke.io/gcp-service-account": "regraft@your-project.iam.gserviceaccount.com"
    }


def test_the_cases_of_ci_are_there() -> None:
    """Each file that the page copies is in ci/, and each variable is one that it reads."""
    rows = re.findall(
        r"^\| \[.*?\]\(.*?\) \| `(\S+?)`(.*?)\| (.*) \|$", section(QUICKSTART, "CI"), re.M
    )
    assert len(rows) == 5
    for file, more, variables in rows:
        texts = [(ROOT / name).read_text() for name in re.findall(r"ci/[\w.-]+", file + more)]
        page = (ROOT / "docs" / "ci.md").read_text()
        for variable in re.findall(r"`(_?[A-Z_]+)`", variables):
            assert any(variable in text for text in [*texts, page]), variable


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
