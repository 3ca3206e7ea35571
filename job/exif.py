"""EXIF orientation of a JPEG, found and applied in TensorFlow graph operations.

Cameras store the picture as the sensor saw it and note in EXIF how it was held (JEITA CP-3451,
tag 0x0112). The serving signature gets such files too, so this cannot be done in Python.
Anything in EXIF that makes no sense means orientation 1, as it stands: it is never an error.
"""

from __future__ import annotations

import tensorflow as tf

_ORIENTATION_TAG = 0x0112
# A marker (2 bytes), its length (2) and "Exif\0\0" (6).
_PREFIX = 10
# More segments than real files have before their EXIF, and few enough for a hostile file made of
# empty ones (or of fill bytes) to cost milliseconds.
_MAX_SEGMENTS = 256


def orientation(contents: tf.Tensor) -> tf.Tensor:
    """Find the orientation, int32 scalar 1..8, of a JPEG given as a scalar string.

    Walks the application and comment segments, which come before any table or frame, up to APP1
    `Exif`; each step reads 10 bytes. Without such a segment the answer is 1. Raises nothing.
    """
    size = tf.strings.length(contents)

    def more(at: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(at + _PREFIX <= size, tf.logical_not(found))

    def step(at: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        prefix = tf.strings.substr(contents, at, _PREFIX)
        head = tf.cast(_bytes(prefix, _PREFIX), tf.int32)
        marker, length = head[1], head[2] * 256 + head[3]
        name = tf.strings.substr(prefix, 4, 6)
        exif = tf.logical_and(tf.equal(marker, 0xE1), tf.equal(name, b"Exif\0\0"))
        # APP0 to APP15 are 0xE0 to 0xEF, a comment is 0xFE; 0xFF before a marker is a fill byte.
        optional = tf.logical_or(tf.equal(marker // 16, 0xE), tf.equal(marker, 0xFE))
        sound = tf.logical_and(tf.equal(head[0], 0xFF), tf.logical_and(optional, length >= 2))
        fill = tf.logical_and(tf.equal(head[0], 0xFF), tf.equal(marker, 0xFF))
        after = tf.where(sound, at + 2 + length, tf.where(fill, at + 1, size))
        found = tf.logical_and(sound, exif)
        return tf.where(found, at, after), found

    start = (tf.constant(2), tf.constant(False))
    at, found = tf.while_loop(more, step, start, maximum_iterations=_MAX_SEGMENTS)
    return tf.cond(found, lambda: _from_segment(contents, at), lambda: tf.constant(1))


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn and mirror an image [h,w,c] of any dtype so that orientation 1..8 becomes 1.

    5 to 8 also exchange height and width.
    """

    def turned() -> tf.Tensor:
        swap = tf.cond(orientation >= 5, lambda: [1, 0, 2], lambda: [0, 1, 2])
        out = tf.transpose(image, swap)
        mirror = tf.reduce_any(tf.equal(orientation, [2, 3, 6, 7]))
        upend = tf.reduce_any(tf.equal(orientation, [3, 4, 7, 8]))
        out = tf.cond(mirror, lambda: tf.reverse(out, [1]), lambda: out)
        return tf.cond(upend, lambda: tf.reverse(out, [0]), lambda: out)

    return tf.cond(tf.equal(orientation, 1), lambda: image, turned)


def _from_segment(contents: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """Read the tag from the TIFF structure in the APP1 segment that starts at byte `at`."""
    length = _bytes(tf.strings.substr(contents, at + 2, 2), 2)
    payload = tf.cast(length[0], tf.int32) * 256 + tf.cast(length[1], tf.int32) - 8
    tiff = tf.strings.substr(contents, at + _PREFIX, tf.maximum(payload, 0))
    # With 8 zeros behind it the header can be read whatever is missing, and an offset outside,
    # moved to the end, leads to a directory of no entries.
    size = tf.cast(tf.strings.length(tiff), tf.int64)
    tiff = tf.strings.join([tiff, b"\0" * 8])
    header = tf.strings.substr(tiff, 0, 4)
    big = tf.equal(header, b"MM\0*")
    known = tf.logical_or(big, tf.equal(header, b"II*\0"))
    directory = tf.minimum(_unsigned(tiff, tf.constant(4, tf.int64), 4, big), size)
    claimed = _unsigned(tiff, directory, 2, big)
    held = tf.maximum(size - directory - 2, 0) // 12
    entries = tf.strings.substr(tiff, directory + 2, 12 * tf.minimum(claimed, held))
    table = tf.reshape(tf.cast(tf.io.decode_raw(entries, tf.uint8), tf.int32), [-1, 12])

    def short(first: int) -> tf.Tensor:
        low, high = table[:, first], table[:, first + 1]
        return tf.where(big, low * 256 + high, high * 256 + low)

    # A trailing 1 stands for "no such entry".
    named = tf.boolean_mask(short(8), tf.equal(short(0), _ORIENTATION_TAG))
    value = tf.concat([named, [1]], 0)[0]
    valid = tf.logical_and(known, tf.logical_and(value >= 1, value <= 8))
    return tf.where(valid, value, 1)


def _bytes(text: tf.Tensor, count: int) -> tf.Tensor:
    """Turn a string known to hold `count` bytes into uint8 [count]."""
    return tf.ensure_shape(tf.io.decode_raw(text, tf.uint8), [count])


def _unsigned(text: tf.Tensor, at: tf.Tensor, count: int, big: tf.Tensor) -> tf.Tensor:
    """Read `count` bytes at `at`, which must be there, as one unsigned number, int64."""
    digits = tf.cast(_bytes(tf.strings.substr(text, at, count), count), tf.int64)
    digits = tf.where(big, tf.reverse(digits, [0]), digits)
    return tf.reduce_sum(digits * [256**power for power in range(count)])
