"""PNG, GIF, BMP and WebP to pixels in graph operations, and what they share with JPEG.

PNG   every colour type and depth, interlaced or not; 16 bits are kept until they are floats;
      transparent pixels are laid on white.
GIF   the first frame, and nothing behind it is read; TensorFlow shows transparent pixels, and
      canvas outside the frame, black.
BMP   8-bit with its palette, 24-bit, and 32-bit without its fourth byte; uncompressed. TensorFlow
      reads neither 1-, 4- nor 16-bit files, nor files with bytes after the last row.
WebP  lossy and lossless, on white; not animated: TensorFlow 2.21 corrupts its heap on those.

EXIF in PNG and WebP, and colour profiles everywhere, are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import tensorflow as tf

# 64 Mi pixels, above what cameras take; a header of a few bytes may claim a thousand times that.
MAX_PIXELS = 2**26

ANIMATED_WEBP = "animated WebP, which TensorFlow cannot read"
ODD_BMP = "BMP that is not uncompressed 8-bit, 24-bit or 32-bit"
MANY_BLOCKS = "GIF in more pieces than any real one"

# Files of real programs are walked in a few steps; this many take half a second.
_MAX_STEPS = 2**14
# Sub-blocks of one length that a step passes over.
_RUN = 2**12

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
    asks for all of it. `max_pixels` is the most that a decoder may be given.
    """

    contents: tf.Tensor
    bytes_: tf.Tensor
    words: tf.Tensor
    longs: tf.Tensor
    least: Size | None
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Format:
    """An image format, told by the bytes `magic` at their places."""

    name: str
    magic: tuple[tuple[int, bytes], ...]
    decode: Callable[[File], Pixels]
    # Whether a file that cannot be read has its end.
    whole: Callable[[bytes], bool]


def max_bytes(max_pixels: int) -> int:
    """Give the most bytes that a file may have: those of its pixels as they are, and 16 MiB.

    32-bit BMP files take 4 bytes a pixel, other formats seldom half of that.
    """
    return 4 * max_pixels + 2**24


def read_head(contents: tf.Tensor, least: Size | None, max_pixels: int) -> File:
    """Read the numbers in a file's first bytes. Raises nothing, however short it is."""
    # Zeros behind it let the header be read without asking how much of it is there.
    start = tf.strings.join([tf.strings.substr(contents, 0, _HEAD), b"\0" * _HEAD])
    bytes_ = tf.cast(tf.io.decode_raw(start, tf.uint8), tf.int64)
    words = bytes_[:-1] + bytes_[1:] * 2**8
    return File(contents, bytes_, words, words[:-2] + words[2:] * 2**16, least, max_pixels)


def require(contents: tf.Tensor, condition: tf.Tensor, *reason: str | tf.Tensor) -> tf.Tensor:
    """Return `contents`, or raise InvalidArgumentError with the parts of `reason`, in brackets.

    A graph optimizer may strip assertions, and what is refused here can bring the process down,
    so behind the assertion the contents are replaced by nothing, which no decoder accepts.
    """
    with tf.control_dependencies([tf.debugging.Assert(condition, reason)]):
        # Unlike `tf.where`, which would copy them: files have up to hundreds of megabytes.
        return tf.cond(condition, lambda: contents, lambda: tf.constant(b""))


def require_size(file: File, height: tf.Tensor, width: tf.Tensor) -> File:
    """Return the file, or raise InvalidArgumentError if height and width, int64, are absurd."""
    pixels = height * width
    sound = (pixels > 0) & (pixels <= file.max_pixels)
    said = ("the header claims ", width, "x", height, " pixels, ", limit(file.max_pixels))
    return replace(file, contents=require(file.contents, sound, *said))


def limit(max_pixels: int) -> str:
    """Say what is allowed, as every refusal for too many pixels does."""
    return f"expected 1 to {max_pixels} (--max-pixels)"


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
    depth = file.bytes_[24]
    file = require_size(file, size[1], size[0])
    contents = _require_room(file, size[0] * size[1], depth <= 8)
    # Four channels bring out transparency given as a palette or a key colour as well. Where there
    # is none TensorFlow fills the fourth with 2**depth - 1, also below 8 bits.
    full = 2 ** tf.minimum(depth, 16) - 1

    def decoded(dtype: tf.DType) -> tf.Tensor:
        return tf.io.decode_png(contents, channels=4, dtype=dtype)

    pixels: Pixels = tf.cond(
        depth > 8,
        lambda: _on_white(file, decoded(tf.uint16), full),
        lambda: _on_white(file, decoded(tf.uint8), full),
    )
    return pixels


def _gif(file: File) -> Pixels:
    file = require_size(file, file.words[8], file.words[6])
    image = tf.io.decode_image(_first_frame(file), channels=3, expand_animations=False)
    return all_picture(tf.ensure_shape(image, [None, None, 3]))


