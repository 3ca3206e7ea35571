"""Bytes of an image file to pixels: the same graph in training and inside the serving signature.

The format is told by content, never by name. What each format gives:

JPEG  grey, RGB, YCbCr, CMYK and YCCK, baseline or progressive; turned upright as EXIF says. The
      accurate integer DCT is used: as fast as TensorFlow's default, and what other readers show.
PNG   every colour type and depth, interlaced or not; 16 bits are kept until they are floats;
      transparent pixels are laid on white.
GIF   the first frame; TensorFlow shows transparent pixels, and canvas outside the frame, black.
BMP   8-bit with its palette, 24-bit, and 32-bit without its fourth byte; uncompressed. TensorFlow
      reads neither 1-, 4- nor 16-bit files, nor files with bytes after the last row.
WebP  lossy and lossless, on white; not animated: TensorFlow 2.21 corrupts its heap on those.

EXIF in PNG and WebP, and colour profiles everywhere, are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from job import exif

# Bumped whenever the pixels of any file change, so that cached embeddings are not mixed.
PREPROCESSING_VERSION = "1"

# 64 Mi pixels, above what cameras take; a header of a few bytes may claim a thousand times that.
MAX_PIXELS = 2**26

_EMPTY = "empty file"
_UNKNOWN = "not a JPEG, PNG, GIF, BMP or WebP image"
_BAD_SIZE = f"the header claims no pixels, or more than {MAX_PIXELS}"
_ANIMATED_WEBP = "animated WebP, which TensorFlow cannot read"
_ODD_BMP = "BMP that is not uncompressed 8-bit, 24-bit or 32-bit"
_REASONS = (_EMPTY, _UNKNOWN, _BAD_SIZE, _ANIMATED_WEBP, _ODD_BMP)

# Enough bytes for every header field read below.
_HEAD = 66

_Finish = Callable[[tf.Tensor], tf.Tensor]


class UnreadableImage(Exception):
    """These bytes are no image that can be read; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(contents: tf.Tensor) -> tf.Tensor:
    """Decode one image file, a scalar string, to float32 [h,w,3] in [0,1], RGB, upright.

    Raises tf.errors.InvalidArgumentError for what is no image, is damaged, truncated or empty, or
    claims no pixels or more than MAX_PIXELS.
    """
    return tf.ensure_shape(_decode(contents, _as_float), [None, None, 3])


def resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Squash an image [h,w,3], float32 in [0,1] or uint8, to float32 [*size,3] in [0,1].

    `size` is height, width. Bilinear; where it shrinks, the triangle is as wide as the scale
    (antialias), without which fine patterns turn into false ones.
    """
    # uint8 goes in as it is: the same pixels from a quarter of the memory, in less time.
    out = tf.image.resize(image, size, antialias=True)
    return tf.clip_by_value(out / 255.0 if image.dtype == tf.uint8 else out, 0.0, 1.0)


def preprocess(contents: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Decode one image file, a scalar string, and resize it to float32 [*size,3] in [0,1].

    Raises as `decode` does.
    """
    return tf.ensure_shape(_decode(contents, lambda image: resize(image, size)), [*size, 3])


