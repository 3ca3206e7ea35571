"""PNG, GIF, BMP and WebP to pixels in graph operations, and what they share with JPEG.

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
from typing import NamedTuple

import tensorflow as tf

# 64 Mi pixels, above what cameras take; a header of a few bytes may claim a thousand times that.
MAX_PIXELS = 2**26

BAD_SIZE = f"the header claims no pixels, or more than {MAX_PIXELS}"
ANIMATED_WEBP = "animated WebP, which TensorFlow cannot read"
ODD_BMP = "BMP that is not uncompressed 8-bit, 24-bit or 32-bit"

# Height and width.
Size = tuple[int, int]

# Enough bytes for every header field read below.
_HEAD = 66


class Pixels(NamedTuple):
    """An image [h,w,3], RGB, as uint8 in `octets` or as float32 in [0,1] in `floats`.

    The other one is empty. A named tuple, because the branches of a graph can return one.
    `unfilled`, float32 [2] in [0,1), is the parts of the last row and of the last column that are
    no picture; `orientation`, int32 in 1..8, how to turn it upright (EXIF).
    """

    octets: tf.Tensor
    floats: tf.Tensor
    unfilled: tf.Tensor
    orientation: tf.Tensor


@dataclass(frozen=True, slots=True)
class File:
    """A file's contents, a scalar string, and its first bytes as numbers, int64, by their place.

    `bytes_`, `words` and `longs` are unsigned, of 1, 2 and 4 bytes, little-endian; zeros are read
    behind the end. `least` is the size below which no decoder may shrink the upright image; None
    asks for all of it.
    """

    contents: tf.Tensor
    bytes_: tf.Tensor
    words: tf.Tensor
    longs: tf.Tensor
    least: Size | None


@dataclass(frozen=True, slots=True)
class Format:
    """An image format, told by the bytes `magic` at their places."""

    name: str
    magic: tuple[tuple[int, bytes], ...]
    decode: Callable[[File], Pixels]
    # Whether a file that cannot be read has its end.
    whole: Callable[[bytes], bool]


def read_head(contents: tf.Tensor, least: Size | None) -> File:
    """Read the numbers in a file's first bytes. Raises nothing, however short it is."""
    # Zeros behind it let the header be read without asking how much of it is there.
    start = tf.strings.join([tf.strings.substr(contents, 0, _HEAD), b"\0" * _HEAD])
    bytes_ = tf.cast(tf.io.decode_raw(start, tf.uint8), tf.int64)
    words = bytes_[:-1] + bytes_[1:] * 2**8
    return File(contents, bytes_, words, words[:-2] + words[2:] * 2**16, least)


def require(contents: tf.Tensor, condition: tf.Tensor, reason: str) -> tf.Tensor:
    """Return `contents`, or raise InvalidArgumentError with `reason`.

    A graph optimizer may strip assertions, and what is refused here can bring the process down,
    so behind the assertion the contents are replaced by nothing, which no decoder accepts.
    """
    with tf.control_dependencies([tf.debugging.Assert(condition, [reason])]):
        return tf.where(condition, contents, b"")


