"""What a loaded TF Hub module takes and gives, in every format that there is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from job.errors import ConfigError, RegraftError, brief
from job.modules import SAVED_MODEL

# Where a module is not callable: TF1 Hub's name for its features, then TF2's for anything.
SIGNATURES = ("default", "serving_default")


def apply(module: Any, images: tf.Tensor) -> tf.Tensor:
    """Call the module the way it offers; its own output, of any shape."""
    if callable(module):
        takes_training = "training" in inspect.signature(module.__call__).parameters
        output = module(images, training=False) if takes_training else module(images)
    else:
        signature = _signature(module)
        output = signature(**{_only(signature.structured_input_signature[1], "inputs")[0]: images})
    if isinstance(output, Mapping):
        output = output["default"] if "default" in output else _only(output, "outputs")[1]
    return output


def _only(named: Mapping[str, Any], what: str) -> tuple[str, Any]:
    if len(named) != 1:
        raise ConfigError(
            f"it has the {what} {sorted(named)}, expected one",
            hint="use an image feature vector, in TF2 SavedModel or TF1 Hub format",
        )
    return next(iter(named.items()))


def _signature(module: Any) -> Any:
    signatures = getattr(module, "signatures", {})
    for name in SIGNATURES:
        if name in signatures:
            return signatures[name]
    raise ConfigError(
        f"it is not callable and has the signatures {sorted(signatures)}, expected 'default'"
        " or 'serving_default'",
        hint="use an image feature vector, in TF2 SavedModel or TF1 Hub format",
    )


def _input_specs(module: Any) -> list[tf.TensorSpec]:
    """Give the images' specs, one for each way the module was traced."""
    if not callable(module):
        return [_only(_signature(module).structured_input_signature[1], "inputs")[1]]
    traces = getattr(module.__call__, "concrete_functions", [])
    positional = [trace.structured_input_signature[0] for trace in traces]
    return [args[0] for args in positional if args and isinstance(args[0], tf.TensorSpec)]


class AnySize(ConfigError):
    """A module leaves the size of its images open, and so does the configuration."""


def find_image_size(module: Any, folder: Path, requested: int | None) -> tuple[int, int]:
    """Give the (height, width) that a module takes, or of those that it can take the one to use.

    Raises ConfigError when it takes no RGB images or contradicts `requested`, AnySize when both
    leave it open.
    """
    specs = _input_specs(module)
    for spec in specs:
        if spec.dtype != tf.float32 or not spec.shape.is_compatible_with([None, None, None, 3]):
            raise ConfigError(
                f"it takes {spec.dtype.name} {spec.shape}, expected float32 [n, h, w, 3]",
                hint="use a feature vector of RGB images in [0, 1]",
            )
    sizes = {tuple(spec.shape[1:3]) if spec.shape.rank else (None, None) for spec in specs}
    fixed = next(iter(sizes)) if len(sizes) == 1 else (None, None)
    if None not in fixed:
        if requested not in (None, fixed[0]) or requested not in (None, fixed[1]):
            raise ConfigError(
                f"it takes images of {fixed[0]}x{fixed[1]} only, --image-size is {requested}",
                hint="leave --image-size out",
            )
        return fixed[0], fixed[1]
    if requested is not None:
        return requested, requested
    if attached := _attached_size(folder):
        return attached
    raise AnySize("it takes images of any size and names none", hint="pass --image-size, in pixels")


def _attached_size(folder: Path) -> tuple[int, int] | None:
    """Give the default size that a TF1 Hub module carries as its `image_module_info`.

    The module's graph holds ModuleAttachment messages (1: key, 2: value), and this one's value is
    an ImageModuleInfo (1: default_image_size, with 1: height and 2: width), as tensorflow_hub's
    `module_attachment.proto` and `image_module_info.proto` had them until 0.12.
    """
    number = rb"([\x80-\xff]*[\x00-\x7f])"
    message = re.compile(
        rb"\x0a\x11image_module_info\x12.\x0a.\x08%b\x10%b" % (number, number), re.S
    )
    saved = saved_model_pb2.SavedModel.FromString((folder / SAVED_MODEL).read_bytes())
    for graph in saved.meta_graphs:
        for attachment in graph.collection_def["hub_module_attachments"].bytes_list.value:
            if found := message.fullmatch(attachment):
                return _varint(found[1]), _varint(found[2])
    return None


def _varint(data: bytes) -> int:
    return sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(data))


def trial(module: Any, size: tuple[int, int]) -> int:
    """Embed two black images and give the number of features; ConfigError if that goes wrong."""
    height, width = size
    try:
        output = apply(module, tf.zeros([2, height, width, 3]))
    except RegraftError:
        raise
    except Exception as error:  # Whatever the module's own graph or signature objects to.
        raise ConfigError(
            f"it cannot embed float32 [2, {height}, {width}, 3]: {brief(error)}",
            hint="use an image feature vector, and --image-size if it needs a certain one",
        ) from error
    if not isinstance(output, tf.Tensor):
        raise ConfigError(f"it gives {type(output).__name__}, expected float32 [n, d]")
    shape = output.shape.as_list()
    if output.dtype != tf.float32 or shape[:-1] not in ([2], [2, 1, 1]):
        raise ConfigError(
            f"it gives {output.dtype.name} {shape} for 2 images, expected float32 [2, d]",
            hint="use a feature vector, not a feature map or a detector",
        )
    return int(shape[-1])
