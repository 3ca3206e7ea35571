"""`submit` with the overlays of k8s/ whose Jobs have several pods, and the one with a schedule."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from kube_jobs import INDEX
from kube_objects import KubeApi, Object
from kube_policy import read_indexes, write_indexes
from submitting import POLICY, Captured, Done, leave, overlay, submit
from test_submit_follow import meanwhile

PUBLISHED = {"status": "published", "version": 17}
# The shell scripts share a folder, $here, and wait there for what others do.
WAIT = 'await() { until test -e "$here/$1"; do sleep 0.02; done; }; '
STAND_BY = "trap 'touch $here/stopped-$index; exit 143' TERM; touch $here/$index; sleep 60 & wait"


def in_place_of_the_job(tmp_path: Path, name: str, script: str) -> str:
    """Make an overlay on k8s/overlays/`name` whose containers run a script; gives the folder.

    `$index` is the pod's index and `$tries` counts its pods from 1.
    """
    folder, here = tmp_path / "overlay", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    count = "index=${JOB_COMPLETION_INDEX:-0}; echo >>$here/tries-$index; "
    count += "tries=$(wc -l <$here/tries-$index); "
    command = ["sh", "-c", f"here={here}; {WAIT}{count}{script}"]
    path = "/spec/template/spec/containers/0/command"
    patch = {"op": "add", "path": path, "value": command}
    if name == "nightly":
        patch["path"] = "/spec/jobTemplate" + path
    described = {
        "resources": [os.path.relpath(ROOT / "k8s/overlays" / name, folder.resolve())],
        "patches": [{"target": {"group": "batch"}, "patch": json.dumps([patch])}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(described))
    return str(folder)


def send(capsys: Captured, tmp_path: Path, name: str, script: str) -> Done:
    """Submit such an overlay."""
    return submit(capsys, in_place_of_the_job(tmp_path, name, script), "--image", "local/sh")


def ends(kube: KubeApi) -> list[tuple[str, str]]:
    """Give type and reason of the conditions of the one Job that there is."""
    (job,) = kube.list("jobs")
    return [(found["type"], found["reason"]) for found in job["status"]["conditions"]]


def failures(done: Done) -> list[str]:
    """Give what was told of tries that have failed, without the names of pods."""
    told = [json.loads(line)["message"] for line in done.lines]
    return [words.partition(": pod ")[0] for words in told if words.startswith("try ")]


def phases(kube: KubeApi, *indexes: int) -> list[str]:
    """Give the phases of the pods of some indexes."""
    pods = [
        pod for pod in kube.list("pods") if int(pod["metadata"]["annotations"][INDEX]) in indexes
    ]
    return [pod["status"]["phase"] for pod in pods]


def test_index_0_is_enough_and_the_others_are_stopped(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """Its result is the Job's; that the others end with 143 by then is no failure."""
    first = f"await 1; await 2; await 3; {leave(PUBLISHED)}"
    script = f"if test $index = 0; then {first}; else {STAND_BY}; fi"
    done = send(capsys, tmp_path, "sharded", script)
    assert (done.code, done.result) == (0, PUBLISHED), done.err
    assert ends(kube) == [("SuccessCriteriaMet", "SuccessPolicy"), ("Complete", "SuccessPolicy")]
    stopped = {path.name for path in (tmp_path / "here").glob("stopped-*")}
    assert stopped == {"stopped-1", "stopped-2", "stopped-3"}
    assert done.told("is stopped: the Job is done without it") == 3
    assert failures(done) == []


