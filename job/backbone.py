"""A handle becomes a `Backbone`: a loaded TF Hub module with its digest and its sizes.

Every handle ends in one path: `modules` gives a local folder (a `builtin:` network is built into
one first), `hub.load` loads it, and a trial run on two black images shows what comes out.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from job import modules
from job.backbones import efficientnet_lite
from job.errors import ConfigError, RegraftError, brief

BUILTINS = {f"builtin:{name}": variant for name, variant in efficientnet_lite.VARIANTS.items()}

# Where a module is not callable: TF1 Hub's name for its features, then TF2's for anything.
SIGNATURES = ("default", "serving_default")


@dataclass(frozen=True, slots=True)
class Backbone:
    """A pretrained feature extractor.

    `digest` is a sha256 in hex that is the same wherever and whenever the same module is loaded.
    `image_size` is (height, width) in pixels. `module` is the loaded trackable: an export keeps it
    as an attribute of its `tf.Module`, so that the variables are saved with it.
    """

    handle: str
    digest: str
    image_size: tuple[int, int]
    feature_dim: int
    module: Any

    def embed(self, images: tf.Tensor) -> tf.Tensor:
        """Map images, float32 [n,h,w,3] in [0,1], to embeddings, float32 [n,feature_dim].

        `h` and `w` are those of `image_size`. Works eagerly and inside a `tf.function`.
        """
        return tf.reshape(_apply(self.module, images), [-1, self.feature_dim])


def load_backbone(handle: str, *, cache_dir: Path, image_size: int | None = None) -> Backbone:
    """Load the backbone that `handle` names.

    Args:
        handle: `builtin:NAME`, or a TF Hub image feature vector (TF2 SavedModel or TF1 Hub format)
            as a folder, `file://`, `gs://`, `https://` or a `.tar.gz` of one.
        cache_dir: where fetched and built modules are kept for the next run.
        image_size: height and width in pixels, for a module that takes any.

    Raises:
        ConfigError: no such module, a damaged one, not one that maps images to float32 vectors,
            or an image size that is missing or contradicts the module's.
        UnavailableError: the network or the storage that the module comes from is out.
    """
    with _naming(handle):
        folder = _folder(handle, cache_dir)
        module = modules.load_module(folder)
        size = _image_size(module, folder, image_size)
        feature_dim = _trial(module, size)
        return Backbone(handle, modules.module_digest(folder), size, feature_dim, module)


def build_builtin(handle: str, target: Path) -> None:
    """Write the network that a `builtin:` handle names as a TF2 SavedModel into `target`.

    Raises ConfigError for an unknown name, for weights that are missing or not the pinned ones,
    and for a `target` that is there and not empty.
    """
    with _naming(handle):
        variant = _variant(handle)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as partial:
                made = Path(partial, "module")
                efficientnet_lite.write_module(variant, made)
                modules.mark_digest(made, _builtin_digest(handle))
                made.rename(target)
        except OSError as error:
            raise ConfigError(
                f"cannot write {target}: {error.strerror or error}",
                hint="name a folder that is not there yet, where this user may write",
            ) from error


@contextlib.contextmanager
def _naming(handle: str) -> Iterator[None]:
    try:
        yield
    except RegraftError as error:
        raise type(error)(f"backbone {handle}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise ConfigError(
            f"backbone {handle}: {error}", hint="check that this user may read all of it"
        ) from error


def _folder(handle: str, cache_dir: Path) -> Path:
    if not handle.startswith("builtin:"):
        return modules.fetch_module(handle, cache_dir)
    variant = _variant(handle)
    digest = _builtin_digest(handle)

    def build(target: Path) -> None:
        efficientnet_lite.write_module(variant, target)
        modules.mark_digest(target, digest)

    return modules.cached(cache_dir / "modules", digest[:32], build)


def _variant(handle: str) -> efficientnet_lite.Variant:
    try:
        return BUILTINS[handle]
    except KeyError:
        raise ConfigError(
            "no such network is built in", hint=f"use {', '.join(BUILTINS)}"
        ) from None


def _builtin_digest(handle: str) -> str:
    parts = (handle, BUILTINS[handle].sha256, efficientnet_lite.BUILDER_VERSION)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _apply(module: Any, images: tf.Tensor) -> tf.Tensor:
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


def _image_size(module: Any, folder: Path, requested: int | None) -> tuple[int, int]:
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
    raise ConfigError(
        "it takes images of any size and names none", hint="pass --image-size, in pixels"
    )


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
    saved = saved_model_pb2.SavedModel.FromString((folder / modules.SAVED_MODEL).read_bytes())
    for graph in saved.meta_graphs:
        for attachment in graph.collection_def["hub_module_attachments"].bytes_list.value:
            if found := message.fullmatch(attachment):
                return _varint(found[1]), _varint(found[2])
    return None


def _varint(data: bytes) -> int:
    return sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(data))


def _trial(module: Any, size: tuple[int, int]) -> int:
    """Embed two black images and give the number of features; ConfigError if that goes wrong."""
    height, width = size
    try:
        output = _apply(module, tf.zeros([2, height, width, 3]))
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
