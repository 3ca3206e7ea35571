"""The way to production: entrypoint, Dockerfile, requirements, Makefile and CI script."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from job.cli import cli

ROOT = Path(__file__).parent.parent
ENTRYPOINT = ROOT / "entrypoint.sh"
VARIANTS = ("cpu", "gpu")  # of the image, by its requirements


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and keep what it printed."""
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def program(path: Path, text: str) -> None:
    """Write an executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


# --- entrypoint.sh -----------------------------------------------------------------------------


@pytest.fixture
def image_env(tmp_path: Path) -> dict[str, str]:
    """An environment whose `python` prints its arguments, one a line, instead of running them."""
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin/python", r'''printf '%s\n' "$@"''')
    return {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("given", "data", "expected"),
    [
        (["run", "--data", "a b", "*"], "", ["-m", "job", "run", "--data", "a b", "*"]),
        (["--help"], "", ["-m", "job", "--help"]),
        ([], "", ["-m", "job", "--help"]),
        ([], "gs://bucket/images", ["-m", "job", "run"]),
        (["plan"], "gs://bucket/images", ["-m", "job", "plan"]),
        (["export"], "", ["-m", "job", "export"]),
        (["train"], "", ["-m", "job", "run"]),
        (["train", "--l2", "1"], "", ["-m", "job", "run", "--l2", "1"]),
    ],
)
def test_arguments_go_to_the_job(
    given: list[str], data: str, expected: list[str], image_env: dict[str, str]
) -> None:
    """Arguments reach `python -m job` unchanged; without any, REGRAFT_DATA decides: run or help."""
    done = run(ENTRYPOINT, *given, env={**image_env, "REGRAFT_DATA": data})
    assert done.stdout.splitlines() == expected
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["AIP_MODEL_DIR", "AIP_DATA_FORMAT"])
def test_vertex_ai_runs_the_job_without_arguments(name: str, image_env: dict[str, str]) -> None:
    """The help, and exit code 0, would look there like a job that is done."""
    done = run(ENTRYPOINT, env={**image_env, name: "x"})
    assert done.stdout.splitlines() == ["-m", "job", "run"]


def test_an_image_that_trains_does_not_serve(image_env: dict[str, str]) -> None:
    """SageMaker starts an endpoint's image with `serve`: the answer says which image can do it."""
    done = run(ENTRYPOINT, "serve", env=image_env)
    assert (done.returncode, done.stdout) == (2, "")
    assert "TensorFlow Serving" in done.stderr


def test_a_program_is_run_as_it_is(image_env: dict[str, str]) -> None:
    """A first argument that names a program of the image replaces the job."""
    assert run(ENTRYPOINT, "sh", "-c", "echo $0 $1", "a", "b", env=image_env).stdout == "a b\n"
    assert run(ENTRYPOINT, "python", "x", env=image_env).stdout == "x\n"