def test_an_index_uses_up_its_own_tries_alone(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """Index 2 fails with 138 five times, index 0 four times: in all more than one of them may."""
    gone = tmp_path / "here/gone"
    meanwhile(lambda: phases(kube, 2) == ["Failed"] * 5, lambda _: gone.touch())
    done = send(capsys, tmp_path, "sharded", f"""case $index$tries in
        0[1-4]) exit 138;;
        05) await gone; {leave(PUBLISHED)};;
        2*) exit 138;;
        *) {STAND_BY};;
    esac""")  # fmt: skip
    assert (done.code, done.result) == (0, PUBLISHED), done.err
    tries = [f"try {number} of index 0 (backoffLimitPerIndex 4)" for number in range(1, 5)]
    tries += [f"try {number} of index 2 (backoffLimitPerIndex 4)" for number in range(1, 6)]
    assert sorted(failures(done)) == sorted(tries)


def test_an_index_that_is_not_needed_fails_nothing(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """Kubernetes calls the Job failed when index 0 is the last to end: its version is published."""
    over = ["Failed"] * 5 + ["Succeeded"] * 2
    gone = tmp_path / "here/gone"
    meanwhile(lambda: sorted(phases(kube, 1, 2, 3)) == over, lambda _: gone.touch())
    done = send(capsys, tmp_path, "sharded", f"""case $index in
        0) await gone; {leave(PUBLISHED)};;
        2) exit 138;;
    esac""")  # fmt: skip
    assert ends(kube)[-1] == ("Failed", "FailedIndexes")
    assert (done.code, done.result) == (0, PUBLISHED), done.err
    assert done.told("what its successPolicy asks for has succeeded") == 1


def test_the_index_that_has_failed_decides(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """Index 0 has no try left; that a later pod of another index ended with 143 does not count."""
    gone = leave({"status": "failed", "error": {"message": "bucket is out", "hint": "wait"}}, 138)
    done = send(capsys, tmp_path, "sharded", f"""case $index$tries in
        05) touch $here/gone; {gone};;
        0*) exit 138;;
        11) await gone; exit 143;;
        12) exit 143;;
    esac""")  # fmt: skip
    assert done.code == 138, done.err
    assert ends(kube) == [("FailureTarget", "FailedIndexes"), ("Failed", "FailedIndexes")]
    assert done.result["error"]["message"] == "bucket is out"
    assert done.error["hint"] == "wait"


def test_workers_end_when_one_has_failed(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """No index may fail (maxFailedIndexes 0): the other one is stopped, and 138 is the Job's code.

    Each worker finds all of them, and itself, in TF_CONFIG.
    """
    done = send(capsys, tmp_path, "multi-worker", f"""echo "$TF_CONFIG"; case $index$tries in
        01) await last; exit 138;;
        0*) {STAND_BY};;
        15) touch $here/last; await 0; exit 138;;
        1*) exit 138;;
    esac""")  # fmt: skip
    assert done.code == 138, done.err
    assert ends(kube)[-1] == ("Failed", "MaxFailedIndexesExceeded")
    assert (tmp_path / "here/stopped-0").exists()
    assert "-1-" in done.error["message"]
    name = kube.list("jobs")[0]["metadata"]["name"]
    workers = [f"{name}-{index}.regraft-workers:2222" for index in (0, 1)]
    told = [json.loads(line) for line in done.lines if '"cluster"' in line]
    assert {config["pod"] for config in told} == {0, 1}
    for config in told:
        task = {"type": "worker", "index": config["pod"]}
        assert config == {"cluster": {"worker": workers}, "task": task, "pod": config["pod"]}


def test_fail_index_spends_no_other_try(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """An exit code with the action FailIndex is its index's last; the others go on."""
    policy: Object = json.loads(json.dumps(POLICY))
    policy["rules"][1]["action"] = "FailIndex"
    indexed = {"completionMode": "Indexed", "completions": 2, "parallelism": 2}
    script = f"if test $JOB_COMPLETION_INDEX = 1; then exit 3; fi; sleep 0.3; {leave(PUBLISHED)}"
    file = overlay(tmp_path, script, podFailurePolicy=policy, backoffLimitPerIndex=2, **indexed)
    done = submit(capsys, file)
    assert done.code == 3, done.err
    assert failures(done) == ["try 1 of index 1 (backoffLimitPerIndex 2)"]
    (job,) = kube.list("jobs")
    assert (job["status"]["completedIndexes"], job["status"]["failedIndexes"]) == ("0", "1")


def test_the_schedule_is_run_now(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """Of k8s/overlays/nightly a Job is made at once; the schedule itself is not touched."""
    done = send(capsys, tmp_path, "nightly", leave(PUBLISHED))
    assert (done.code, done.result) == (0, PUBLISHED), done.err
    (job,) = kube.list("jobs")
    assert job["metadata"]["name"].startswith("regraft-")
    assert job["metadata"]["labels"]["app.kubernetes.io/name"] == "regraft"
    assert kube.list("cronjobs") == []


@pytest.mark.parametrize("text", ["", "0", "0,1", "1-3", "0,2-4,6,7,9-12"])
def test_indexes_are_written_as_kubernetes_does(text: str) -> None:
    """Three and more in a row are a range."""
    assert write_indexes(read_indexes(text)) == text
