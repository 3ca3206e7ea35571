"""Workers that fine-tune one model together: whole jobs as processes, told by $TF_CONFIG."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attempts import Attempt, Inputs, write_module
from conftest import ROOT
from gcs_server import free_port

OPTIONS = (
    "--solver", "finetune", "--train-batch-size", "16", "--learning-rate", "0.01", "--l2", "0.01",
    "--backbone-learning-rate", "0.01", "--skip-doctor", "--workers-timeout", "60",
)  # fmt: skip


def tf_configs(count: int) -> list[str]:
    """Give what each of so many workers on this machine is told, with ports that are free now."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(count)]
    return [
        json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
        for index in range(count)
    ]


@contextmanager
def team(
    count: int, inputs: Inputs, models: str, room: Path, *options: str
) -> Iterator[list[Attempt]]:
    """Start a job of so many workers, 0 being the chief; what is left of them is killed."""
    backbone = ["--backbone", str(inputs.backbone), *OPTIONS, *options]
    told = tf_configs(count) if count > 1 else [""]
    workers = [
        Attempt(inputs, models, room / str(index), *backbone, tf_config=config)
        for index, config in enumerate(told)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()


def write_trainable(folder: Path) -> Inputs:
    """Give the sample drawings, and a small module that can be trained, written into a folder."""
    return Inputs(str(ROOT / "samples/clipart"), write_module("conv", folder))


def losses_in(folder: Path) -> dict[tuple[str, int], float]:
    """Give the losses in nats, by side of the split and step, that summaries in a folder have."""
    import tensorflow as tf  # seconds, which those who only start jobs can do without

    found: dict[tuple[str, int], float] = {}
    for path in sorted(folder.rglob("events*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                if value.tag == "loss":
                    found[path.parent.name, event.step] = value.simple_value
    return found
