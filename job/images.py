"""Bytes of an image file to pixels: the same graph in training and inside the serving signature.

The format is told by content, never by name: JPEG here, the others in `job.formats`. A JPEG may
be grey, RGB, YCbCr, CMYK or YCCK, baseline or progressive; it is turned upright as EXIF says. The
accurate integer DCT is used: as fast as TensorFlow's default, and what other readers show.

An image that is resized anyway is decoded no larger than it need be: libjpeg computes 1/2, 1/4 or
1/8 of the rows and columns, each pixel the average of those it stands for, in a fraction of the
time. What that changes is measured in docs/decoding.md; `exact` leaves it out.

What a file could cost is bounded before it is decoded: its bytes, its pixels (`max_pixels`), the
scans of a JPEG, the frames of a GIF. docs/decoding.md has the limits and what they come to.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from job import exif
from job.formats import (
    MAX_PIXELS,
    NOT_JPEG,
    File,
    Format,
    Pixels,
    Size,
    all_picture,
    as_float,
    max_bytes,
    read_head,
    require,
    require_size,
)

# Bumped whenever the pixels of any file change, so that cached embeddings are not mixed.
PREPROCESSING_VERSION = "2"

_EMPTY = "empty file"
_UNKNOWN = "not a JPEG, PNG, GIF, BMP or WebP image"

# What `formats.require` says, with the parts of the reason in brackets.
_REFUSED = re.compile(r"assertion failed: (\[.*\])")

# A scan goes over all pixels of a progressive JPEG in a dozen bytes. Real files have 1 to 20, and
# so many of MAX_PIXELS take 3 seconds; smaller pictures may have more of them.
MAX_SCANS = 24
# The most that are counted; a file of any size with so many is no photograph.
_MANY_SCANS = 1000

# What libjpeg can divide height and width by while it decodes, and TensorFlow lets it.
_RATIOS = np.array([1, 2, 4, 8])


class UnreadableImage(Exception):
    """These bytes are no image that can be read; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(contents: tf.Tensor, *, max_pixels: int = MAX_PIXELS) -> tf.Tensor:
    """Decode one image file, a scalar string, to float32 [h,w,3] in [0,1], RGB, upright, in full.

    Raises tf.errors.InvalidArgumentError for what is no image, is damaged, truncated or empty,
    claims no pixels or more than `max_pixels`, or would take too long or too much memory.
    """
    with tf.device("CPU:0"):
        pixels = _decode(contents, None, max_pixels)
        image = tf.cond(_is_float(pixels), lambda: pixels.floats, lambda: as_float(pixels.octets))
        return tf.ensure_shape(exif.upright(image, pixels.orientation), [None, None, 3])


