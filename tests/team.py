"""Workers that fine-tune one model together: whole jobs as processes, told by $TF_CONFIG."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attempts import Attempt, Inputs
from conftest import ROOT, write_colours
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


def write_trainable(folder: Path, images: int) -> Inputs:
    """Write squares of three colours, so many of each, and a small module to train."""
    data = write_colours(folder / "data", images)
    program = "import pathlib, sys, modules; modules.write_conv(pathlib.Path(sys.argv[1]))"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    subprocess.run(
        [sys.executable, "-c", program, folder / "conv"], check=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": path, "TF_USE_LEGACY_KERAS": "1"},
    )  # fmt: skip
    return Inputs(str(data), folder / "conv")
