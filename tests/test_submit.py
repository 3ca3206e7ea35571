"""What `submit` sends to a cluster, and what it refuses to send."""

from __future__ import annotations

import io
import os
import socket
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from kube_objects import KubeApi
from submitting import Captured, Object, config_map, leave, overlay, submit

PLACES = {
    "REGRAFT_DATA": "gs://bucket/images", "REGRAFT_MODELS": "gs://bucket/models",
    "REGRAFT_NAME": "flowers",
}  # fmt: skip
RUN: Object = {
    "image": "registry/regraft:1", "command": None, "args": ["run"],
    "envFrom": [{"configMapRef": {"name": "options"}}],
}  # fmt: skip


def dry(capsys: Captured, *arguments: str) -> list[Object]:
    """Give the objects that would be applied."""
    done = submit(capsys, arguments[0], "--dry-run", *arguments[1:])
    assert done.code == 0, done.err
    return list(yaml.safe_load_all(done.out))


def test_a_dry_run_prints_the_overlay_with_name_image_and_options(capsys: Captured) -> None:
    """k8s/base, built by kustomize, has only these three changed, and no cluster is asked."""
    (before,) = (o for o in dry(capsys, str(ROOT / "k8s/base")) if o["kind"] == "Job")
    options = ("--", "--solver", "sgd", "--steps", "50")
    objects = dry(
        capsys,
        str(ROOT / "k8s/base"),
        "--image",
        "host/other@sha256:0",
        "--job-name",
        "mine",
        *options,
    )
    assert [item["kind"] for item in objects] == ["ServiceAccount", "ConfigMap", "Job"]
    job = objects[-1]
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert job["metadata"].pop("name") == "mine"
    assert before["metadata"].pop("name").startswith("regraft-")
    assert container.pop("image") == "host/other@sha256:0"
    assert container.pop("args") == ["run", "--solver", "sgd", "--steps", "50"]
    expected = before["spec"]["template"]["spec"]["containers"][0]
    assert (expected.pop("image"), expected.pop("args")) == (
        "registry.example.com/regraft:0.1.0-cpu",
        ["run"],
    )
    assert job == before


def test_only_the_jobs_own_container_gets_the_image(capsys: Captured, tmp_path: Path) -> None:
    """A sidecar keeps its image; a pod without the container is refused."""
    file = Path(overlay(tmp_path))
    job = yaml.safe_load(file.read_text())
    containers = job["spec"]["template"]["spec"]["containers"]
    containers.insert(0, {"name": "proxy", "image": "proxy:1"})
    file.write_text(yaml.safe_dump(job))
    (changed,) = dry(capsys, str(file), "--image", "new:2")
    images = [c["image"] for c in changed["spec"]["template"]["spec"]["containers"]]
    assert images == ["proxy:1", "new:2"]
    containers.pop()
    file.write_text(yaml.safe_dump(job))
    done = submit(capsys, str(file), "--dry-run", "--image", "new:2")
    assert done.code == 2
    assert "no container 'regraft', only ['proxy']" in done.err


def test_names_are_short_enough_for_the_hosts_of_pods(capsys: Captured, tmp_path: Path) -> None:
    """A long name is cut before the time; an Indexed Job's leaves room for the highest index."""
    file = Path(overlay(tmp_path, completionMode="Indexed", completions=101, parallelism=2))
    file.write_text(file.read_text().replace("name: train", f"name: {'long-' * 12}"))
    names = {dry(capsys, str(file))[0]["metadata"]["name"] for _ in range(3)}
    assert {len(name) for name in names} <= {58, 59}
    assert all(name.startswith("long-long-") for name in names)
    assert "at most 59" in submit(capsys, str(file), "--job-name", "x" * 60).err
    for wrong in ("Upper", "-dash", "dot.ted", ""):
        assert submit(capsys, str(file), "--dry-run", f"--job-name={wrong}x-").code == 2


