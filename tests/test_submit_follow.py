"""What `submit` tells of a Job that it follows, and with which exit code it ends."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from kube_objects import KubeApi, Object
from kube_pods import evict
from submitting import Captured, config_map, leave, overlay, submit

from job.submit.watching import Place

# Enough for what happens at once to have happened.
SOON = ("--start-timeout", "1")


def meanwhile(condition: Callable[[], Any], action: Callable[[Any], object]) -> None:
    """Do something in another thread with what a condition gives, as soon as that is true."""

    def wait() -> None:
        while not (found := condition()):
            time.sleep(0.02)
        action(found)

    threading.Thread(target=wait, daemon=True).start()


def running(kube: KubeApi) -> list[Object]:
    """Give the pods that run."""
    return [pod for pod in kube.list("pods") if pod["status"]["phase"] == "Running"]


def test_the_result_is_the_last_line_of_stdout(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """The log goes to stderr, JSON lines as they are; a result alone is on stdout."""
    result = {"status": "published", "version": 17}
    line = '{"severity":"INFO","message":"embed: started"}'
    done = submit(capsys, overlay(tmp_path, f"echo '{line}'; echo plain; {leave(result)}"))
    assert done.code == 0
    assert json.loads(done.out) == result
    assert line in done.lines
    assert {"severity": "INFO", "message": "plain"} in [json.loads(text) for text in done.lines]
    assert done.told("runs on node-1") == done.told("is complete") == 1


def test_people_get_sentences(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """With --log-format text the messages inside of the JSON lines are shown, and hints."""
    lines = [
        {"severity": "INFO", "message": "embed: started"},
        {"severity": "ERROR", "message": "bucket gone", "hint": "look", "stack_trace": "at a"},
        {"status": "failed"},
    ]
    script = "".join(f"echo '{json.dumps(line)}'; " for line in lines) + "echo '{\"a\": 1}'"
    script += "; printf 'red \\033[31m\\n'"
    done = submit(capsys, overlay(tmp_path, script), "--log-format", "text")
    shown = "\n".join(done.lines)
    assert 'embed: started\nerror: bucket gone\n  hint: look\nat a\n{"a": 1}\n' in shown
    assert "red \\x1b[31m" in done.lines
    assert "failed" not in shown


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 130, 137, 138, 143])
def test_the_exit_code_is_the_containers(
    capsys: Captured, tmp_path: Path, kube: KubeApi, code: int
) -> None:
    """Permanent ones fail the Job at once by its podFailurePolicy, others after its tries."""
    status = "rejected" if code == 4 else "failed"
    error = {"type": "SomeError", "message": "it is so", "hint": "do that"}
    result = {"status": status, "error": error}
    done = submit(capsys, overlay(tmp_path, leave(result, code), backoffLimit=1))
    assert done.code == code, done.err
    assert done.result == result
    assert done.error["hint"] == "do that"
    assert f"exit code {code} (" in done.error["message"]
    assert done.error["message"].endswith(": it is so")
    tries = 1 if code < 127 else 2
    assert len(kube.list("pods")) == done.told("runs on node-1") == tries
    assert done.told("try ") == tries


def test_without_a_result_the_end_of_the_log_says_why(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """A crash leaves no result: the last line of its log is told, and a result is made of it."""
    done = submit(capsys, overlay(tmp_path, "echo Traceback; echo ImportError: no numpy; exit 1"))
    assert done.code == 1
    assert done.error["message"].endswith("exit code 1 (a bug): ImportError: no numpy")
    assert "stack_trace" not in done.error
    assert done.result["status"] == "failed"
    assert done.result["error"]["message"] == done.error["message"]


def test_a_retry_is_told_and_its_success_counts(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """138 once, then done: the exit code is 0 and the log says what came before."""
    first = leave({"status": "failed", "error": {"message": "bucket is out", "hint": ""}}, 138)
    again = leave({"status": "published"})
    script = f"if mkdir {tmp_path}/tried; then echo about to fail; {first}; fi; {again}"
    done = submit(capsys, overlay(tmp_path, script))
    assert (done.code, done.result) == (0, {"status": "published"})
    assert done.told("try 1 (backoffLimit 2): pod") == 1
    assert done.told("exit code 138 (a dependency is out): bucket is out") == 1
    shown = [json.loads(line)["message"] for line in done.lines]
    (at,) = (number for number, words in enumerate(shown) if words.startswith("try 1"))
    assert shown[at - 1] == "about to fail"
    assert shown[-1].endswith("is complete")


def test_the_last_try_decides_or_the_first_that_no_retry_would_mend(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """Of 138 and then 143 it is 143; of 3 and then 138, where no policy ends it at 3, it is 3."""
    script = f"if mkdir {tmp_path}/first; then exit 138; fi; exit 143"
    assert submit(capsys, overlay(tmp_path, script, backoffLimit=1)).code == 143
    script = f"if mkdir {tmp_path}/second; then exit 3; fi; exit 138"
    file = overlay(tmp_path, script, backoffLimit=1, podFailurePolicy={"rules": []})
    assert submit(capsys, file).code == 3


def test_an_eviction_costs_no_try(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """The pod is taken from its node; the next one ends well though no try is left to fail."""
    script = f"if mkdir {tmp_path}/tried; then exec sleep 60; fi; {leave({'status': 'published'})}"
    file = overlay(tmp_path, script, backoffLimit=0)
    meanwhile(lambda: running(kube), lambda pods: evict(kube, pods[0], "node drained"))
    done = submit(capsys, file)
    assert (done.code, done.result) == (0, {"status": "published"})
    assert done.told("is taken from its node: node drained") == 1


def test_out_of_memory_is_told(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """137 alone says nothing; the hint names the limit."""
    kube.out_of_memory = True
    done = submit(capsys, overlay(tmp_path, "kill -9 $$", backoffLimit=0))
    assert done.code == 137
    assert "OOMKilled" in done.error["message"]
    assert "resources.limits.memory" in done.error["hint"]


def test_a_deadline_ends_with_what_the_job_made_of_it(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """The container gets SIGTERM and leaves its result; one that never ran is 138."""
    script = "trap 'echo $RESULT >/dev/termination-log; exit 143' TERM; sleep 60 & wait"
    result = {"name": "RESULT", "value": '{"status": "preempted"}'}
    file = overlay(tmp_path, script, activeDeadlineSeconds=1, container={"env": [result]})
    done = submit(capsys, file)
    assert done.code == 143, done.err
    assert done.told("has failed: DeadlineExceeded") == 1
    assert "the Job's deadline was over" in done.error["message"]
    assert done.result == {"status": "preempted"}
    kube.unschedulable = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    done = submit(capsys, file)
    assert done.code == 138
    assert "Insufficient nvidia.com/gpu" in done.error["message"]


def test_the_role_in_the_docs_is_enough(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """Every request of a Job that is followed, and of one that is deleted, has its rule."""
    others = (config_map(A="b"),)
    assert submit(capsys, overlay(tmp_path, "true", others=others)).code == 0
    kube.image_trouble = ("InvalidImageName", "")
    assert submit(capsys, overlay(tmp_path, others=others)).code == 2
    text = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/submit.md").read_text(), re.DOTALL)[0]
    allowed = {
        (verb, resource)
        for rule in yaml.safe_load(text)["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }
    verbs = {"POST": "create", "DELETE": "delete", "PATCH": "patch"}
    used = set()
    for request in kube.requests:
        method, _, path = request.partition(" ")
        if match := re.search(r"/namespaces/[^/]+/([a-z]+)(/[^/]+)?(/log)?$", path):
            verb = verbs.get(method, "get" if match[2] else "list")
            used.add((verb, match[1] + (match[3] or "")))
    assert used <= allowed
    assert {("get", "pods/log"), ("delete", "jobs"), ("list", "events")} <= used


@pytest.mark.parametrize(
    ("reason", "flags", "words"),
    [
        ("ErrImagePull", SOON, "the image cannot be pulled (ErrImagePull): not found"),
        ("ImagePullBackOff", SOON, "the image cannot be pulled"),
        ("CreateContainerConfigError", SOON, "the container cannot be made"),
        ("InvalidImageName", (), "the image's name is none"),
        ("ErrImageNeverPull", (), "the image is not on the node"),
    ],
)
def test_an_image_that_cannot_run_is_exit_2(
    capsys: Captured, tmp_path: Path, kube: KubeApi, reason: str, flags: tuple[str, ...],
    words: str,
) -> None:  # fmt: skip
    """Told once, and at the end; the Job is deleted, at once where waiting cannot help."""
    kube.image_trouble = (reason, "not found")
    done = submit(capsys, overlay(tmp_path), *flags)
    assert done.code == 2, done.err
    assert words in done.error["message"]
    assert done.told(reason) == 2
    assert done.told("is deleted") == 1
    assert kube.list("jobs") == []


def test_what_a_pod_waits_for_is_138(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """No node, no quota, a queue that has not admitted it: another time it may start."""
    kube.unschedulable = "0/1 nodes are available"
    done = submit(capsys, overlay(tmp_path), *SOON)
    assert (done.code, "no node takes it: 0/1 nodes" in done.error["message"]) == (138, True)
    kube.unschedulable = ""
    kube.quota = 'pods "x" is forbidden: exceeded quota: team, requested: pods=1, used: pods=5'
    done = submit(capsys, overlay(tmp_path), *SOON)
    assert (done.code, "exceeded quota: team" in done.error["message"]) == (138, True)
    done = submit(capsys, overlay(tmp_path, suspend=True), *SOON)
    assert (done.code, "is suspended" in done.error["message"]) == (138, True)
    assert "Kueue" in done.error["hint"]
    assert done.result["error"]["message"] == done.error["message"]
    assert kube.list("jobs") == kube.list("pods") == []


def test_a_pod_that_may_not_be_made_is_exit_2(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """A policy or a missing ServiceAccount stays: the controller's event has the words."""
    kube.quota = 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'
    done = submit(capsys, overlay(tmp_path), *SOON)
    assert (done.code, "violates PodSecurity" in done.error["message"]) == (2, True)


