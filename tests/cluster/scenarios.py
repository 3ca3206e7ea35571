"""What is asked of the cluster: each function tells what it saw, or raises Wrong.

The docstring of a scenario is what docs/cluster.md says was asked.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.lab import SAMPLES, Lab, Patch, Running, Wrong, expect, ticks
from tests.cluster.leftovers import NAMESPACE

Scenario = Callable[[Lab], str]
CONTAINER = "/spec/template/spec/containers/0"
# 1.20 has no podFailurePolicy: it is the number of tries that ends what no retry will mend.
ONE_TRY: Patch = {"op": "replace", "path": "/spec/backoffLimit", "value": 0}


def replace(path: str, value: Any) -> Patch:
    """Give a JSON patch that sets a value, there before or not."""
    return {"op": "add", "path": path, "value": value}


def publishes(lab: Lab) -> str:
    """The image reads a bucket and publishes to it; `verify` checks what is there."""
    models = f"gs://{lab.bucket}/models"
    ended = lab.submit(lab.overlay({"REGRAFT_MODELS": models}), "publishes").ended()
    ended.expect(0)
    expect(ended.result["status"] == "published", f"status {ended.result['status']}")
    verified = lab.begin("verify", "--model", f"{models}/clipart", "--log-format", "text").ended()
    verified.expect(0)
    labels, cache = len(ended.result["labels"]), ended.result["cache"]
    return (
        f"exit 0, version {ended.result['version']} of {labels} labels, "
        f"{cache['misses']} images embedded; `verify`: exit 0"
    )


def unchanged(lab: Lab) -> str:
    """The same once more: nothing has changed, so nothing is trained."""
    models = f"gs://{lab.bucket}/models"
    before = lab.stored("models/clipart/*/saved_model.pb")
    ended = lab.submit(lab.overlay({"REGRAFT_MODELS": models}), "unchanged").ended()
    ended.expect(0)
    expect(ended.result["status"] == "unchanged", f"status {ended.result['status']}")
    expect(lab.stored("models/clipart/*/saved_model.pb") == before, "another version is there")
    return "exit 0, `unchanged`, no other version"


def is_killed(lab: Lab) -> str:
    """Two pods are lost while they embed: one gets SIGKILL, the next one is deleted."""
    settings = {"REGRAFT_MODELS": f"gs://{lab.bucket}/killed", "REGRAFT_CHECKPOINT_INTERVAL": "1"}
    job = lab.submit(lab.overlay(settings), "is-killed")
    lab.kill(with_new_shards(lab, job, pods=1))
    lab.delete(with_new_shards(lab, job, pods=2))
    ended = job.ended()
    ended.expect(0)
    expect(ended.result["status"] == "published", f"status {ended.result['status']}")
    versions = lab.stored("killed/clipart/*/saved_model.pb")
    expect(len(versions) == 1, f"{len(versions)} versions")
    cache = ended.result["cache"]
    expect(cache["hits"] > 0, "nothing was found in the cache")
    expect("exit code 137" in ended.said, "not a word of the pod that was killed")
    return (
        f"the third pod published, exit 0: {cache['hits']} embeddings were there, "
        f"{cache['misses']} were not; one version"
    )


def with_new_shards(lab: Lab, job: Running, pods: int) -> dict[str, Any]:
    """Wait until the newest of so many pods has saved embeddings; gives that pod."""
    name, pattern = "is-killed", "killed/.embeddings/*/*.index"

    def is_running() -> dict[str, Any] | None:
        found = lab.pods(name)
        ready = len(found) >= pods and found[-1]["status"]["phase"] == "Running"
        return found[-1] if ready else None

    pod: dict[str, Any] = job.until(f"pod {pods} runs", is_running)
    before = len(lab.stored(pattern))
    job.until(f"pod {pods} has saved embeddings", lambda: len(lab.stored(pattern)) > before)
    return pod


def is_interrupted(lab: Lab) -> str:
    """Ctrl-C at a terminal while the Job runs, and `y` to the question whether to delete it."""
    job = lab.submit(lab.overlay({"REGRAFT_MODELS": f"gs://{lab.bucket}/none"}), "is-interrupted")
    job.until("its pod embeds", lambda: "embed: started" in job.said)
    job.process.send_signal(signal.SIGINT)
    job.until("it asks", lambda: "Delete Job is-interrupted?" in job.said)
    job.type("y\n")
    job.ended().expect(130, "is deleted")
    for _ in ticks():
        if not lab.pods("is-interrupted"):
            return "exit 130; the Job and its pod are gone"
    raise Wrong("the pod is still there")


def runs_out_of_time(lab: Lab) -> str:
    """The Job may take 8 seconds (activeDeadlineSeconds), which are too few."""
    settings = {"REGRAFT_MODELS": f"gs://{lab.bucket}/late"}
    overlay = lab.overlay(settings, replace("/spec/activeDeadlineSeconds", 8))
    ended = lab.submit(overlay, "runs-out-of-time").ended()
    ended.expect(143, "DeadlineExceeded", "deadline was over")
    expect(not lab.stored("late/clipart/*/saved_model.pb"), "published all the same")
    return "exit 143, nothing is published: " + quoted(ended.said, "deadline was over")


def empty_prefix(lab: Lab) -> str:
    """There is not one image under --data."""
    settings = {"REGRAFT_MODELS": f"gs://{lab.bucket}/none"}
    overlay = lab.overlay(settings, ONE_TRY)
    ended = lab.submit(
        overlay, "empty-prefix", "--", "--data", f"gs://{lab.bucket}/nothing"
    ).ended()
    ended.expect(3, "nothing")
    return "exit 3, from the termination message: " + quoted(ended.said, "exit code 3")


def too_few_images(lab: Lab) -> str:
    """A label has one image."""
    labels = sorted(path for path in SAMPLES.iterdir() if path.is_dir())[:2]
    few = {path: Path("few", path.parent.name, path.name) for path in sorted(labels[0].glob("*.*"))}
    lonely = sorted(labels[1].glob("*.*"))[0]
    lab.upload(few | {lonely: Path("few", labels[1].name, lonely.name)})
    settings = {"REGRAFT_MODELS": f"gs://{lab.bucket}/none"}
    overlay = lab.overlay(settings, ONE_TRY)
    ended = lab.submit(overlay, "too-few-images", "--", "--data", f"gs://{lab.bucket}/few").ended()
    ended.expect(3, labels[1].name)
    return "exit 3, from the termination message: " + quoted(ended.said, "exit code 3")


def too_little_memory(lab: Lab) -> str:
    """The container's memory limit is 1 GiB."""
    settings = {"REGRAFT_MODELS": f"gs://{lab.bucket}/none"}
    memory = replace(f"{CONTAINER}/resources", {"limits": {"memory": "1Gi"}})
    ended = lab.submit(lab.overlay(settings, memory, ONE_TRY), "too-little-memory").ended()
    ended.expect(2, "2048 MiB")
    return "exit 2, before the work: " + quoted(ended.said, "exit code 2")


