"""Writes tiny TF Hub modules of every format, for tests that need a real one."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from job.backbones.efficientnet_lite import BATCH_NORM_EPSILON, STAGE_STRIDES, VARIANTS

POOLING_SIZE = 32
POOLING_FEATURES = 12
CONV_SIZE = 16
CONV_FEATURES = 6
# Not all ones, so that an export that loses the variable gives other features.
POOLING_GAIN = np.linspace(0.5, 2.0, POOLING_FEATURES, dtype=np.float32)


def pooled(images: tf.Tensor) -> tf.Tensor:
    """Give the mean of each channel in each quadrant: float32 [n,h,w,3] to float32 [n,12]."""
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    quadrants = tf.reshape(images, [-1, 2, height // 2, 2, width // 2, 3])
    return tf.reshape(tf.reduce_mean(quadrants, axis=[2, 4]), [-1, POOLING_FEATURES])


class Pooling(tf.Module):
    """The pooling features times a variable, callable as TF2 Hub modules are."""

    def __init__(
        self,
        size: int | None = POOLING_SIZE,
        channels: int = 3,
        dtype: tf.DType = tf.float32,
        shape_output: Callable[[tf.Tensor], Any] = lambda features: features,
    ) -> None:
        super().__init__()
        self.gain = tf.Variable(POOLING_GAIN, name="gain")
        self.shape_output = shape_output
        self.spec = tf.TensorSpec([None, size, size, channels], dtype, name="images")
        self.features = tf.function(self._features, input_signature=[self.spec])

    def _features(self, images: tf.Tensor) -> Any:
        images = tf.cast(images, tf.float32)
        return self.shape_output(pooled(images[..., :3]) * self.gain)


class CallablePooling(Pooling):
    """With `__call__`, and without any signature."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.__call__ = self.features


def write_pooling(folder: Path, **options: Any) -> Path:
    """Write the pooling module in TF2 format; `options` are those of `Pooling`."""
    tf.saved_model.save(CallablePooling(**options), str(folder))
    return folder


def write_pooling_signature(folder: Path, name: str = "serving_default", **options: Any) -> Path:
    """Write a TF2 SavedModel whose only way in is the signature `name`."""
    module = Pooling(**{"shape_output": lambda features: {"features": features}, **options})
    signature = module.features.get_concrete_function()
    tf.saved_model.save(module, str(folder), signatures={name: signature})
    return folder


class ConvNorm(tf.Module):
    """A convolution with stride 2 and batch normalisation, which learns statistics in training."""

    def __init__(self, scope: str, inputs: int, outputs: int, trainable: bool) -> None:
        super().__init__()
        random = np.random.default_rng(inputs)
        kernel = random.normal(0, 0.3, (3, 3, inputs, outputs)).astype(np.float32)
        self.kernel = tf.Variable(kernel, trainable=trainable, name=f"{scope}kernel")
        self.scale = tf.Variable(tf.ones(outputs), trainable=trainable, name=f"{scope}scale")
        self.offset = tf.Variable(tf.ones(outputs), trainable=trainable, name=f"{scope}offset")
        self.mean = tf.Variable(tf.fill(outputs, 0.1), trainable=False, name=f"{scope}mean")
        self.variance = tf.Variable(tf.fill(outputs, 0.8), trainable=False, name=f"{scope}variance")

    def __call__(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        """Map float32 [n,h,w,c] to float32 [n,h/2,w/2,c']."""
        x = tf.nn.conv2d(x, self.kernel, 2, "SAME")
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(x, [0, 1, 2]))
        x = (x - self.mean) * tf.math.rsqrt(self.variance + 1e-3) * self.scale + self.offset
        return tf.nn.relu(x)


class Conv(tf.Module):
    """Two layers of `ConvNorm` and a mean over the picture: small, and all of it trainable."""

    def __init__(self, *, scoped: bool = False, trainable: bool = True) -> None:
        super().__init__()
        scopes = ("block1/", "block2/") if scoped else ("", "")
        self.first = ConvNorm(scopes[0], 3, 4, trainable)
        self.second = ConvNorm(scopes[1], 4, CONV_FEATURES, trainable)
        self.layers = [self.first, self.second]

    @tf.function(autograph=False)
    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Map images, float32 [n,16,16,3], to features, float32 [n,6]."""
        x = self.second(self.first(images, training), training)
        return tf.reduce_mean(x, axis=[1, 2])


class ListingConv(Conv):
    """Has lists of its variables, as TF Hub's reusable SavedModels do."""

    variables: Any = ()
    trainable_variables: Any = ()

    def __init__(self, **options: bool) -> None:
        super().__init__(**options)
        self.variables = [v for layer in self.layers for v in layer.variables]
        self.trainable_variables = [v for layer in self.layers for v in layer.trainable_variables]


