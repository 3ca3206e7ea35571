"""Bytes of an image file to pixels: the same graph in training and inside the serving signature.

The format is told by content, never by name: JPEG here, the others in `job.formats`. A JPEG may
be grey, RGB, YCbCr, CMYK or YCCK, baseline or progressive; it is turned upright as EXIF says. The
accurate integer DCT is used: as fast as TensorFlow's default, and what other readers show.

An image that is resized anyway is decoded no larger than it need be: libjpeg computes 1/2, 1/4 or
1/8 of the rows and columns, each pixel the average of those it stands for, in a fraction of the
time. What that changes is measured in docs/decoding.md; `exact` leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from job import exif
from job.formats import (
    ANIMATED_WEBP,
    BAD_SIZE,
    NOT_JPEG,
    ODD_BMP,
    File,
    Format,
    Pixels,
    Size,
    all_picture,
    as_float,
    read_head,
    require,
    require_size,
)

# Bumped whenever the pixels of any file change, so that cached embeddings are not mixed.
PREPROCESSING_VERSION = "2"

_EMPTY = "empty file"
_UNKNOWN = "not a JPEG, PNG, GIF, BMP or WebP image"
_REASONS = (_EMPTY, _UNKNOWN, BAD_SIZE, ANIMATED_WEBP, ODD_BMP)

# What libjpeg can divide height and width by while it decodes, and TensorFlow lets it.
_RATIOS = np.array([1, 2, 4, 8])


class UnreadableImage(Exception):
    """These bytes are no image that can be read; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(contents: tf.Tensor) -> tf.Tensor:
    """Decode one image file, a scalar string, to float32 [h,w,3] in [0,1], RGB, upright, in full.

    Raises tf.errors.InvalidArgumentError for what is no image, is damaged, truncated or empty, or
    claims no pixels or more than MAX_PIXELS.
    """
    with tf.device("CPU:0"):
        pixels = _decode(contents, None)
        image = tf.cond(_is_float(pixels), lambda: pixels.floats, lambda: as_float(pixels.octets))
        return tf.ensure_shape(exif.upright(image, pixels.orientation), [None, None, 3])


def resize(
    image: tf.Tensor, size: Size, unfilled: tf.Tensor | tuple[float, float] = (0.0, 0.0)
) -> tf.Tensor:
    """Squash an image [h,w,3], float32 in [0,1] or uint8, to float32 [*size,3] in [0,1].

    `size` is height, width; `unfilled`, float32 [2] in [0,1), the parts of the last row and column
    that are no picture. Bilinear; where it shrinks, the triangle is as wide as the scale
    (antialias), without which fine patterns turn into false ones.
    """
    # What `tf.image.resize` does when `unfilled`, which it does not know, is 0. uint8 goes in as
    # it is: the same pixels from a quarter of the memory, in less time.
    out = tf.raw_ops.ScaleAndTranslate(
        images=image[tf.newaxis],
        size=size,
        scale=tf.cast(size, tf.float32) / (tf.cast(tf.shape(image)[:2], tf.float32) - unfilled),
        translation=[0.0, 0.0],
        kernel_type="triangle",
        antialias=True,
    )[0]
    return tf.clip_by_value(out / 255.0 if image.dtype == tf.uint8 else out, 0.0, 1.0)


def preprocess(contents: tf.Tensor, size: Size, *, exact: bool = False) -> tf.Tensor:
    """Decode one image file, a scalar string, and resize it to float32 [*size,3] in [0,1].

    A JPEG at least twice as high and as wide as `size` (height, width) is decoded at 1/2, 1/4 or
    1/8, the least that is not below `size`; `exact` decodes all of it. Raises as `decode` does.
    """
    return _graph(tuple(size), exact)(tf.convert_to_tensor(contents))


def preprocess_batch(contents: tf.Tensor, size: Size, *, exact: bool = False) -> tf.Tensor:
    """Decode and resize image files, strings [n], to float32 [n,*size,3] in [0,1]; n may be 0.

    Each as by `preprocess`. Raises as `decode` does if any one of them is unreadable.
    """
    spec = tf.TensorSpec([*size, 3], tf.float32)
    with tf.device("CPU:0"):
        return tf.map_fn(_graph(tuple(size), exact), contents, fn_output_signature=spec)