def test_an_init_container_can_be_in_the_way(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """Its image counts as well, and so does one pod of several that cannot start."""
    kube.image_trouble = ("ErrImageNeverPull", "init:1")
    kube.trouble_of = "initContainerStatuses"
    done = submit(capsys, overlay(tmp_path))
    assert (done.code, "init:1" in done.error["message"]) == (2, True)


def test_trouble_that_passes_is_only_told(
    capsys: Captured, tmp_path: Path, kube: KubeApi, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that comes up in time takes the pod."""
    kube.unschedulable = "0/1 nodes are available"
    logger = logging.getLogger("regraft")
    logger.addHandler(caplog.handler)
    meanwhile(lambda: "no node" in caplog.text, lambda _: setattr(kube, "unschedulable", ""))
    done = submit(capsys, overlay(tmp_path, leave({"status": "published"})))
    logger.removeHandler(caplog.handler)
    assert (done.code, done.told("no node takes it")) == (0, 1)


def test_what_no_status_says_the_events_do(
    capsys: Captured, tmp_path: Path, kube: KubeApi, caplog: pytest.LogCaptureFixture
) -> None:
    """A volume that cannot be mounted shows in the pod's events alone; what is over is not told."""
    kube.unschedulable = "0/1 nodes are available"
    logger = logging.getLogger("regraft")
    logger.addHandler(caplog.handler)

    def take_a_node(_: object) -> None:
        kube.image_trouble, kube.unschedulable = ("ContainerCreating", ""), ""
        (pod,) = kube.list("pods")
        about = {"kind": "Pod", "uid": pod["metadata"]["uid"]}
        kube.put("events", {
            "metadata": {"name": "mount", "namespace": "default"}, "type": "Warning",
            "involvedObject": about, "message": "MountVolume.SetUp failed: no secret",
        })  # fmt: skip

    meanwhile(lambda: "no node" in caplog.text, take_a_node)
    done = submit(capsys, overlay(tmp_path), "--start-timeout", "2")
    logger.removeHandler(caplog.handler)
    assert done.code == 138
    assert "has started within 2 s: MountVolume.SetUp failed" in done.error["message"]


def test_a_pod_that_runs_unseen_is_not_deleted(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """Before a Job is deleted for not having started, the API is asked once more."""
    kube.refuse("GET", "/pods$", 500, "InternalError", "etcd", times=2)
    done = submit(capsys, overlay(tmp_path, "sleep 2"), *SOON)
    assert (done.code, done.told("is deleted")) == (0, 0)


def test_a_command_that_is_not_in_the_image_is_exit_2(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """The runtime's own exit code, 128, would read as worth a retry."""
    file = overlay(tmp_path, container={"command": ["/no/such/program"]}, backoffLimit=0)
    done = submit(capsys, file)
    assert (done.code, "cannot start it: exec:" in done.error["message"]) == (2, True)


def test_a_job_that_is_deleted_under_us_is_143(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """Somebody else ended it."""
    file = overlay(tmp_path, "exec sleep 60")
    meanwhile(lambda: running(kube), lambda _: kube.put("jobs", kube.list("jobs")[0], "DELETED"))
    done = submit(capsys, file)
    assert (done.code, "was deleted" in done.error["message"]) == (143, True)


def test_a_job_that_is_gone_as_soon_as_it_is_done_is_done(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """ttlSecondsAfterFinished: 0 deletes Job and pod before anybody can ask for them."""
    script = leave({"status": "published"})
    done = submit(capsys, overlay(tmp_path, script, ttlSecondsAfterFinished=0))
    assert (done.code, done.result) == (0, {"status": "published"})
    assert kube.list("jobs") == []


COUNT = "for i in $(seq 100 123); do echo line-$i; sleep 0.06; done; "


def numbers(lines: list[str]) -> list[str]:
    """Give the counted lines of a log."""
    return [json.loads(line)["message"] for line in lines if "line-1" in line]


@pytest.mark.parametrize("trouble", ["broken", "expired", "down", "errors"])
def test_no_line_is_lost_or_doubled_when_the_api_fails(
    capsys: Captured, tmp_path: Path, kube: KubeApi, trouble: str
) -> None:
    """Streams that break, versions that expire and an API that is away for a while."""

    def seen() -> bool:
        return any(len(lines) > 8 for lines in list(kube.logs.values()))

    def hinder(_: object) -> None:
        if trouble == "expired":
            kube.expire()
        elif trouble == "down":
            kube.down = True
            time.sleep(1)
            kube.down = False
        else:
            if trouble == "errors":
                kube.refuse("GET", "/(log|pods|jobs)$", 500, "InternalError", "etcd", times=4)
            kube.break_streams()

    meanwhile(seen, hinder)
    done = submit(capsys, overlay(tmp_path, COUNT + leave({"status": "published"})))
    assert (done.code, done.result) == (0, {"status": "published"}), done.err
    assert numbers(done.lines) == [f"line-{number}" for number in range(100, 124)]


def test_logs_that_end_early_are_read_on(capsys: Captured, tmp_path: Path, kube: KubeApi) -> None:
    """A kubelet that restarts ends a log as if it were over: it goes on behind the last line."""
    kube.cut_logs = 24  # more than a second has: what comes again does not use them up
    script = "for i in $(seq 100 139); do echo line-$i; sleep 0.05; done"
    done = submit(capsys, overlay(tmp_path, script))
    assert done.code == 0
    assert numbers(done.lines) == [f"line-{number}" for number in range(100, 140)]


def test_words_of_the_kubelet_are_no_log() -> None:
    """Asked for the log of a container that is gone, a kubelet says so where the log should be."""
    place = Place()
    lines = [
        b"2026-01-01T00:00:00.5Z one",
        b"rpc error: code = NotFound",
        b"2026-01-01T00:00:01Z two",
    ]
    assert list(place.new(iter(lines))) == ["one", "two"]
    assert place.stamp == "2026-01-01T00:00:01Z"


def test_the_last_line_of_a_killed_pods_log_is_told_and_is_no_result(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """SIGKILL leaves no result: Kubernetes then hands over the end of the log, lines of JSON."""
    line = '{"severity": "INFO", "message": "embed: started"}'
    done = submit(capsys, overlay(tmp_path, f"echo '{line}'; kill -KILL $$", backoffLimit=0))
    assert (done.code, done.result["status"]) == (137, "failed"), done.err
    assert done.result["error"]["message"].endswith("exit code 137 (killed): embed: started")


def test_an_api_that_stays_away_is_138_and_the_job_goes_on(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """Nothing is deleted: the message says how to look for the Job."""
    meanwhile(lambda: running(kube), lambda _: setattr(kube, "down", True))
    done = submit(capsys, overlay(tmp_path, "exec sleep 60"), "--api-timeout", "1.5")
    assert (done.code, "does not answer" in done.error["message"]) == (138, True)
    assert "kubectl -n default get job train-" in done.error["hint"]
    assert len(running(kube)) == 1


def test_without_the_right_to_logs_and_events_the_end_is_told(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """A role that lacks them costs what they would have said, and nothing else."""
    kube.refuse("GET", "/events$", 403, "Forbidden", "cannot list events")
    kube.refuse("GET", "/log$", 403, "Forbidden", "cannot get pods/log")
    done = submit(capsys, overlay(tmp_path, f"sleep 0.5; {leave({'status': 'published'})}"))
    assert (done.code, done.result) == (0, {"status": "published"})
    assert done.told("cannot list events") == done.told("cannot get pods/log") == 1


def test_the_pods_of_an_indexed_job_are_told_apart(
    capsys: Captured, tmp_path: Path, kube: KubeApi
) -> None:
    """Lines have the index; the pod that made the Job fail gives the exit code, 0 the result."""
    indexed = {"completionMode": "Indexed", "completions": 2, "parallelism": 2}
    script = "echo here is $JOB_COMPLETION_INDEX; "
    script += (
        'echo \'{"status": "embedded", "n": \'$JOB_COMPLETION_INDEX\'}\' >/dev/termination-log'
    )
    done = submit(capsys, overlay(tmp_path, script, **indexed))
    assert (done.code, done.result) == (0, {"status": "embedded", "n": 0})
    shown = [json.loads(line) for line in done.lines if "here is" in line]
    assert sorted((line["pod"], line["message"]) for line in shown) == [
        (0, "here is 0"), (1, "here is 1"),
    ]  # fmt: skip
    script = "test $JOB_COMPLETION_INDEX = 0 && exec sleep 60; sleep 0.3; exit 3"
    done = submit(capsys, overlay(tmp_path, script, **indexed))
    assert done.code == 3
    assert "-1-" in done.error["message"]
    text = overlay(tmp_path, "echo here is $JOB_COMPLETION_INDEX", **indexed)
    done = submit(capsys, text, "--log-format", "text")
    assert {"[0] here is 0", "[1] here is 1"} <= set(done.lines)