def test_a_cronjob_is_run_once(capsys: Captured, tmp_path: Path) -> None:
    """The Job is made from the jobTemplate, and the CronJob itself is not applied."""
    file = Path(overlay(tmp_path, others=(config_map(A="b"),)))
    settings, job = yaml.safe_load_all(file.read_text())
    cron = {
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "nightly", "namespace": "ml"},
        "spec": {"schedule": "0 3 * * *", "jobTemplate": {
            "metadata": {"labels": {"a": "b"}}, "spec": job["spec"]}},
    }  # fmt: skip
    file.write_text(yaml.safe_dump_all([settings, cron]))
    found, made = dry(capsys, str(file))
    assert found == settings
    assert made["metadata"]["name"].startswith("nightly-")
    assert (made["kind"], made["metadata"]["namespace"]) == ("Job", "ml")
    assert made["metadata"]["labels"] == {"a": "b"}
    assert made["spec"] == job["spec"]


def test_stdin_and_lists_are_read(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-` is what a pipe brings, and a List is what it holds; a date stays the text that it is."""
    job = (
        Path(overlay(tmp_path))
        .read_text()
        .replace("name: train", "name: train\n  annotations: {day: 2026-01-01}")
    )
    items = [yaml.safe_load(job)]
    monkeypatch.setattr("sys.stdin", io.StringIO(yaml.safe_dump({"kind": "List", "items": items})))
    assert dry(capsys, "-")[0]["kind"] == "Job"
    monkeypatch.setattr("sys.stdin", io.StringIO(job))
    assert dry(capsys, "-")[0]["metadata"]["annotations"] == {"day": "2026-01-01"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "no YAML"),
        ("just words", "no object of Kubernetes"),
        ("kind: Job", "no object of Kubernetes"),
        (yaml.safe_dump(config_map(A="b")), "has 0 Jobs and CronJobs"),
    ],
)
def test_what_is_no_overlay_is_exit_2(
    capsys: Captured, tmp_path: Path, text: str, words: str
) -> None:
    """The message says what was found in the file."""
    file = tmp_path / "overlay.yaml"
    file.write_text(text)
    done = submit(capsys, str(file))
    assert (done.code, words in done.error["message"]) == (2, True)
    assert done.result["error"]["message"] == done.error["message"]


def test_two_jobs_are_one_too_many(capsys: Captured, tmp_path: Path) -> None:
    """Their names are told."""
    file = Path(overlay(tmp_path))
    file.write_text(file.read_text() + "---\n" + file.read_text())
    assert (
        "has 2 Jobs and CronJobs, expected one: Job train, Job train"
        in submit(capsys, str(file)).err
    )


def test_a_folder_needs_kustomize(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without kubectl and kustomize the hint names the other ways; a file needs neither."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    done = submit(capsys, str(ROOT / "k8s/base"), "--dry-run")
    assert done.code == 2
    assert "neither kubectl nor kustomize" in done.error["message"]
    assert "stdin" in done.error["hint"]
    assert submit(capsys, overlay(tmp_path), "--dry-run").code == 0


def test_kustomizes_own_words_are_told(capsys: Captured, tmp_path: Path) -> None:
    """A folder that cannot be built is exit 2 with what kustomize said."""
    (tmp_path / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    done = submit(capsys, str(tmp_path))
    assert done.code == 2
    assert "nowhere.yaml" in done.error["message"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bach-size", "8"], "--batch-size"),
        (["--steps", "many"], "'many' is not a valid integer"),
        (["--steps", "50"], "--steps means nothing to --solver lbfgs"),
        (["--min-accuracy", "7"], "--min-accuracy is 7.0"),
        (["stray"], "unexpected extra argument (stray)"),
        (["--data="], "--data is empty"),
    ],
)
def test_options_are_checked_before_anything_is_sent(
    capsys: Captured, tmp_path: Path, kube: KubeApi, options: list[str], words: str
) -> None:
    """What `run` would refuse in the pod, the overlay's own options considered, is exit 2 here."""
    file = overlay(tmp_path, container=RUN, others=(config_map(**PLACES),))
    done = submit(capsys, file, "--", *options)
    assert done.code == 2
    assert words in done.error["message"]
    assert kube.requests == []


def test_the_overlays_own_options_are_checked(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ConfigMap that lacks or misspells an option would fail in the pod; ours do not count."""
    monkeypatch.setenv("REGRAFT_NAME", "ours")
    lacking = {k: v for k, v in PLACES.items() if k != "REGRAFT_NAME"}
    for data, words in (
        (lacking, "Missing option '--name'"),
        (PLACES | {"REGRAFT_STEPZ": "1"}, "did you mean REGRAFT_STEPS"),
        (PLACES | {"REGRAFT_SOLVER": "adam"}, "'adam' is not one of"),
        (PLACES | {"REGRAFT_NAME": "9"}, "--name is '9'"),
    ):
        done = submit(capsys, overlay(tmp_path, container=RUN, others=(config_map(**data),)))
        assert (done.code, words in done.error["message"]) == (2, True), done.err
    assert os.environ["REGRAFT_NAME"] == "ours"
    file = overlay(tmp_path, container=RUN, others=(config_map(**lacking),))
    assert dry(capsys, file, "--", "--name", "mine")


def test_what_only_the_cluster_knows_is_not_asked_for(capsys: Captured, tmp_path: Path) -> None:
    """Options from a Secret, other ConfigMaps or mounted files may be right; flags still count."""
    secret = {"name": "REGRAFT_SOLVER", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    for change in (
        {"env": [secret]},
        {"envFrom": [{"secretRef": {"name": "s"}}]},
        {"args": ["run", "--config", "/etc/regraft/job.yaml"]},
        {"args": ["run", "--workers-index=$(JOB_COMPLETION_INDEX)"]},
    ):
        file = overlay(tmp_path, container={**RUN, **change}, others=(config_map(**PLACES),))
        assert dry(capsys, file, "--", "--steps", "50")
    file = overlay(tmp_path, container={**RUN, "env": [secret]})
    assert submit(capsys, file, "--", "--stepz", "50").code == 2


def test_options_need_a_container_that_takes_them(capsys: Captured, tmp_path: Path) -> None:
    """Behind `sh -c` they would be lost."""
    done = submit(capsys, overlay(tmp_path, "true"), "--", "--steps", "50")
    assert done.code == 2
    assert "does not run `run`" in done.error["message"]


def test_no_wait_prints_where_the_job_is(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """One line of JSON, and exit 0; what the Job needs was applied before it, by our manager."""
    kube.put("namespaces", {"metadata": {"name": "ml"}})
    file = overlay(tmp_path, "sleep 60", others=(config_map(A="b"),))
    done = submit(capsys, file, "--no-wait", "--namespace", "ml", "--job-name", "one")
    assert (done.code, done.result) == (0, {"job": "one", "namespace": "ml"})
    writes = [r for r in kube.requests if not r.startswith("GET")]
    assert writes == [
        "PATCH /api/v1/namespaces/ml/configmaps/options", "POST /apis/batch/v1/namespaces/ml/jobs",
    ]  # fmt: skip
    found = kube.get("configmaps", "ml", "options")
    assert found["metadata"]["managedFields"] == [{"manager": "regraft", "operation": "Apply"}]
    assert submit(capsys, file, "--no-wait", "--namespace", "ml", "--job-name", "two").code == 0


def test_a_namespace_that_the_overlay_contradicts_is_exit_2(
    capsys: Captured, tmp_path: Path
) -> None:
    """Half of an overlay in another namespace would help nobody."""
    there = config_map(A="b")
    there["metadata"]["namespace"] = "ml"
    done = submit(capsys, overlay(tmp_path, others=(there,)), "--namespace", "other")
    assert done.code == 2
    assert "ConfigMap options is in the namespace ml" in done.error["message"]


QUOTA = 'jobs.batch "train" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1'


@pytest.mark.parametrize(
    ("rule", "code", "words", "hint"),
    [
        (("GET", "/v1$", 401, "Unauthorized", "Unauthorized"), 2, "Unauthorized", "log in"),
        (("POST", "jobs", 403, "Forbidden", 'User "me" cannot create'), 2, "cannot create", "role"),
        (("POST", "jobs", 403, "Forbidden", QUOTA), 138, "exceeded quota", "ResourceQuota"),
        (("POST", "jobs", 422, "Invalid", "spec.x: Required"), 2, "spec.x: Required", "overlay"),
        (("PATCH", "configmaps", 409, "Conflict", "managed by helm"), 2, "managed", "that tool"),
        (("POST", "jobs", 503, "Unavailable", "etcd"), 138, "etcd", "--api-timeout"),
    ],
)
def test_what_the_cluster_refuses_is_told(
    capsys: Captured, tmp_path: Path, kube: KubeApi, rule: tuple[str, str, int, str, str],
    code: int, words: str, hint: str,
) -> None:  # fmt: skip
    """The server's words, what to do, and 2 for what will stay or 138 for what may pass."""
    kube.refuse(*rule)
    file = overlay(tmp_path, others=(config_map(A="b"),))
    done = submit(capsys, file, "--api-timeout", "1")
    assert (done.code, done.error["exit_code"]) == (code, code), done.err
    assert words in done.error["message"]
    assert hint in done.error["hint"]
    assert done.result["error"]["hint"] == done.error["hint"]
    assert kube.list("jobs") == []


def test_a_misspelt_field_is_exit_2(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """The server would drop it, and the Job would run for ever."""
    done = submit(capsys, overlay(tmp_path, activeDedlineSeconds=60))
    assert done.code == 2
    assert 'unknown field "spec.activeDedlineSeconds"' in done.error["message"]


def test_a_name_that_is_taken_is_exit_2(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """The other Job is left as it is."""
    file = overlay(tmp_path, "sleep 60")
    assert submit(capsys, file, "--no-wait", "--job-name", "one").code == 0
    uid = kube.get("jobs", "default", "one")["metadata"]["uid"]
    done = submit(capsys, file, "--job-name", "one")
    assert (done.code, "already exists" in done.error["message"]) == (2, True)
    assert "--job-name" in done.error["hint"]
    assert kube.get("jobs", "default", "one")["metadata"]["uid"] == uid


def test_fields_of_another_manager_are_not_taken(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """What Helm or Flux manages stays theirs: the conflict is told."""
    theirs = config_map(A="other")
    theirs["metadata"] |= {"namespace": "default", "managedFields": [{"manager": "helm"}]}
    kube.put("configmaps", theirs)
    done = submit(capsys, overlay(tmp_path, others=(config_map(A="b"),)))
    assert (done.code, 'conflict with "helm"' in done.error["message"]) == (2, True)


def test_kinds_and_namespaces_that_are_not_there_are_exit_2(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """A component for a CRD that is not installed, or a namespace nobody has made."""
    queue = {
        "apiVersion": "kueue.x-k8s.io/v1",
        "kind": "LocalQueue",
        "metadata": {"name": "q"},
    }
    done = submit(capsys, overlay(tmp_path, others=(queue,)))
    assert done.code == 2
    assert "does not know kueue.x-k8s.io/v1 LocalQueue" in done.error["message"]
    done = submit(capsys, overlay(tmp_path), "--namespace", "nowhere")
    assert (done.code, 'namespaces "nowhere" not found' in done.error["message"]) == (2, True)
    assert kube.list("jobs") == []


def test_a_cluster_that_is_not_there_is_138_and_no_kubeconfig_is_2(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens: it may tomorrow. Without a kubeconfig no try will find a cluster."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "current-context": "a", "contexts": [{"name": "a", "context": {"cluster": "a"}}],
        "clusters": [{"name": "a", "cluster": {"server": address}}],
    }  # fmt: skip
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    file = overlay(tmp_path)
    flags = ("--api-timeout", "1", "--kubeconfig", str(tmp_path / "config"))
    done = submit(capsys, file, *flags)
    assert (done.code, "does not answer" in done.error["message"]) == (138, True)
    assert submit(capsys, file, *flags, "--context", "b").code == 2
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    done = submit(capsys, file)
    assert (done.code, "--kubeconfig" in done.error["hint"]) == (2, True)


def test_errors_that_pass_are_tried_again(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """429 and 500 at each step delay the Job; one made by a request without an answer is ours."""
    kube.refuse("GET", "/apis/batch/v1$", 429, "TooManyRequests", "slow down", times=1)
    kube.refuse("PATCH", "configmaps", 500, "InternalError", "etcd leader changed", times=1)
    kube.lose_answer = True
    file = overlay(tmp_path, leave({"status": "published"}), others=(config_map(A="b"),))
    done = submit(capsys, file, "--job-name", "one")
    assert (done.code, done.result) == (0, {"status": "published"})
    assert len(kube.list("jobs")) == 1
    assert kube.requests.count("POST /apis/batch/v1/namespaces/default/jobs") == 2