def loader(size: Size, *, exact: bool = False) -> Callable[[bytes], npt.NDArray[np.float32]]:
    """Compile `preprocess`; the function returned maps a file's bytes to float32 [*size,3].

    It may be called from many threads; the work is done outside Python's lock. Raises
    UnreadableImage where `preprocess` raises InvalidArgumentError.
    """
    graph = _graph(tuple(size), exact)

    def load(contents: bytes) -> npt.NDArray[np.float32]:
        try:
            # Given bytes, `tf.constant` takes milliseconds a megabyte, and Python's lock.
            file = tf.constant(np.array(contents, object))
            pixels: npt.NDArray[np.float32] = graph(file).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise UnreadableImage(_reason(contents, error.message)) from error
        return pixels

    return load


@cache
def _graph(size: Size, exact: bool) -> Any:
    """Trace the one graph for a size, once a process: it takes longer than decoding 100 images."""

    def one(contents: tf.Tensor) -> tf.Tensor:
        # One device everywhere: a GPU rounds otherwise, and pixels must not depend on the machine.
        with tf.device("CPU:0"):
            pixels = _decode(contents, None if exact else size)
            turn = pixels.orientation
            stored = tf.where(turn >= 5, size[::-1], size)
            image = tf.cond(
                _is_float(pixels),
                lambda: resize(pixels.floats, stored, pixels.unfilled),
                lambda: resize(pixels.octets, stored, pixels.unfilled),
            )
            return tf.ensure_shape(exif.upright(image, turn), [*size, 3])

    # Traced where no graph is being built, so that it belongs to none.
    with tf.init_scope():
        function = tf.function(one, autograph=False)
        return function.get_concrete_function(tf.TensorSpec([], tf.string))


def _is_float(pixels: Pixels) -> tf.Tensor:
    return tf.shape(pixels.floats)[0] > 0


def _decode(contents: tf.Tensor, least: Size | None) -> Pixels:
    """Tell the format and decode; a JPEG no larger than it takes to have `least` upright."""
    contents = require(contents, tf.strings.length(contents) > 0, _EMPTY)
    file = read_head(contents, least)
    start = file.bytes_[: _MAGIC.shape[1]]
    matches = tf.reduce_all(tf.equal(start, _MAGIC) | (_MAGIC < 0), axis=1)
    file = replace(file, contents=require(contents, tf.reduce_any(matches), _UNKNOWN))
    pixels: Pixels = tf.switch_case(
        tf.argmax(matches, output_type=tf.int32), [partial(f.decode, file) for f in _FORMATS]
    )
    return pixels


def _jpeg(file: File) -> Pixels:
    size = tf.io.extract_jpeg_shape(file.contents, output_type=tf.int64)[:2]
    contents = require_size(file.contents, size[0], size[1])
    turn = exif.orientation(contents)

    def decoded(ratio: int) -> tf.Tensor:
        return tf.io.decode_jpeg(contents, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    if file.least is None:
        return all_picture(decoded(1))._replace(orientation=turn)
    least = tf.cast(tf.where(turn >= 5, file.least[::-1], file.least), tf.int64)
    rank = tf.reduce_sum(tf.cast(tf.reduce_min(size // least) >= _RATIOS[1:], tf.int32))
    image = tf.switch_case(rank, [partial(decoded, ratio) for ratio in _RATIOS.tolist()])
    # libjpeg rounds up: its last row and column may stand for fewer than `ratio` of the file's.
    ratio = tf.gather(_RATIOS, rank)
    unfilled = tf.cast(-size % ratio / ratio, tf.float32)
    return all_picture(image)._replace(unfilled=unfilled, orientation=turn)


def _reason(contents: bytes, message: str) -> str:
    """Say in a few words why these bytes made TensorFlow raise `message`."""
    for reason in _REASONS:
        if reason in message:
            return reason
    names = (f for f in _FORMATS if all(contents[at:].startswith(m) for at, m in f.magic))
    form = next(names)
    return f"{form.name} is {'damaged' if form.whole(contents) else 'truncated'}"


_FORMATS = (
    Format("JPEG", ((0, b"\xff\xd8\xff"),), _jpeg, lambda file: b"\xff\xd9" in file[-64:]),
    *NOT_JPEG,
)
# What each format begins with, int64 [formats,bytes]; -1 is any byte.
_MAGIC = np.full([len(_FORMATS), 12], -1)
for _row, _format in zip(_MAGIC, _FORMATS, strict=True):
    for _at, _bytes in _format.magic:
        _row[_at : _at + len(_bytes)] = list(_bytes)