def _first_frame(file: File) -> tf.Tensor:
    """Cut a GIF behind its first frame: TensorFlow would decode them all to show one.

    GIF89a: behind header and colours come records, each of them ending in sub-blocks; a sub-block
    has a byte that is its length and so many bytes, the last one's length is 0. A file whose first
    frame has no end is left as it is. Raises InvalidArgumentError when that frame is too large.
    """
    data = tf.io.decode_raw(tf.strings.join([file.contents, b"\0" * 16]), tf.uint8)
    size = tf.strings.length(file.contents)

    def record(at: tf.Tensor) -> tuple[tf.Tensor, ...]:
        head = tf.ensure_shape(tf.cast(data[at : at + 10], tf.int64), [10])
        frame, extension = tf.equal(head[0], 0x2C), tf.equal(head[0], 0x21)
        behind = tf.where(frame, at + 11 + _colours(head[9]), at + 2)
        pixels = tf.where(frame, (head[5] + head[6] * 256) * (head[7] + head[8] * 256), 0)
        return tf.where(frame | extension, behind, size), pixels, tf.constant(True)

    def walk(at: tf.Tensor, pixels: tf.Tensor, inside: tf.Tensor) -> tuple[tf.Tensor, ...]:
        at, pixels, inside = tf.cond(inside, lambda: _blocks(data, at, pixels), lambda: record(at))
        return tf.minimum(at, size), pixels, inside

    def more(at: tf.Tensor, pixels: tf.Tensor, inside: tf.Tensor) -> tf.Tensor:
        return (at < size) & (inside | tf.equal(pixels, 0))

    start = (
        tf.minimum(13 + _colours(data[10]), size),
        tf.constant(0, tf.int64),
        tf.constant(False),
    )
    at, pixels, inside = tf.while_loop(more, walk, start, maximum_iterations=_MAX_STEPS)
    contents = require(file.contents, ~more(at, pixels, inside), MANY_BLOCKS)
    said = ("its first frame has ", pixels, " pixels, ", limit(file.max_pixels))
    contents = require(contents, pixels <= file.max_pixels, *said)
    return tf.strings.join([tf.strings.substr(contents, 0, at), b";"])


def _blocks(data: tf.Tensor, at: tf.Tensor, pixels: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Pass over sub-blocks: gives the place behind them, `pixels`, and whether more are to come."""
    # All programs write sub-blocks of one length, so a step takes as many as are alike.
    step = tf.cast(data[at], tf.int32) + 1
    alike = tf.equal(tf.cast(data[at : at + step * _RUN : step], tf.int32) + 1, step)
    run = tf.reduce_sum(tf.math.cumprod(tf.cast(alike, tf.int32)))
    return tf.where(step > 1, at + step * run, at + 1), pixels, step > 1


def _colours(packed: tf.Tensor) -> tf.Tensor:
    """Give the bytes of a GIF's table of colours, int32, from the flags that announce it."""
    packed = tf.cast(packed, tf.int32)
    return tf.where(packed >= 128, 3 * tf.bitwise.left_shift(2, packed % 8), 0)


def _bmp(file: File) -> Pixels:
    pixels_at, header, width, height = (file.longs[at] for at in (10, 14, 18, 22))
    # A height above 2**31 is a negative one: the rows go from top to bottom.
    contents = require_size(file, tf.minimum(height, 2**32 - height), width).contents
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
    file = require_size(file, height, width)
    animated = extended & tf.equal(file.bytes_[20] // 2 % 2, 1)
    contents = require(file.contents, tf.logical_not(animated), ANIMATED_WEBP)
    return _on_white(file, tf.io.decode_webp(contents)[0], tf.constant(255))


def _on_white(file: File, image: tf.Tensor, full: tf.Tensor) -> Pixels:
    """Give an unsigned image [h,w,3 or 4], RGB or RGBA, as RGB.

    It is opaque when every alpha is `full`, as those of an RGB image, being none, are.
    """

    def opaque() -> Pixels:
        colour = image[:, :, :3]
        return all_picture(colour if image.dtype == tf.uint8 else as_float(colour))

    def blended() -> Pixels:
        with tf.control_dependencies([_require_room(file, tf.size(image, tf.int64) // 4, False)]):
            colour, cover = as_float(image[:, :, :3]), as_float(image[:, :, 3:])
        return all_picture(tf.minimum(colour * cover + (1.0 - cover), 1.0))

    clear = tf.equal(image[:, :, 3:], tf.cast(full, image.dtype))
    pixels: Pixels = tf.cond(tf.reduce_all(clear), opaque, blended)
    return pixels


def _require_room(file: File, pixels: tf.Tensor, plain: tf.Tensor | bool) -> tf.Tensor:
    """Return the contents, or raise InvalidArgumentError if `pixels` take too much memory.

    Those that are not `plain`, opaque and of 8 bits a colour, become floats of four times the size;
    so many of them take 0.9 GiB at the most.
    """
    most = file.max_pixels * 3 // 8
    said = f" pixels, transparent or of 16 bits, expected at most {most} (3/8 of --max-pixels)"
    return require(file.contents, plain | (pixels <= most), pixels, said)


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