def resize(
    image: tf.Tensor, size: Size | tf.Tensor, unfilled: tf.Tensor | tuple[float, float] = (0.0, 0.0)
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


def shrink(contents: bytes, side: int, *, max_pixels: int = MAX_PIXELS) -> tf.Tensor:
    """Decode one image file to float32 [h,w,3] in [0,1] with neither side above `side` pixels.

    It is upright and keeps its proportions. Raises as `decode` does.
    """
    return _small_graph(side, max_pixels)(tf.constant(np.array(contents, object)))


def preprocess(
    contents: tf.Tensor, size: Size, *, exact: bool = False, max_pixels: int = MAX_PIXELS
) -> tf.Tensor:
    """Decode one image file, a scalar string, and resize it to float32 [*size,3] in [0,1].

    A JPEG at least twice as high and as wide as `size` (height, width) is decoded at 1/2, 1/4 or
    1/8, the least that is not below `size`; `exact` decodes all of it. Raises as `decode` does.
    """
    return _graph(tuple(size), exact, max_pixels)(tf.convert_to_tensor(contents))


def preprocess_batch(
    contents: tf.Tensor, size: Size, *, exact: bool = False, max_pixels: int = MAX_PIXELS
) -> tf.Tensor:
    """Decode and resize image files, strings [n], to float32 [n,*size,3] in [0,1]; n may be 0.

    Each as by `preprocess`. Raises as `decode` does if any one of them is unreadable.
    """
    spec = tf.TensorSpec([*size, 3], tf.float32)
    with tf.device("CPU:0"):
        one = _graph(tuple(size), exact, max_pixels)
        return tf.map_fn(one, contents, fn_output_signature=spec)


def loader(
    size: Size, *, exact: bool = False, max_pixels: int = MAX_PIXELS
) -> Callable[[bytes], npt.NDArray[np.float32]]:
    """Compile `preprocess`; the function returned maps a file's bytes to float32 [*size,3].

    It may be called from many threads; the work is done outside Python's lock. Raises
    UnreadableImage where `preprocess` raises InvalidArgumentError.
    """
    graph = _graph(tuple(size), exact, max_pixels)

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
def _graph(size: Size, exact: bool, max_pixels: int) -> Any:
    """Trace the one graph for a size, once a process: it takes longer than decoding 100 images."""

    def one(contents: tf.Tensor) -> tf.Tensor:
        # One device everywhere: a GPU rounds otherwise, and pixels must not depend on the machine.
        with tf.device("CPU:0"):
            pixels = _decode(contents, None if exact else size, max_pixels)
            turn = pixels.orientation
            stored = tf.where(turn >= 5, size[::-1], size)
            image = tf.cond(
                _is_float(pixels),
                lambda: resize(pixels.floats, stored, pixels.unfilled),
                lambda: resize(pixels.octets, stored, pixels.unfilled),
            )
            return tf.ensure_shape(exif.upright(image, turn), [*size, 3])

    return _compiled(one)


@cache
def _small_graph(side: int, max_pixels: int) -> Any:
    """Trace what `shrink` does: a graph frees what it needs no more, and Python only at the end."""

    def one(contents: tf.Tensor) -> tf.Tensor:
        with tf.device("CPU:0"):
            pixels = _decode(contents, (side, side), max_pixels)

            def fitted(image: tf.Tensor) -> tf.Tensor:
                stored = tf.cast(tf.shape(image)[:2], tf.float32) - pixels.unfilled
                scale = tf.minimum(1.0, side / tf.reduce_max(stored))
                size = tf.maximum(1, tf.cast(tf.round(stored * scale), tf.int32))
                return resize(image, size, pixels.unfilled)

            image = tf.cond(
                _is_float(pixels), lambda: fitted(pixels.floats), lambda: fitted(pixels.octets)
            )
            return exif.upright(image, pixels.orientation)

    return _compiled(one)


def _compiled(function: Callable[[tf.Tensor], tf.Tensor]) -> Any:
    # Traced where no graph is being built, so that it belongs to none.
    with tf.init_scope():
        traced = tf.function(function, autograph=False)
        return traced.get_concrete_function(tf.TensorSpec([], tf.string))


def _is_float(pixels: Pixels) -> tf.Tensor:
    return tf.shape(pixels.floats)[0] > 0


def _decode(contents: tf.Tensor, least: Size | None, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Tell the format and decode; a JPEG no larger than it takes to have `least` upright."""
    length, most = tf.strings.length(contents), max_bytes(max_pixels)
    contents = require(contents, length > 0, _EMPTY)
    said = ("a file of ", length, f" bytes, expected at most {most} (--max-pixels {max_pixels})")
    contents = require(contents, length <= most, *said)
    file = read_head(contents, least, max_pixels)
    start = file.bytes_[: _MAGIC.shape[1]]
    matches = tf.reduce_all(tf.equal(start, _MAGIC) | (_MAGIC < 0), axis=1)
    file = replace(file, contents=require(contents, tf.reduce_any(matches), _UNKNOWN))
    pixels: Pixels = tf.switch_case(
        tf.argmax(matches, output_type=tf.int32), [partial(f.decode, file) for f in _FORMATS]
    )
    return pixels


def _jpeg(file: File) -> Pixels:
    size = tf.io.extract_jpeg_shape(file.contents, output_type=tf.int64)[:2]
    contents = _require_few_scans(require_size(file, size[0], size[1]), size[0] * size[1])
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


def _require_few_scans(file: File, pixels: tf.Tensor) -> tf.Tensor:
    """Return a JPEG's contents, or raise InvalidArgumentError if its scans would take too long."""
    # A start of scan, 0xFFDA, has a length below 256. Chance has it once in 16 MB of anything else.
    scan = tf.constant(b"\xff\xda\0")
    pieces = tf.raw_ops.StringSplitV2(
        input=tf.reshape(file.contents, [1]), sep=scan, maxsplit=_MANY_SCANS
    )
    scans = tf.size(pieces.values, tf.int64) - 1
    most = tf.minimum(MAX_SCANS * file.max_pixels // tf.maximum(pixels, 1), _MANY_SCANS - 1)
    said = (scans, " scans of ", pixels, " pixels, expected at most ", most)
    return require(file.contents, scans <= most, *said)


def _reason(contents: bytes, message: str) -> str:
    """Say in a few words why these bytes made TensorFlow raise `message`."""
    if refused := _REFUSED.search(message):
        return "".join(refused[1][1:-1].split("] ["))
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
