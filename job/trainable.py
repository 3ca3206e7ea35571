"""A backbone whose weights can be trained: the loaded module, its variables and its layers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from job.backbone import Backbone, Resolved, as_backbone, freeze, module_folder, naming
from job.errors import ConfigError, brief
from job.interface import apply, find_image_size, trial
from job.modules import load_module

HINT = "use a TF2 feature vector saved for fine-tuning, or --solver lbfgs, which needs no gradients"

# What holds variables without being a layer.
CONTAINERS = (list, tuple, dict)


@dataclass(frozen=True, slots=True)
class Trainable:
    """A loaded module and its weights, which live in TensorFlow variables and may be assigned.

    `variables` are all of them, `trainable_variables` those that a gradient reaches, in the order
    that the module lists them in or else the one that it uses them in, from the images to the
    features. `layers` are the latter in groups: consecutive ones with the same scope, which is the
    name without its last component (`block1/conv/kernel:0`: `block1/conv`), or, for names without
    a scope, with the same owner, which is the object inside the module that has them as
    attributes. A variable with neither is a layer alone.
    """

    resolved: Resolved
    module: Any
    image_size: tuple[int, int]
    feature_dim: int
    variables: tuple[Any, ...]
    layers: tuple[tuple[Any, ...], ...]

    @property
    def trainable_variables(self) -> list[Any]:
        """Give the variables of all layers, in order."""
        return [variable for layer in self.layers for variable in layer]

    def last_layers(self, count: int | None) -> list[Any]:
        """Give the trainable variables of the last `count` layers; None: of all.

        More than there are means all, and 0 none.
        """
        chosen = self.layers if count is None else self.layers[max(0, len(self.layers) - count) :]
        return [variable for layer in chosen for variable in layer]

    def features(self, images: tf.Tensor) -> tf.Tensor:
        """Map images, float32 [n,h,w,3] in [0,1], to embeddings, float32 [n,feature_dim].

        Batch normalisation uses its stored statistics, and does not change them. Gradients flow.
        """
        return tf.reshape(apply(self.module, images), [-1, self.feature_dim])

    def digest(self) -> str:
        """Give the SHA-256, in hex, of the bytes of all `variables` in order, as they are now."""
        return _digest(self.variables)

    def frozen(self) -> Backbone:
        """Give a backbone with the weights as they are now, and their `digest`.

        Raises ConfigError for a module whose variables cannot be made constants.
        """
        trained = replace(self.resolved, digest=self.digest())
        with naming(self.resolved.handle):
            return as_backbone(trained, freeze(self.module, self.image_size, self.feature_dim))


def load_trainable(resolved: Resolved, *, cache_dir: Path, image_size: int | None) -> Trainable:
    """Load a module to train it, and try on two images whether gradients reach its weights.

    Args:
        resolved: what `backbone.resolve` gave.
        cache_dir: where built modules are kept for the next run.
        image_size: height and width in pixels, for a module that takes any.

    Raises:
        ConfigError: the module cannot be trained (it is in TF1 Hub format or has only signatures,
            it has no trainable variables, no gradient reaches one, or applying it changes it), or
            not loaded, as `backbone.load_backbone` says.
    """
    with naming(resolved.handle):
        folder = module_folder(resolved, cache_dir)
        module = load_module(folder)
        if not callable(module):
            raise ConfigError(
                "it is in TF1 Hub format or has only signatures, so it cannot be trained", hint=HINT
            )
        size = find_image_size(module, folder, image_size)
        found = Trainable(resolved, module, size, trial(module, size), (), ())
        listed, trainable = _variables(found)
        found = replace(found, variables=listed)
        return replace(found, layers=_layers(module, _reached(found, trainable)))


def _variables(found: Trainable) -> tuple[tuple[Any, ...], list[Any]]:
    """Give all variables of the module, and those it means to be trained.

    TF2's reusable SavedModels list both; of any other, those that its function uses are taken.
    """
    spec = tf.TensorSpec([None, *found.image_size, 3], tf.float32)
    function = tf.function(found.features, autograph=False).get_concrete_function(spec)
    # `function.variables` is in another order in each process; captures are in that of their use.
    by_handle = {id(variable.handle): variable for variable in function.variables}
    used = [by_handle[id(h)] for h in function.captured_inputs if id(h) in by_handle]
    listed = list(getattr(found.module, "variables", ()))
    known = {id(variable) for variable in listed}
    listed += [variable for variable in used if id(variable) not in known]
    if hasattr(found.module, "trainable_variables"):
        return tuple(listed), list(found.module.trainable_variables)
    return tuple(listed), [variable for variable in used if variable.trainable]


def _reached(found: Trainable, trainable: Sequence[Any]) -> list[Any]:
    """Give the variables that a gradient reaches from a trial batch of noise."""
    if not trainable:
        raise ConfigError("it has no trainable variables", hint=HINT)
    noise = np.random.default_rng(0).random((2, *found.image_size, 3), np.float32)
    before = found.digest()
    try:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(trainable)
            total = tf.reduce_sum(found.features(tf.constant(noise)))
        gradients = tape.gradient(total, trainable)
    except (LookupError, tf.errors.OpError) as error:  # an operation without a gradient
        raise ConfigError(f"it cannot be trained: {brief(error)}", hint=HINT) from error
    if found.digest() != before:
        raise ConfigError("it changes its own variables when it is applied", hint=HINT)
    reached = [v for v, gradient in zip(trainable, gradients, strict=True) if gradient is not None]
    if not reached:
        raise ConfigError("no gradient reaches any of its variables", hint=HINT)
    return reached


def _layers(module: Any, variables: Sequence[Any]) -> tuple[tuple[Any, ...], ...]:
    owners = _owners(module)

    def layer(variable: Any) -> object:
        scope = variable.name.rpartition("/")[0]
        return scope or owners.get(id(variable), id(variable))

    return tuple(tuple(group) for _, group in groupby(variables, layer))


def _owners(module: Any) -> dict[int, int]:
    """Map the id of each variable to that of the object that has it as an attribute."""
    view = tf.train.TrackableView(module)
    owners: dict[int, int] = {}
    for parent in view.descendants():
        if parent is not module and not isinstance(parent, CONTAINERS):
            for child in view.children(parent).values():
                if isinstance(child, tf.Variable):
                    owners.setdefault(id(child), id(parent))
    return owners


def _digest(variables: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()