def require_size(contents: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Return `contents`, or raise InvalidArgumentError if height and width, int64, are absurd."""
    pixels = height * width
    return require(contents, (pixels > 0) & (pixels <= MAX_PIXELS), BAD_SIZE)


def all_picture(image: tf.Tensor) -> Pixels:
    """Take an upright image [h,w,3], uint8 or float32 in [0,1], all of it picture."""
    filled, turn = tf.constant([0.0, 0.0]), tf.constant(1)
    if image.dtype == tf.uint8:
        return Pixels(image, tf.constant(0.0, shape=[0, 0, 3]), filled, turn)
    return Pixels(tf.constant(0, tf.uint8, [0, 0, 3]), image, filled, turn)


def as_float(image: tf.Tensor) -> tf.Tensor:
    """Turn uint8 or uint16 into float32 in [0,1]."""
    return tf.cast(image, tf.float32) / image.dtype.max


def _png(file: File) -> Pixels:
    big_endian = [2**24, 2**16, 2**8, 1]
    size = tf.reduce_sum(tf.reshape(file.bytes_[16:24], [2, 4]) * big_endian, axis=1)
    contents = require_size(file.contents, size[1], size[0])
    # Four channels bring out transparency given as a palette or a key colour as well. Where there
    # is none TensorFlow fills the fourth with 2**depth - 1, also below 8 bits.
    depth = file.bytes_[24]
    full = 2 ** tf.minimum(depth, 16) - 1

    def decoded(dtype: tf.DType) -> tf.Tensor:
        return tf.io.decode_png(contents, channels=4, dtype=dtype)

    pixels: Pixels = tf.cond(
        depth > 8,
        lambda: _on_white(decoded(tf.uint16), full),
        lambda: _on_white(decoded(tf.uint8), full),
    )
    return pixels


def _gif(file: File) -> Pixels:
    contents = require_size(file.contents, file.words[8], file.words[6])
    image = tf.io.decode_image(contents, channels=3, expand_animations=False)
    return all_picture(tf.ensure_shape(image, [None, None, 3]))


def _bmp(file: File) -> Pixels:
    pixels_at, header, width, height = (file.longs[at] for at in (10, 14, 18, 22))
    # A height above 2**31 is a negative one: the rows go from top to bottom.
    contents = require_size(file.contents, tf.minimum(height, 2**32 - height), width)
    bits, compression = file.words[28], file.longs[30]
    # Compression 3 says which bits are which colour; TensorFlow takes them to be these.
    usual = tf.reduce_all(tf.equal(file.bytes_[54:66], [0, 0, 255, 0, 0, 255, 0, 0, 255, 0, 0, 0]))
    plain = tf.equal(compression, 0) | (tf.equal(compression, 3) & tf.equal(bits, 32) & usual)
    depth = tf.reduce_any(tf.equal(bits, [8, 24, 32]))
    fits = (header >= 40) & (14 + header <= pixels_at)
    contents = require(contents, fits & depth & plain, ODD_BMP)
    image = tf.io.decode_bmp(contents, channels=3)

    def coloured() -> tf.Tensor:
        # TensorFlow shows the index as a shade of grey; the palette is blue, green, red, 0. What
        # it lacks of 256 colours is black. An error here would race with those of the decoder.
        at = tf.minimum(14 + header, tf.cast(tf.strings.length(contents), tf.int64))
        palette = tf.strings.substr(contents, at, tf.clip_by_value(pixels_at - at, 0, 1024))
        palette = tf.strings.substr(tf.strings.join([palette, b"\0" * 1024]), 0, 1024)
        colours = tf.reshape(tf.io.decode_raw(palette, tf.uint8), [256, 4])[:, 2::-1]
        return tf.gather(colours, tf.cast(image[:, :, 0], tf.int32))

    return all_picture(tf.cond(tf.equal(bits, 8), coloured, lambda: image))


def _webp(file: File) -> Pixels:
    # The first chunk has the size: lossy `VP8 `, lossless `VP8L` or extended `VP8X` (RFC 9649).
    lossless, extended = (tf.equal(file.bytes_[15], ord(letter)) for letter in "LX")
    packed = file.longs[21]
    width = tf.where(lossless, packed % 2**14 + 1, file.words[26] % 2**14)
    height = tf.where(lossless, packed // 2**14 % 2**14 + 1, file.words[28] % 2**14)
    width = tf.where(extended, file.longs[24] % 2**24 + 1, width)
    height = tf.where(extended, file.longs[27] % 2**24 + 1, height)
    contents = require_size(file.contents, height, width)
    animated = extended & tf.equal(file.bytes_[20] // 2 % 2, 1)
    contents = require(contents, tf.logical_not(animated), ANIMATED_WEBP)
    return _on_white(tf.io.decode_webp(contents)[0], tf.constant(255))


def _on_white(image: tf.Tensor, full: tf.Tensor) -> Pixels:
    """Give an unsigned image [h,w,3 or 4], RGB or RGBA, as RGB.

    It is opaque when every alpha is `full`, as those of an RGB image, being none, are.
    """
    colour, alpha = image[:, :, :3], image[:, :, 3:]

    def opaque() -> Pixels:
        return all_picture(colour if image.dtype == tf.uint8 else as_float(colour))

    def blended() -> Pixels:
        cover = as_float(alpha)
        return all_picture(tf.minimum(as_float(colour) * cover + (1.0 - cover), 1.0))

    clear = tf.equal(alpha, tf.cast(full, image.dtype))
    pixels: Pixels = tf.cond(tf.reduce_all(clear), opaque, blended)
    return pixels


def _declared(file: bytes, at: int) -> int:
    return int.from_bytes(file[at : at + 4], "little")


NOT_JPEG = (
    Format("PNG", ((0, b"\x89PNG\r\n\x1a\n"),), _png, lambda file: b"IEND" in file[-64:]),
    Format("GIF", ((0, b"GIF8"),), _gif, lambda file: b";" in file[-2:]),
    Format("BMP", ((0, b"BM"),), _bmp, lambda file: len(file) >= _declared(file, 2)),
    Format(
        "WebP",
        ((0, b"RIFF"), (8, b"WEBP")),
        _webp,
        lambda file: len(file) >= _declared(file, 4) + 8,
    ),
)