def image_not_on_node(lab: Lab) -> str:
    """The image is not on the node, and the node may not pull (imagePullPolicy: Never)."""
    overlay = lab.overlay({"REGRAFT_MODELS": f"gs://{lab.bucket}/none"})
    ended = lab.submit(overlay, "not-on-node", "--image", "localhost/nothing:1").ended()
    ended.expect(2, "ErrImageNeverPull")
    return "exit 2, at once: " + quoted(ended.said, "ErrImageNeverPull")


def image_cannot_be_pulled(lab: Lab) -> str:
    """The image's registry does not exist."""
    pull = replace(f"{CONTAINER}/imagePullPolicy", "IfNotPresent")
    overlay = lab.overlay({"REGRAFT_MODELS": f"gs://{lab.bucket}/none"}, pull)
    options = ("--image", "127.0.0.1:9/nothing:1", "--start-timeout", "20")
    ended = lab.submit(overlay, "cannot-be-pulled", *options).ended()
    ended.expect(2, "cannot be pulled", "127.0.0.1:9/nothing:1")
    return "exit 2 after --start-timeout: " + quoted(ended.said, "cannot be pulled")


def no_gpu(lab: Lab) -> str:
    """The pod wants an nvidia.com/gpu, which no node has."""
    gpu = replace(f"{CONTAINER}/resources/limits/nvidia.com~1gpu", "1")
    overlay = lab.overlay({"REGRAFT_MODELS": f"gs://{lab.bucket}/none"}, gpu)
    ended = lab.submit(overlay, "no-gpu", "--start-timeout", "10").ended()
    ended.expect(138, "Insufficient nvidia.com/gpu")
    return "exit 138 after --start-timeout: " + quoted(ended.said, "nvidia.com/gpu")


def no_quota(lab: Lab) -> str:
    """The namespace's ResourceQuota is used up."""
    quotas = f"/api/v1/namespaces/{NAMESPACE}/resourcequotas"
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {"requests.memory": "1Gi"}},
    }
    lab.cluster.ask(quotas, "POST", quota)
    overlay = lab.overlay({"REGRAFT_MODELS": f"gs://{lab.bucket}/none"})
    try:
        ended = lab.submit(overlay, "no-quota", "--start-timeout", "10").ended()
    finally:
        lab.cluster.ask(f"{quotas}/small", "DELETE")
    ended.expect(138, "exceeded quota")
    return "exit 138 after --start-timeout: " + quoted(ended.said, "exceeded quota")


def quoted(said: str, word: str) -> str:
    """Give the last line of a log that has a word, as code in a table of Markdown."""
    lines = [line for line in said.splitlines() if word in line and not line.startswith("{")]
    line = lines[-1].strip() if lines else f"no line with {word}"
    return "`" + line.replace("|", "\\|").replace("`", "'")[:400] + "`"


SCENARIOS: tuple[Scenario, ...] = (
    publishes,
    unchanged,
    is_killed,
    is_interrupted,
    runs_out_of_time,
    empty_prefix,
    too_few_images,
    too_little_memory,
    image_not_on_node,
    image_cannot_be_pulled,
    no_gpu,
    no_quota,
)