@pytest.mark.parametrize("command", cli.commands)
def test_no_program_hides_a_command_of_the_job(command: str) -> None:
    """No package puts a program on the path that has the name of one of the job's commands."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    assert shutil.which(command, path=path) is None


@pytest.mark.parametrize("code", [0, 1, 4, 138, 143])
def test_the_exit_code_is_passed_on(code: int, image_env: dict[str, str]) -> None:
    """Kubernetes sees the exit code that Python chose."""
    program(Path(image_env["PATH"].split(":")[0], "python"), f"exit {code}")
    assert run(ENTRYPOINT, "run", env=image_env).returncode == code


def test_sigterm_reaches_python(tmp_path: Path, image_env: dict[str, str]) -> None:
    """The process that was started is Python itself, so it gets the signal and picks the exit."""
    handler = tmp_path / "handler.py"
    handler.write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print(os.getpid(), *sys.argv[1:], flush=True)\n"
        "signal.pause()\n"
    )
    program(tmp_path / "bin/python", f'exec "{sys.executable}" "{handler}" "$@"')
    command = [str(ENTRYPOINT), "run"]
    started = subprocess.Popen(
        command, env=image_env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert started.stdout is not None
        assert started.stdout.readline().split() == [str(started.pid), "-m", "job", "run"]
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=10) == 143
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)


# --- Dockerfile and requirements ---------------------------------------------------------------


def test_dockerfile_is_clean() -> None:
    """Hadolint finds nothing in the Dockerfile."""
    done = run(Path(sys.executable).with_name("hadolint"), "--no-color", ROOT / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_base_image_is_pinned() -> None:
    """The base is named with its digest, once: a build of tomorrow starts from the same bytes."""
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^ARG BASE_IMAGE=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", text, re.MULTILINE)
    assert {base for base, _ in stages} - {name for _, name in stages} == {"${BASE_IMAGE}"}


def test_builder_gets_what_the_dockerfile_copies() -> None:
    """.dockerignore lets through each path that the Dockerfile copies, and nothing else."""
    text = (ROOT / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE)
    copied += [path.replace("${VARIANT}", name) for path in copied for name in VARIANTS]
    copied = [path for path in copied if "$" not in path]
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    allowed = {line[1:].rstrip("/") for line in ignore if line.startswith("!")}
    assert allowed == {path.rstrip("/") for path in copied}


def locked(name: str) -> list[str]:
    """Give what a lock pins, one line each, with the hashes."""
    text = (ROOT / f"{name}.txt").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def versions(name: str) -> dict[str, list[str]]:
    """Give the versions that a lock pins of each package, with their markers."""
    found: dict[str, list[str]] = {}
    for line in locked(name):
        package, _, version = line.partition(" --hash")[0].partition("==")
        found.setdefault(package.split("[")[0], []).append(version.strip())
    return found


@pytest.mark.parametrize(
    "name",
    ["requirements", *(f"requirements-{kind}" for kind in ("dev", "sbom", *VARIANTS))],
)
def test_requirements_are_locked(name: str) -> None:
    """Every requirement is one exact version with hashes, and those asked for are among them."""
    lines = locked(name)
    loose = [
        line
        for line in lines
        if not re.match(r"[\w.-]+(\[[\w,-]+\])?==[\w.!+]+ .*--hash=sha256:[0-9a-f]{64}", line)
    ]
    assert lines
    assert loose == []
    pinned = {line.split("==")[0].split("[")[0].lower() for line in lines}
    asked = re.findall(r"^[A-Za-z][\w.-]*", (ROOT / f"{name}.in").read_text(), re.MULTILINE)
    assert asked
    assert {package.lower() for package in asked} <= pinned


def test_the_image_runs_what_the_tests_ran() -> None:
    """Both variants have the versions of requirements.txt; the GPU's adds NVIDIA's libraries."""
    plain, gpu, cpu = (versions(f"requirements{kind}") for kind in ("", "-gpu", "-cpu"))
    added = gpu.keys() - plain.keys()
    assert added
    assert all(package.startswith("nvidia-") for package in added)
    assert {package: gpu[package] for package in plain} == plain
    (release,) = plain.pop("tensorflow")
    assert cpu.pop("tensorflow") == [f"{release} ; platform_machine != 'x86_64'"]
    assert cpu.pop("tensorflow-cpu") == [f"{release} ; platform_machine == 'x86_64'"]
    assert cpu == plain


# --- Makefile and .ci/run ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checkout:
    """A folder with the Makefile and requirements that install nothing."""

    path: Path
    env: dict[str, str]

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run make there, with the stand-ins of `path`/bin first on the path."""
        return run("make", *arguments, cwd=self.path, env=self.env)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Make a checkout whose `python3` is the Python of these tests."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "requirements-dev.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin/python3", f'exec "{Path(sys.executable).resolve()}" "$@"')
    return Checkout(tmp_path, {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"})


def test_venv_is_made_once_and_mended(checkout: Checkout) -> None:
    """.venv is made once, again when a requirement changes, and mended after a killed install."""
    ready = [".venv/.run-ready", ".venv/.dev-ready"]
    python = checkout.path / ".venv/bin/python"
    (checkout.path / ".venv/bin").mkdir(parents=True)
    program(python, "exit 1")
    (checkout.path / ".venv/half-installed").touch()

    first = checkout.make(*ready)
    assert first.returncode == 0, first.stderr
    assert run(python, "-c", "import pip").returncode == 0
    assert not (checkout.path / ".venv/half-installed").exists()
    assert checkout.make("--question", *ready).returncode == 0

    (checkout.path / "requirements-dev.txt").write_text("no-such-package==1 --hash=sha256:00\n")
    os.utime(checkout.path / "requirements-dev.txt", (2e9, 2e9))
    assert checkout.make(*ready).returncode != 0
    assert not any((checkout.path / stamp).exists() for stamp in ready[:1])


@pytest.mark.parametrize("release", ["(3, 10, 9)", "(3, 14, 0)"])
def test_a_wrong_python_is_refused(release: str, checkout: Checkout) -> None:
    """A Python that is too old or too new is named, with what to do, and nothing is made."""
    real = Path(sys.executable).resolve()
    program(
        checkout.path / "bin/python3",
        f'case $1 in -c) exec "{real}" -c "import sys; sys.version_info = {release}; $2";; esac\n'
        f'exec "{real}" "$@"',
    )
    done = checkout.make("test")
    assert done.returncode != 0
    assert "Python 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert not (checkout.path / ".venv").exists()


@pytest.mark.parametrize("root", [True, False])
def test_a_missing_venv_module(root: bool, checkout: Checkout) -> None:
    """Where Debian left out venv, root gets it from apt-get and others are told the package."""
    real = Path(sys.executable).resolve()
    program(
        checkout.path / "bin/python3",
        f'case "$2" in *ensurepip*) exit 1;; esac\nexec "{real}" "$@"',
    )
    program(checkout.path / "bin/id", f"echo {0 if root else 1000}")
    program(checkout.path / "bin/apt-get", 'echo "$@" >> "$(dirname "$0")/asked"')
    done = checkout.make(".venv/.run-ready")
    package = f"python3.{sys.version_info.minor}-venv"
    if root:
        assert done.returncode == 0, done.stderr
        assert (checkout.path / "bin/asked").read_text().splitlines() == [
            "update -q",
            f"install -qy --no-install-recommends {package}",
        ]
    else:
        assert done.returncode != 0
        assert f"apt-get install {package}" in done.stderr
        assert not (checkout.path / "bin/asked").exists()


def test_help_lists_every_target(checkout: Checkout) -> None:
    """`make` alone prints each command with what it does, and does nothing else."""
    listed = re.findall(r"^make ([a-z-]+) +\S", checkout.make().stdout, re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(phony.split())
    assert not (checkout.path / ".venv").exists()


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        ("none", ["test", "lint", "demo", "image-test"]),
        ("test", ["test"]),
        ("lint", ["test", "lint"]),
    ],
)
def test_ci_runs_each_step_and_stops_at_a_failure(
    failing: str, expected: list[str], tmp_path: Path
) -> None:
    """`.ci/run` runs tests, linters, demo and image in this order; the first that fails ends it."""
    assert (ROOT / ".ci/run").stat().st_mode & stat.S_IXUSR
    program(tmp_path / "make", f'echo "$1" >> "{tmp_path}/asked"; [ "$1" != {failing} ]')
    done = run(ROOT / ".ci/run", env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, cwd=tmp_path)
    assert (done.returncode == 0) == (failing == "none")
    assert (tmp_path / "asked").read_text().split() == expected
    assert f"make {expected[-1]} =====" in done.stdout


# --- image-test ---------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["exit 100", "exit 0"])
def test_where_the_image_cannot_be_built_that_is_said(update: str, tmp_path: Path) -> None:
    """Without buildah or a way to get it, one line says what was not run, and the exit is 0."""
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    program(tmp_path / "apt-get", f"case $1 in update) {update};; esac; exit 100")
    done = run(ROOT / "tests/image_test.sh", env={"PATH": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("NOT RUN: ")
    assert "buildah" in done.stdout
