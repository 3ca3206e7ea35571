"""What of a module can be trained, in which order, and what it is frozen to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from modules import (
    CONV_SIZE,
    write_conv,
    write_pooling,
    write_pooling_signature,
    write_pooling_tf1,
)

from job.backbone import load_backbone, resolve
from job.errors import ConfigError
from job.trainable import Trainable, load_trainable


def load(folder: Path) -> Trainable:
    """Load the module in FOLDER/module."""
    resolved = resolve(str(folder / "module"), cache_dir=folder / "cache")
    return load_trainable(resolved, cache_dir=folder / "cache", image_size=None)


def names(variables: Any) -> list[str]:
    """Give names without the number of the output."""
    return [variable.name.removesuffix(":0") for variable in variables]


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Trainable:
    """The convolutional module, whose names tell nothing."""
    folder = tmp_path_factory.mktemp("conv")
    write_conv(folder / "module")
    return load(folder)


def test_a_layer_is_what_one_object_owns(conv: Trainable) -> None:
    """Where names have no scope; statistics are variables and in no layer."""
    assert [sorted(names(layer)) for layer in conv.layers] == [["kernel", "offset", "scale"]] * 2
    assert [layer[0].shape[-1] for layer in conv.layers] == [4, 6]
    assert len(conv.variables) == 10
    assert len(conv.trainable_variables) == 6


def test_a_layer_is_a_scope_where_names_have_one(tmp_path: Path) -> None:
    """The scope is the name without its last component."""
    write_conv(tmp_path / "module", scoped=True)
    scopes = [{name.split("/")[0] for name in names(layer)} for layer in load(tmp_path).layers]
    assert scopes == [{"block1"}, {"block2"}]


def test_a_module_without_lists_has_the_variables_that_it_uses(tmp_path: Path) -> None:
    """In the order from the images to the features."""
    write_conv(tmp_path / "module", lists=False)
    found = load(tmp_path)
    assert len(found.variables) == 10
    assert [layer[0].shape[-1] for layer in found.layers] == [4, 6]


def test_a_variable_of_the_module_itself_is_a_layer(tmp_path: Path) -> None:
    """The pooling module has one."""
    write_pooling(tmp_path / "module")
    assert [names(layer) for layer in load(tmp_path).layers] == [["gain"]]


@pytest.mark.parametrize(("count", "expected"), [(None, 6), (0, 0), (1, 3), (2, 6), (9, 6)])
def test_the_last_layers_are_counted_from_the_features(
    conv: Trainable, count: int | None, expected: int
) -> None:
    """None is all of them, and so are more than there are."""
    chosen = conv.last_layers(count)
    assert len(chosen) == expected
    assert [id(v) for v in chosen] == [id(v) for v in conv.trainable_variables[6 - expected :]]


def test_the_digest_is_that_of_the_bytes_in_order(conv: Trainable) -> None:
    """Statistics included, so that it names what the module computes."""
    content = b"".join(variable.numpy().tobytes() for variable in conv.variables)
    assert conv.digest() == hashlib.sha256(content).hexdigest()


def test_frozen_is_the_module_as_it_is_now(tmp_path: Path) -> None:
    """Before training it is the backbone that `load_backbone` gives, afterwards another."""
    write_conv(tmp_path / "module")
    found = load(tmp_path)
    images = tf.random.stateless_uniform([3, CONV_SIZE, CONV_SIZE, 3], [1, 2])
    usual = load_backbone(str(tmp_path / "module"), cache_dir=tmp_path / "cache")
    before = found.frozen()
    assert before.embed(images).numpy() == pytest.approx(usual.embed(images).numpy(), abs=1e-6)
    found.layers[0][0].assign_add(tf.ones_like(found.layers[0][0]))
    after = found.frozen()
    assert after.embed(images).numpy() == pytest.approx(found.features(images).numpy(), abs=1e-5)
    assert np.abs(after.embed(images).numpy() - before.embed(images).numpy()).max() > 0.1
    assert (before.image_size, before.feature_dim) == (after.image_size, after.feature_dim)
    assert after.digest == found.digest() != before.digest


class Counting(tf.Module):
    """Counts its calls in one of its variables."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = tf.Variable(tf.ones(3), name="gain")
        self.calls = tf.Variable(0.0, trainable=False, name="calls")

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32)])
    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Give the mean colour."""
        self.calls.assign_add(1.0)
        return tf.reduce_mean(images, axis=[1, 2]) * self.gain


UNTRAINABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "tf1": (write_pooling_tf1, "TF1 Hub format"),
    "signature": (write_pooling_signature, "only signatures"),
    "nothing trainable": (lambda folder: write_conv(folder, trainable=False), "no trainable"),
    "no gradient": (
        lambda folder: write_pooling(folder, shape_output=tf.stop_gradient),
        "no gradient reaches",
    ),
    "stateful": (lambda folder: tf.saved_model.save(Counting(), str(folder)), "its own variables"),
}


@pytest.mark.parametrize("kind", UNTRAINABLE)
def test_a_module_that_cannot_be_trained_is_refused(kind: str, tmp_path: Path) -> None:
    """The error says why, names the module, and points to the solver that needs no gradients."""
    write, reason = UNTRAINABLE[kind]
    write(tmp_path / "module")
    with pytest.raises(ConfigError, match=reason) as caught:
        load(tmp_path)
    assert str(tmp_path / "module") in caught.value.message
    assert "--solver lbfgs" in caught.value.hint