def preprocess_batch(contents: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Decode and resize image files, strings [n], to float32 [n,*size,3] in [0,1]; n may be 0.

    Raises as `decode` does if any one of them is unreadable.
    """
    spec = tf.TensorSpec([*size, 3], tf.float32)
    with tf.device("CPU:0"):
        return tf.map_fn(lambda one: preprocess(one, size), contents, fn_output_signature=spec)


def loader(size: tuple[int, int]) -> Callable[[bytes], npt.NDArray[np.float32]]:
    """Compile `preprocess` once; the function returned maps a file's bytes to float32 [*size,3].

    It may be called from many threads; the work is done outside Python's lock. Raises
    UnreadableImage where `preprocess` raises InvalidArgumentError.
    """
    graph = tf.function(lambda contents: preprocess(contents, size), autograph=False)
    compiled = graph.get_concrete_function(tf.TensorSpec([], tf.string))

    def load(contents: bytes) -> npt.NDArray[np.float32]:
        try:
            pixels: npt.NDArray[np.float32] = compiled(tf.constant(contents)).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise UnreadableImage(_reason(contents, error.message)) from error
        return pixels

    return load


def _decode(contents: tf.Tensor, finish: _Finish) -> tf.Tensor:
    """Tell the format, decode, and return what `finish` makes of the pixels [h,w,3].

    `finish` is part of every branch because they differ in dtype: uint8, or float32 in [0,1].
    """
    # One device everywhere: a GPU rounds otherwise, and pixels must not depend on the machine.
    with tf.device("CPU:0"):
        contents = _require(contents, tf.strings.length(contents) > 0, _EMPTY)
        # Zeros behind it let the header be read without asking how much of it is there.
        start = tf.strings.join([tf.strings.substr(contents, 0, _HEAD), b"\0" * _HEAD])
        head = tf.cast(tf.io.decode_raw(start, tf.uint8), tf.int64)

        def unknown() -> tf.Tensor:
            nothing = _require(contents, tf.constant(False), _UNKNOWN)
            return finish(tf.io.decode_jpeg(nothing, channels=3))

        matches = [
            tf.reduce_all([tf.equal(tf.strings.substr(start, at, len(m)), m) for at, m in f.magic])
            for f in _FORMATS
        ]
        # The first that matches; `unknown`, behind them all, always does.
        kind = tf.argmax(tf.stack([*matches, True]), output_type=tf.int32)
        branches = [partial(f.decode, contents, head, finish) for f in _FORMATS]
        return tf.switch_case(kind, [*branches, unknown])


def _jpeg(contents: tf.Tensor, head: tf.Tensor, finish: _Finish) -> tf.Tensor:
    del head
    shape = tf.io.extract_jpeg_shape(contents, output_type=tf.int64)
    contents = _require_size(contents, shape[0], shape[1])
    image = tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")
    return finish(exif.upright(image, exif.orientation(contents)))


def _png(contents: tf.Tensor, head: tf.Tensor, finish: _Finish) -> tf.Tensor:
    width, height = (_little(tf.reverse(head[at : at + 4], [0]), 0, 4) for at in (16, 20))
    contents = _require_size(contents, height, width)
    # Four channels bring out transparency given as a palette or a key colour as well. Where there
    # is none TensorFlow fills the fourth with 2**depth - 1, also below 8 bits.
    depth = head[24]
    full = 2 ** tf.minimum(depth, 16) - 1

    def decoded(dtype: tf.DType) -> tf.Tensor:
        return tf.io.decode_png(contents, channels=4, dtype=dtype)

    return tf.cond(
        depth > 8,
        lambda: _on_white(decoded(tf.uint16), full, finish),
        lambda: _on_white(decoded(tf.uint8), full, finish),
    )


def _gif(contents: tf.Tensor, head: tf.Tensor, finish: _Finish) -> tf.Tensor:
    contents = _require_size(contents, _little(head, 8, 2), _little(head, 6, 2))
    image = tf.io.decode_image(contents, channels=3, expand_animations=False)
    return finish(tf.ensure_shape(image, [None, None, 3]))


def _bmp(contents: tf.Tensor, head: tf.Tensor, finish: _Finish) -> tf.Tensor:
    pixels_at, header = _little(head, 10, 4), _little(head, 14, 4)
    width, height = _little(head, 18, 4), _little(head, 22, 4)
    # A height above 2**31 is a negative one: the rows go from top to bottom.
    contents = _require_size(contents, tf.minimum(height, 2**32 - height), width)
    bits, compression = _little(head, 28, 2), _little(head, 30, 4)
    # Compression 3 says which bits are which colour; TensorFlow takes them to be these.
    usual = tf.reduce_all(tf.equal(head[54:66], [0, 0, 255, 0, 0, 255, 0, 0, 255, 0, 0, 0]))
    plain = tf.equal(compression, 0) | (tf.equal(compression, 3) & tf.equal(bits, 32) & usual)
    depth = tf.reduce_any(tf.equal(bits, [8, 24, 32]))
    fits = (header >= 40) & (14 + header <= pixels_at)
    contents = _require(contents, fits & depth & plain, _ODD_BMP)
    image = tf.io.decode_bmp(contents, channels=3)

    def coloured() -> tf.Tensor:
        # TensorFlow shows the index as a shade of grey; the palette is blue, green, red, 0. What
        # it lacks of 256 colours is black. An error here would race with those of the decoder.
        at = tf.minimum(14 + header, tf.cast(tf.strings.length(contents), tf.int64))
        palette = tf.strings.substr(contents, at, tf.clip_by_value(pixels_at - at, 0, 1024))
        palette = tf.strings.substr(tf.strings.join([palette, b"\0" * 1024]), 0, 1024)
        colours = tf.reshape(tf.io.decode_raw(palette, tf.uint8), [256, 4])[:, 2::-1]
        return tf.gather(colours, tf.cast(image[:, :, 0], tf.int32))

    return finish(tf.cond(tf.equal(bits, 8), coloured, lambda: image))


def _webp(contents: tf.Tensor, head: tf.Tensor, finish: _Finish) -> tf.Tensor:
    # The first chunk has the size: lossy `VP8 `, lossless `VP8L` or extended `VP8X` (RFC 9649).
    lossless, extended = tf.equal(head[15], ord("L")), tf.equal(head[15], ord("X"))
    packed = _little(head, 21, 4)
    width = tf.where(lossless, packed % 2**14 + 1, _little(head, 26, 2) % 2**14)
    height = tf.where(lossless, packed // 2**14 % 2**14 + 1, _little(head, 28, 2) % 2**14)
    width = tf.where(extended, _little(head, 24, 3) + 1, width)
    height = tf.where(extended, _little(head, 27, 3) + 1, height)
    contents = _require_size(contents, height, width)
    animated = extended & tf.equal(head[20] // 2 % 2, 1)
    contents = _require(contents, tf.logical_not(animated), _ANIMATED_WEBP)
    return _on_white(tf.io.decode_webp(contents)[0], tf.constant(255), finish)


def _on_white(image: tf.Tensor, full: tf.Tensor, finish: _Finish) -> tf.Tensor:
    """Finish an unsigned image [h,w,3 or 4], RGB or RGBA, as RGB.

    It is opaque when every alpha is `full`, as those of an RGB image, being none, are.
    """
    colour, alpha = image[:, :, :3], image[:, :, 3:]

    def opaque() -> tf.Tensor:
        return finish(colour if image.dtype == tf.uint8 else _as_float(colour))

    def blended() -> tf.Tensor:
        cover = _as_float(alpha)
        return finish(tf.clip_by_value(_as_float(colour) * cover + (1.0 - cover), 0.0, 1.0))

    return tf.cond(tf.reduce_all(tf.equal(alpha, tf.cast(full, image.dtype))), opaque, blended)


def _as_float(image: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(tf.image.convert_image_dtype(image, tf.float32), 0.0, 1.0)


def _little(head: tf.Tensor, at: int, count: int) -> tf.Tensor:
    """Read a little-endian unsigned number of `count` bytes, int64."""
    return tf.reduce_sum(head[at : at + count] * [256**power for power in range(count)])


def _require(contents: tf.Tensor, condition: tf.Tensor, reason: str) -> tf.Tensor:
    """Return `contents`, or raise InvalidArgumentError with `reason`.

    A graph optimizer may strip assertions, and what is refused here can bring the process down,
    so behind the assertion the contents are replaced by nothing, which no decoder accepts.
    """
    with tf.control_dependencies([tf.debugging.Assert(condition, [reason])]):
        return tf.where(condition, contents, b"")


def _require_size(contents: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    pixels = height * width
    return _require(contents, (pixels > 0) & (pixels <= MAX_PIXELS), _BAD_SIZE)


def _reason(contents: bytes, message: str) -> str:
    """Say in a few words why these bytes made TensorFlow raise `message`."""
    for reason in _REASONS:
        if reason in message:
            return reason
    names = (f for f in _FORMATS if all(contents[at:].startswith(m) for at, m in f.magic))
    form = next(names)
    return f"{form.name} is {'damaged' if form.whole(contents) else 'truncated'}"


@dataclass(frozen=True, slots=True)
class _Format:
    """An image format, told by the bytes `magic` at their places."""

    name: str
    magic: tuple[tuple[int, bytes], ...]
    decode: Callable[[tf.Tensor, tf.Tensor, _Finish], tf.Tensor]
    # Whether a file that cannot be read has its end.
    whole: Callable[[bytes], bool]


_FORMATS = (
    _Format("JPEG", ((0, b"\xff\xd8\xff"),), _jpeg, lambda file: b"\xff\xd9" in file[-64:]),
    _Format("PNG", ((0, b"\x89PNG\r\n\x1a\n"),), _png, lambda file: b"IEND" in file[-64:]),
    _Format("GIF", ((0, b"GIF8"),), _gif, lambda file: b";" in file[-2:]),
    _Format("BMP", ((0, b"BM"),), _bmp, lambda file: len(file) >= _declared(file, 2)),
    _Format(
        "WebP",
        ((0, b"RIFF"), (8, b"WEBP")),
        _webp,
        lambda file: len(file) >= _declared(file, 4) + 8,
    ),
)


def _declared(file: bytes, at: int) -> int:
    return int.from_bytes(file[at : at + 4], "little")
