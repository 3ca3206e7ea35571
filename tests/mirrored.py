"""Fine-tunes on so many devices of one process and prints the losses of its steps as JSON.

    python tests/mirrored.py DEVICES AUGMENT

The devices are parts of the CPU that TensorFlow takes for several, as GPUs of a node would be.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]


def main() -> None:
    """Fine-tune, and print."""
    import tensorflow as tf

    devices, augment = int(sys.argv[1]), sys.argv[2]
    parts = [tf.config.LogicalDeviceConfiguration()] * devices
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    from modules import write_conv
    from test_finetune import DATA, OPTIONS, START

    from job.backbone import resolve
    from job.finetune import finetune
    from job.replicas import SOLO, Replicas
    from job.trainable import load_trainable

    folder = Path(tempfile.mkdtemp())
    found = resolve(str(write_conv(folder / "module")), cache_dir=folder)
    trainable = load_trainable(found, cache_dir=folder, image_size=None)
    names = [f"CPU:{number}" for number in range(devices)]
    replicas = Replicas(tf.distribute.MirroredStrategy(names)) if devices > 1 else SOLO
    losses: list[float] = []
    finetune(
        trainable, START, DATA, replace(OPTIONS, augment=augment),
        observe=lambda side, step, **values: losses.append(values["loss"]), replicas=replicas,
    )  # fmt: skip
    sys.stdout.write(json.dumps({"devices": replicas.local, "losses": losses}) + "\n")


if __name__ == "__main__":
    main()
