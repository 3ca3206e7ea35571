"""What docs/quickstart.md has a reader do works, as far as a machine without a cloud can tell."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import serving_standin
import yaml
from conftest import ROOT
from manifests import environment, kubectl, newest_releases, parsed
from modules import write_pooling
from standin_versions import Folder, Manager
from test_docs import indented, phases, section
from test_k8s_schema import problem

from job.cli import main
from job.serving import wait_available

QUICKSTART = ROOT / "docs" / "quickstart.md"


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
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            wait_available(url, name, newest(base), timeout=60)
            yield server.server_port
        finally:
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
            whole = re.compile(rf"\b{variable}\b")
            assert any(whole.search(text) for text in [*texts, page]), variable
