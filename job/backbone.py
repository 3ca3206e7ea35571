"""A handle becomes a `Backbone`: a TF Hub module with its digest and its sizes, as a frozen graph.

Every handle ends in one path: `modules` gives a local folder (a `builtin:` network is built into
one first), `hub.load` loads it, a trial run on two black images shows what comes out, and it is
frozen. The frozen graph is kept, so that a later run loads nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from job import baked, compiled, modules
from job.backbones import efficientnet_lite
from job.compiled import Compiled
from job.errors import ConfigError, RegraftError, brief
from job.graphs import frozen_graph, insert
from job.interface import apply, find_image_size, trial
from job.progress import log
from job.storage import LocalStore, Store

BUILTINS = {f"builtin:{name}": variant for name, variant in efficientnet_lite.VARIANTS.items()}


@dataclass(frozen=True, slots=True)
class Resolved:
    """A handle whose module is known by its content, and not loaded.

    `digest` is a sha256 in hex that is the same wherever and whenever the same module is loaded.
    `folder` has the module; None for a built-in network, which is only built when it is needed.
    """

    handle: str
    digest: str
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Backbone:
    """A pretrained feature extractor.

    `digest` is that of the module. `image_size` is (height, width) in pixels. `graph` is the
    module without variables, a GraphDef for `graphs.insert`, and `function` the same as a
    concrete function: however often a graph calls that, it holds the weights once.
    """

    handle: str
    digest: str
    image_size: tuple[int, int]
    feature_dim: int
    graph: Any
    function: Any

    def embed(self, images: tf.Tensor) -> tf.Tensor:
        """Map images, float32 [n,h,w,3] in [0,1], to embeddings, float32 [n,feature_dim].

        `h` and `w` are those of `image_size`. Works eagerly and inside a `tf.function`.
        """
        return self.function(tf.convert_to_tensor(images))

    def image_spec(self, name: str = "image") -> tf.TensorSpec:
        """Give the spec of the images that `embed` takes."""
        return tf.TensorSpec([None, *self.image_size, 3], tf.float32, name)


def resolve(handle: str, *, cache_dir: Path) -> Resolved:
    """Find the module that `handle` names and digest it.

    A remote one is fetched, unless the image brings it along.

    Args:
        handle: `builtin:NAME`, or a TF Hub image feature vector (TF2 SavedModel or TF1 Hub format)
            as a folder, `file://`, `gs://`, `https://` or a `.tar.gz` of one.
        cache_dir: where fetched and built modules are kept for the next run.

    Raises:
        ConfigError: no such module, or one without a `saved_model.pb`.
        UnavailableError: the network or the storage that the module comes from is out.
    """
    with naming(handle):
        if handle.startswith("builtin:"):
            _variant(handle)
            return Resolved(handle, _builtin_digest(handle), None)
        if brought := baked.find(handle):
            return Resolved(handle, brought.digest, brought.folder)
        folder = modules.fetch_module(handle, cache_dir)
        return Resolved(handle, modules.module_digest(folder), folder)


def load_backbone(
    handle: str | Resolved,
    *,
    cache_dir: Path,
    image_size: int | None = None,
    shelf: Store | None = None,
) -> Backbone:
    """Load the backbone that `handle` names, or that was resolved.

    Args:
        handle: as in `resolve`, or what that gave.
        cache_dir: where fetched and built modules are kept for the next run.
        image_size: height and width in pixels, for a module that takes any.
        shelf: where compiled backbones are kept; in `cache_dir` when it is not given. Those that
            come with the image are looked for first.

    Raises:
        ConfigError: no such module, a damaged one, not one that maps images to float32 vectors,
            or an image size that is missing or contradicts the module's.
        UnavailableError: the network or the storage that the module comes from is out.
    """
    found = resolve(handle, cache_dir=cache_dir) if isinstance(handle, str) else handle
    shelf = shelf or LocalStore(cache_dir / "compiled")
    name = compiled.file_name(found.digest, image_size)
    made = compiled.find(LocalStore(baked.FOLDER / baked.COMPILED), name)
    if made is not None:
        log(f"backbone {found.handle} comes with the image")
        return as_backbone(found, made)
    made = compiled.find(shelf, name)
    if made is None:
        with naming(found.handle):
            made = _compile(found, cache_dir, image_size)
        compiled.keep(shelf, name, made)
    return as_backbone(found, made)


def _compile(resolved: Resolved, cache_dir: Path, image_size: int | None) -> Compiled:
    folder = module_folder(resolved, cache_dir)
    module = modules.load_module(folder)
    size = find_image_size(module, folder, image_size)
    return freeze(module, size, trial(module, size))


def freeze(module: Any, size: tuple[int, int], feature_dim: int) -> Compiled:
    """Make constants of a loaded module's variables, as they are now.

    Raises ConfigError for a module that TensorFlow cannot do that with.
    """

    def embed(images: tf.Tensor) -> tf.Tensor:
        return tf.reshape(apply(module, images), [-1, feature_dim])

    try:
        graph = frozen_graph(embed, tf.TensorSpec([None, *size, 3], tf.float32))
    except Exception as error:  # Whatever TensorFlow cannot make a constant of.
        raise ConfigError(
            f"it cannot be frozen: {brief(error)}",
            hint="use a feature vector whose variables can be made constants",
        ) from error
    return Compiled(size, feature_dim, graph)


def as_backbone(resolved: Resolved, made: Compiled) -> Backbone:
    """Give a compiled module as the backbone that `resolved` names."""

    def embed(images: tf.Tensor) -> tf.Tensor:
        features = insert(made.graph, images, "backbone")
        return tf.ensure_shape(features, [None, made.feature_dim])

    spec = tf.TensorSpec([None, *made.image_size, 3], tf.float32, "images")
    function = tf.function(embed, autograph=False).get_concrete_function(spec)
    return Backbone(
        resolved.handle, resolved.digest, made.image_size, made.feature_dim, made.graph, function
    )


def build_builtin(handle: str, target: Path) -> None:
    """Write the network that a `builtin:` handle names as a TF2 SavedModel into `target`.

    Raises ConfigError for an unknown name, for weights that are missing or not the pinned ones,
    and for a `target` that is there and not empty.
    """
    with naming(handle):
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
def naming(handle: str) -> Iterator[None]:
    """Put the handle in front of what errors say; an OSError becomes a ConfigError."""
    try:
        yield
    except RegraftError as error:
        raise type(error)(f"backbone {handle}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise ConfigError(
            f"backbone {handle}: {error}", hint="check that this user may read all of it"
        ) from error


def module_folder(resolved: Resolved, cache_dir: Path) -> Path:
    """Give the folder of a module; a built-in network is built unless it is there."""
    if resolved.folder is not None:
        return resolved.folder
    brought = baked.find(resolved.handle)
    if brought is not None and brought.digest == resolved.digest:
        return brought.folder

    def build(target: Path) -> None:
        efficientnet_lite.write_module(_variant(resolved.handle), target)
        modules.mark_digest(target, resolved.digest)

    folder = modules.cached(cache_dir / "modules", resolved.digest[:32], build)
    if modules.module_digest(folder) != resolved.digest:
        raise ConfigError(f"{folder} was changed after it was built", hint="remove that folder")
    return folder


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
