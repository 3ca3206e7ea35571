"""The parts of `make cluster-test` that need neither root nor a cluster."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import ROOT

from tests.cluster import lab, leftovers, report


def test_the_overlay_leaves_out_what_its_node_lacks() -> None:
    """Kubernetes 1.20 has no podFailurePolicy, and the node no network for pods and no registry."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run(
        [kubectl, "kustomize", lab.OVERLAY], capture_output=True, text=True, check=True
    )
    (job,) = (item for item in yaml.safe_load_all(done.stdout) if item["kind"] == "Job")
    assert "podFailurePolicy" not in job["spec"]
    pod = job["spec"]["template"]["spec"]
    assert pod["hostNetwork"] is True
    (container,) = pod["containers"]
    assert (container["image"], container["imagePullPolicy"]) == (
        "localhost/regraft:latest",
        "Never",
    )


def test_the_role_is_that_of_the_docs() -> None:
    """What the user of the cluster test may do is what docs/submit.md says."""
    role = lab.documented_role()
    rules = {resource: rule["verbs"] for rule in role["rules"] for resource in rule["resources"]}
    assert "create" in rules["jobs"]
    assert lab.binding(role["metadata"]["name"])["roleRef"]["name"] == role["metadata"]["name"]


def test_the_document_names_no_folder_and_no_machine() -> None:
    """A transcript can be published: where it was made does not show."""
    line = f"{ROOT}/build/x of gs://test-{'0f' * 16}/models on {socket.gethostname()}"
    assert report.anonymous(line) == "build/x of gs://bucket/models on this-machine"


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    """A process that names the run's folder is found and killed, and the folder is gone."""
    run = tmp_path / "run"
    run.mkdir()
    words = "import time; print('up', flush=True); time.sleep(300)"
    stray = subprocess.Popen([sys.executable, "-c", words, run / "socket"], stdout=subprocess.PIPE)
    assert stray.stdout
    assert stray.stdout.readline() == b"up\n"
    assert leftovers.strays(run).keys() == {stray.pid}
    leftovers.remove(run)
    assert stray.wait(10) == -9
    assert not run.exists()
    assert not leftovers.strays(run)


def test_settings_of_the_kernel_are_put_back(tmp_path: Path) -> None:
    """What was noted is written back by the next run, where the one that noted it was killed."""
    changed = tmp_path / "setting"
    changed.write_text("10\n")
    note = tmp_path / "settings.json"
    note.write_text(f'{{"{changed}": "1\\n"}}')
    with leftovers.settings_kept(note):
        assert changed.read_text() == "1\n"
        assert note.exists()
    assert not note.exists()
