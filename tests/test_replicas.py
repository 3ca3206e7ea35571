"""Several devices, and several workers, train as one does: to the same losses, and in step."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from attempts import NAME, Attempt, Inputs
from conftest import ROOT
from team import losses_in, team, tf_configs, write_trainable
from tensorflow.core.protobuf import saved_model_pb2

from job.storage import open_store

# On the sample drawings they take some seconds, in which a worker can be lost.
EPOCHS = ("--epochs", "8", "--patience", "8", "--checkpoint-interval", "0.3")


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a job: the losses of its steps, and the SHA-256 of what it has learnt."""

    losses: dict[int, float]
    digest: str
    attempts: list[Attempt]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The sample drawings, and a small convolutional module."""
    return write_trainable(tmp_path_factory.mktemp("inputs"))


def digest_of(models: str) -> str:
    """Give the digest of the features and the head of the only version."""
    store = open_store(f"{models}/{NAME}")
    (name,) = [e.name for e in store.list() if e.name.endswith("/manifest.json")]
    files = json.loads(store.read(name))["files"]
    return str(files["frozen_graph.pb"]["sha256"])


def train(count: int, inputs: Inputs, folder: Path) -> Trained:
    """Run a job of so many workers to its end."""
    models = str(folder / "models")
    options = (*EPOCHS, "--summaries", str(folder / "summaries"))
    with team(count, inputs, models, folder / "rooms", *options) as workers:
        codes = [worker.wait() for worker in workers]
        assert codes == [0] * count, [worker.last_words() for worker in workers]
    losses = losses_in(folder / "summaries").items()
    steps = {step: loss for (side, step), loss in losses if side == "train"}
    return Trained(steps, digest_of(models), workers)


@pytest.fixture(scope="module")
def pair(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A job of two workers that nobody disturbed."""
    return train(2, inputs, tmp_path_factory.mktemp("two"))


def test_two_workers_have_the_losses_of_one(pair: Trained, inputs: Inputs, tmp_path: Path) -> None:
    """Step by step, to the same bytes; only the chief publishes, and no image is embedded twice."""
    one = train(1, inputs, tmp_path)
    assert len(one.losses) > 200
    assert pair.losses.keys() == one.losses.keys()
    worst = max(abs(pair.losses[step] - one.losses[step]) for step in one.losses)
    assert worst < 1e-4
    # Two pieces of eight images a step are added up alike, whoever does it.
    assert pair.digest == one.digest
    results = [worker.result() for worker in pair.attempts]
    assert [result["status"] for result in results] == ["published", "helped"]
    assert sum(result["cache"]["saved"] for result in results) <= results[0]["images"]["total"]


def test_what_two_workers_publish_knows_nothing_of_them(pair: Trained) -> None:
    """No operation is bound to a worker's device, so the graphs run anywhere."""
    (version,) = (pair.attempts[0].room.parent.parent / f"models/{NAME}").glob("[0-9]*")
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    frozen = tf.compat.v1.GraphDef.FromString((version / "frozen_graph.pb").read_bytes())
    graphs = [frozen, *(meta.graph_def for meta in saved.meta_graphs)]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [n for graph in graphs for f in graph.library.function for n in f.node_def]
    assert len(nodes) > 100
    assert {node.device for node in nodes if "worker" in node.device} == set()


@contextmanager
def fitting(inputs: Inputs, folder: Path, number: int) -> Iterator[list[Attempt]]:
    """Start two workers and wait until both are fine-tuning and a state has been kept."""
    models, room = str(folder / "models"), folder / f"rooms{number}"
    with team(2, inputs, models, room, *EPOCHS) as workers:
        for worker in workers:
            worker.wait_for("fit")
        yield workers


def wait_for_state(folder: Path, attempt: Attempt) -> None:
    """Wait until the chief has kept a state of fine-tuning that was not there before."""
    place, before = folder / f"models/{NAME}/.checkpoints", b""
    while attempt.process.poll() is None:
        states = list(place.rglob("finetune"))
        now = states[0].read_bytes() if states else b""
        if before and now != before:
            return
        before = now or before
        attempt.wait(0.05)