def write_conv(folder: Path, *, lists: bool = True, **options: bool) -> Path:
    """Write the convolutional module in TF2 format; `options` are those of `Conv`."""
    module = ListingConv(**options) if lists else Conv(**options)
    images = tf.TensorSpec([None, CONV_SIZE, CONV_SIZE, 3], tf.float32, name="images")
    for training in (False, True):
        module.__call__.get_concrete_function(images, training=training)
    tf.saved_model.save(module, str(folder))
    return folder


def write_pooling_tf1(
    folder: Path, size: int | None = POOLING_SIZE, attached: tuple[int, int] | None = None
) -> Path:
    """Write the pooling module in TF1 Hub format; `attached` is its `image_module_info`."""

    def features(images: tf.Tensor) -> tf.Tensor:
        return pooled(images) * tf.compat.v1.get_variable("gain", initializer=POOLING_GAIN)

    return _write_tf1(folder, features, size, attached)


def write_lite0_tf1(folder: Path) -> Path:
    """Write EfficientNet-Lite0 in TF1 Hub format, with TensorFlow's own batch normalisation."""
    weights = VARIANTS["efficientnet-lite0"].weights()

    def variable(name: str, value: Any) -> tf.Tensor:
        return tf.compat.v1.get_variable(name.replace("._", "/").strip("_"), initializer=value)

    def layer(x: tf.Tensor, conv: str, norm: str, stride: int = 1) -> tf.Tensor:
        kernel = weights[f"{conv}.weight"]
        if kernel.shape[1] == 1 and "depthwise" in conv:
            kernel = variable(conv, kernel.transpose(2, 3, 0, 1))
            x = tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], "SAME")
        else:
            x = tf.nn.conv2d(x, variable(conv, kernel.transpose(2, 3, 1, 0)), stride, "SAME")
        names = ("weight", "bias", "running_mean", "running_var")
        statistics = [variable(f"{norm}._{n}", weights[f"{norm}.{n}"]) for n in names]
        return tf.compat.v1.nn.fused_batch_norm(
            x, *statistics, epsilon=BATCH_NORM_EPSILON, is_training=False
        )[0]

    def features(images: tf.Tensor) -> tf.Tensor:
        x = tf.nn.relu6(layer((images * 255 - 127) / 128, "_conv_stem", "_bn0", 2))
        index = 0
        for repeats, stage_stride in zip(
            VARIANTS["efficientnet-lite0"].repeats, STAGE_STRIDES, strict=True
        ):
            for repeat in range(repeats):
                block, stride = f"_blocks.{index}", stage_stride if repeat == 0 else 1
                y = x
                if f"{block}._expand_conv.weight" in weights:
                    y = tf.nn.relu6(layer(y, f"{block}._expand_conv", f"{block}._bn0"))
                y = tf.nn.relu6(layer(y, f"{block}._depthwise_conv", f"{block}._bn1", stride))
                y = layer(y, f"{block}._project_conv", f"{block}._bn2")
                x = x + y if repeat > 0 else y
                index += 1
        return tf.reduce_mean(tf.nn.relu6(layer(x, "_conv_head", "_bn1")), axis=[1, 2])

    return _write_tf1(folder, features, VARIANTS["efficientnet-lite0"].image_size)


def _write_tf1(
    folder: Path,
    features: Callable[[tf.Tensor], tf.Tensor],
    size: int | None,
    attached: tuple[int, int] | None = None,
) -> Path:
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, [None, size, size, 3], "images")
        signature = tf.compat.v1.saved_model.predict_signature_def(
            {"images": images}, {"default": features(images)}
        )
        if attached:
            graph.add_to_collection("hub_module_attachments", _attachment(*attached))
        session.run(tf.compat.v1.global_variables_initializer())
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, [], {"default": signature})
        builder.save()
    # The message ModuleDef of tensorflow_hub: format (1) = FORMAT_V3 (3).
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return folder


def _attachment(height: int, width: int) -> bytes:
    """Encode a ModuleAttachment with an ImageModuleInfo, as tensorflow_hub's protos define them."""
    sizes = b"\x08" + _varint(height) + b"\x10" + _varint(width)
    return _field(1, b"image_module_info") + _field(2, _field(1, sizes))


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2, len(payload)]) + payload


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def pack(folder: Path, archive: Path) -> Path:
    """Pack a module as TF Hub does, its files at the top of the archive."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, ".")
    return archive
