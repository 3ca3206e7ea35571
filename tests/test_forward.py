"""The forward pass goes on with smaller batches where memory runs out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from modules import POOLING_SIZE, write_pooling

from job.backbone import Backbone, load_backbone
from job.errors import ConfigError
from job.forward import CPU_BATCH, Forward

# More than the address space of any machine, so asking for it fails and never takes it.
FAR_TOO_MUCH = 2**45


def hungry(folder: Path, most: int) -> Backbone:
    """Load the pooling module, which here runs out of memory above `most` images, or on white."""

    def waste(features: tf.Tensor) -> tf.Tensor:
        count = tf.shape(features, tf.int64)[0]
        white = tf.reduce_max(features) > 1.9  # the module's largest gain is 2
        size = tf.where((count > most) | white, tf.constant(FAR_TOO_MUCH, tf.int64), 1)
        return features + 0.0 * tf.reduce_sum(tf.random.uniform(tf.reshape(size, [1])))

    module = write_pooling(folder / "module", shape_output=waste)
    return load_backbone(str(module), cache_dir=folder / "cache")


def images(count: int) -> list[np.ndarray]:
    """Give noise, float32 in [0,1]."""
    noise = np.random.default_rng(5).random((count, POOLING_SIZE, POOLING_SIZE, 3), np.float32)
    return list(noise)


def test_out_of_memory_halves_the_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A batch that does not fit is embedded in halves of halves, and the log says so."""
    backbone = hungry(tmp_path, most=10)
    forward = Forward(backbone, 32)
    asked = images(29)
    with caplog.at_level("WARNING", logger="regraft"):
        embedded = forward(asked)
    assert forward.batch_size == 8
    wanted = np.concatenate([backbone.embed(image[None]).numpy() for image in asked])
    np.testing.assert_allclose(embedded, wanted, atol=1e-5)
    assert [record.fields["batch_size"] for record in caplog.records] == [16, 8]


def test_one_image_that_does_not_fit_ends_the_job(tmp_path: Path) -> None:
    """Where not even one image fits, the job ends instead of trying for ever."""
    forward = Forward(hungry(tmp_path, most=8), 2)  # each try waits 10 s for memory
    white = np.ones((POOLING_SIZE, POOLING_SIZE, 3), np.float32)
    with pytest.raises(ConfigError, match="does not fit"):
        forward([white] * 5)
    assert forward.batch_size == 1


def test_growing_stops_where_memory_does(tmp_path: Path) -> None:
    """A batch chosen by trying fits, and is usable."""
    forward = Forward(hungry(tmp_path, most=70))
    assert forward.batch_size == CPU_BATCH
    forward.grow()
    assert forward.batch_size in (32, 64)
    assert forward(images(5)).shape[0] == 5