def test_a_lost_worker_ends_the_other_and_the_next_job_goes_on(
    pair: Trained, inputs: Inputs, tmp_path: Path
) -> None:
    """Killed, or told to stop, whichever: 138 or 143, and in the end the bytes are the same."""
    with fitting(inputs, tmp_path, 0) as (chief, worker):
        wait_for_state(tmp_path, chief)
        worker.process.send_signal(signal.SIGKILL)
        assert chief.wait() == 138, chief.last_words()
        assert "another worker was lost" in chief.result()["error"]["message"]
        assert "goes on from its last checkpoint" in chief.result()["error"]["hint"]
    with fitting(inputs, tmp_path, 1) as (chief, worker):
        wait_for_state(tmp_path, chief)
        chief.process.send_signal(signal.SIGTERM)
        assert (chief.wait(), worker.wait()) == (143, 138)
        assert chief.result()["status"] == "preempted"
        assert any("goes on after step" in str(line["message"]) for line in worker.log())
    with fitting(inputs, tmp_path, 2) as workers:
        assert [worker.wait() for worker in workers] == [0, 0]
    assert digest_of(str(tmp_path / "models")) == pair.digest


def test_a_worker_that_is_lost_after_the_fit_costs_nothing(inputs: Inputs, tmp_path: Path) -> None:
    """The chief publishes, and the worker that is started again finds nothing to do."""
    models, options = str(tmp_path / "models"), ("--epochs", "1")
    with team(2, inputs, models, tmp_path / "rooms", *options) as (chief, worker):
        chief.wait_for("export")
        worker.kill()
        assert chief.wait() == 0, chief.last_words()
        assert chief.result()["status"] == "published"
    with team(2, inputs, models, tmp_path / "again", *options) as workers:
        assert workers[1].wait() == 0, workers[1].last_words()
        assert workers[1].result()["status"] == "unchanged"


def test_workers_that_do_not_come_are_named(inputs: Inputs, tmp_path: Path) -> None:
    """The wait has an end, exit code 138, with the address that does not answer."""
    config, other = tf_configs(2)
    silent = json.loads(other)["cluster"]["worker"][1]
    options = ("--solver", "finetune", "--backbone", str(inputs.backbone))
    waiting = Attempt(
        inputs, str(tmp_path / "m"), tmp_path / "room", *options, "--workers-timeout", "3",
        tf_config=config,
    )  # fmt: skip
    assert waiting.wait() == 138, waiting.last_words()
    assert f"for worker 1 ({silent})" in waiting.result()["error"]["message"]


def test_the_wait_for_the_others_is_not_deaf(inputs: Inputs, tmp_path: Path) -> None:
    """SIGTERM ends it with 143, though TensorFlow puts its own handler in place of ours."""
    options = ("--solver", "finetune", "--backbone", str(inputs.backbone))
    waiting = Attempt(
        inputs, str(tmp_path / "m"), tmp_path / "room", *options, tf_config=tf_configs(2)[0]
    )
    while b"waits for the others" not in waiting.stderr.read_bytes():
        assert waiting.wait(0.05) is None, waiting.last_words()
    waiting.wait(1)  # TensorFlow's handler is in place by now
    waiting.process.send_signal(signal.SIGTERM)
    assert waiting.wait() == 143


def test_workers_with_other_options_are_told_apart(inputs: Inputs, tmp_path: Path) -> None:
    """Both end with 138 before a step is taken, and nothing is published."""
    options = ("--solver", "finetune", "--backbone", str(inputs.backbone), "--learning-rate")
    workers = [
        Attempt(inputs, str(tmp_path / "m"), tmp_path / rate, *options, rate, tf_config=config)
        for rate, config in zip(("0.01", "0.02"), tf_configs(2), strict=True)
    ]
    assert [worker.wait() for worker in workers] == [138, 138]
    for worker in workers:
        assert "worker 1 found other images or options" in worker.result()["error"]["message"]
    assert not list((tmp_path / f"m/{NAME}").glob("[0-9]*"))


@pytest.mark.parametrize("augment", ["none", "mixup"])
def test_the_devices_of_a_process_share_a_step(augment: str) -> None:
    """Three devices, of which none gets as many images as another, have the losses of one."""
    script = ROOT / "tests/mirrored.py"
    found = []
    for devices in ("1", "3"):
        done = subprocess.run(
            [sys.executable, script, devices, augment], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert [each["devices"] for each in found] == [1, 3]
    assert np.abs(np.subtract(found[0]["losses"], found[1]["losses"])).max() < 1e-5
