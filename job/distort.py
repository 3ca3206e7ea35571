"""Random distortions: views of an image that a head is to take for the same thing.

What they are is what retrain.py's options of these names are (`add_input_distortions` in
TensorFlow's hub examples). With input size S, an image is

1. resized to S * (1 + random_crop/100) * r, r drawn from [1, 1 + random_scale/100], rounded down,
2. cut to a window of S pixels that lies anywhere in it,
3. flipped left to right with probability 1/2,
4. multiplied by a number drawn from [1 - random_brightness/100, 1 + random_brightness/100],

all draws uniform. Two things are done otherwise here. Values are clipped to [0,1] at the end: the
backbone was trained on those, and what is brighter than white is in no image that is ever served.
And an image is decoded once, at the largest size that step 1 may ask for (`padded_size`), so that
fine-tuning can draw again without its file; step 1 only ever makes that smaller, with antialias.

The draws depend on a seed alone, and a view's seed on its file's content and its number: it is the
same under any name, in any order, on any machine, so its embedding can be cached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from job.errors import ConfigError
from job.formats import MAX_PIXELS, Size
from job.images import loader

# Bumped whenever the pixels of any view change, so that cached embeddings are not mixed.
DISTORTION_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Distortion:
    """What is drawn for each view; all but the flip in percent, 0 to 100, 0 being off.

    `random_crop` is the margin that may be cut off, `random_scale` how much larger the image may
    be made, `random_brightness` how far pixels are multiplied up or down. Raises ConfigError for a
    percentage that is none.
    """

    flip_left_right: bool = False
    random_crop: float = 0
    random_scale: float = 0
    random_brightness: float = 0

    def __post_init__(self) -> None:
        for name in ("random_crop", "random_scale", "random_brightness"):
            percent = getattr(self, name)
            if not 0 <= percent <= 100:
                raise ConfigError(
                    f"{name} is {percent:g}, expected 0 to 100",
                    hint="give it in percent of the image's size or brightness",
                )

    @property
    def is_any(self) -> bool:
        """Tell whether a view can differ from the image."""
        return self != Distortion()


def padded_size(size: Size, distortion: Distortion) -> Size:
    """Give the height and width that `distort` wants an image of, for a view of `size` pixels."""
    larger = (100 + distortion.random_crop) * (100 + distortion.random_scale)
    # Divided last, so that whole percentages of whole pixels are not rounded down by accident.
    height, width = (int(side * larger / 100**2) for side in size)
    return height, width


def view_name(distortion: Distortion, view: int) -> str:
    """Give the text that differs where the pixels of a view may: the `view` of `space_name`."""
    drawn = {name: float(value) for name, value in asdict(distortion).items()}  # 10 is 10.0
    return f"view {view} of distortion {DISTORTION_VERSION}: {drawn}"


def distort(image: tf.Tensor, distortion: Distortion, seed: tf.Tensor, size: Size) -> tf.Tensor:
    """Distort an image, float32 [*padded_size(size, distortion),3] in [0,1], to [*size,3] in [0,1].

    `seed`, int32 or int64 [2], decides every draw; what a draw is for does not depend on which
    other distortions are on. Works eagerly and inside a `tf.function`, on the CPU in either case:
    a GPU rounds otherwise, and pixels must not depend on the machine. An image of another size is
    a ValueError while a graph is traced, and tf.errors.InvalidArgumentError else.
    """
    with tf.device("CPU:0"):
        # In float64, so that rounding, which a graph may do otherwise, moves no window.
        drawn = tf.random.stateless_uniform([5], seed, dtype=tf.float64, alg="philox")
        scale, top, left, flip, brightness = tf.unstack(drawn)
        image = tf.ensure_shape(image, [*padded_size(size, distortion), 3])
        image = _window(image, distortion, size, scale, tf.stack([top, left]))
        if distortion.flip_left_right:
            image = tf.cond(flip < 0.5, lambda: image[:, ::-1], lambda: image)
        share = distortion.random_brightness / 100
        factor = tf.cast(1 - share + 2 * share * brightness, tf.float32)
        return tf.clip_by_value(image * factor, 0.0, 1.0)


def distort_batch(
    images: tf.Tensor, distortion: Distortion, seeds: tf.Tensor, size: Size
) -> tf.Tensor:
    """Distort images, float32 [n,H,W,3] in [0,1], with seeds int [n,2], to float32 [n,*size,3].

    H and W are those of `padded_size`; n may be 0. Each as by `distort`.
    """

    def one(pair: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        return distort(pair[0], distortion, pair[1], size)

    with tf.device("CPU:0"):
        spec = tf.TensorSpec([*size, 3], tf.float32)
        return tf.map_fn(one, (images, seeds), fn_output_signature=spec)


def view_loader(
    size: Size, distortion: Distortion, view: int, *, exact: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Callable[[bytes], npt.NDArray[np.float32]]:  # fmt: skip
    """Give the function from a file's bytes to its view number `view`, float32 [*size,3] in [0,1].

    `exact` and `max_pixels` are those of `images.loader`; with a distortion that is none the pixels
    are those of that, to the bit. It may be called from many threads. Raises UnreadableImage for
    the files for which `images.loader` does.
    """
    load = loader(padded_size(size, distortion), exact=exact, max_pixels=max_pixels)
    graph = _graph(size, distortion)

    def load_view(contents: bytes) -> npt.NDArray[np.float32]:
        pixels = load(contents)
        digest = blake2b(contents, digest_size=8).digest()
        seed = np.array([int.from_bytes(digest, "little", signed=True), view])
        distorted: npt.NDArray[np.float32] = graph(tf.constant(pixels), tf.constant(seed)).numpy()
        return distorted

    return load_view


def _window(
    image: tf.Tensor, distortion: Distortion, size: Size, scale: tf.Tensor, corner: tf.Tensor
) -> tf.Tensor:
    """Resize an image and cut it; `scale`, a scalar, and `corner` [2] are draws from [0,1)."""
    most = padded_size(size, distortion)
    least = padded_size(size, replace(distortion, random_scale=0))
    if most == size:
        return image
    margin = np.array(size) * (1 + distortion.random_crop / 100)
    resized = tf.cast(margin * (1 + distortion.random_scale / 100 * scale), tf.int32)
    # Rounding may be a pixel off at the ends. Where nothing is scaled they are one, and the window
    # is then cut out of pixels that stay what they are.
    resized = tf.cast(tf.clip_by_value(resized, least, most), tf.float64)
    offset = tf.floor(corner * (resized - np.array(size) + 1))
    # What `tf.image.resize` would do to all of it, for the window alone.
    return tf.raw_ops.ScaleAndTranslate(
        images=image[tf.newaxis],
        size=size,
        scale=tf.cast(resized / np.array(most), tf.float32),
        translation=tf.cast(-offset, tf.float32),
        kernel_type="triangle",
        antialias=True,
    )[0]


@cache
def _graph(size: Size, distortion: Distortion) -> Any:
    """Trace `distort` once a process, for all views."""

    def one(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return distort(image, distortion, seed, size)

    image = tf.TensorSpec([*padded_size(size, distortion), 3], tf.float32)
    traced = tf.function(one, autograph=False)
    return traced.get_concrete_function(image, tf.TensorSpec([2], tf.int64))
