"""What is kept of an image beside its embedding: a fingerprint of its pixels, and its stored size.

Free of TensorFlow, which takes seconds to import.

The fingerprint is the picture's lowest frequencies: coefficients of the DCT-II of its luminance
and, fewer, of its two colour differences (Y'CbCr as in JFIF, ITU-T T.871). Encoding a picture again
or scaling it leaves them nearly as they were, mirroring it flips signs, and those of a part of it
can be told from those of the whole. A perceptual hash keeps only the signs of such coefficients;
here their sizes tell how sure each sign is.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image

# Bumped whenever the traits of any image change, so that cached ones are not mixed.
TRAITS_VERSION = "1"

# The channel (Y', Cb, Cr), the vertical and the horizontal frequency of each coefficient, in half
# periods a picture: 7x7 of the luminance and 3x3 of either colour, each less its last corner.
COEFFICIENTS = np.array(
    [
        (channel, vertical, horizontal)
        for channel, side in enumerate((7, 3, 3))
        for vertical in range(side)
        for horizontal in range(side)
        if vertical + horizontal < 2 * (side - 1)
    ]
)

# A size is two numbers below this: float16 counts up to it, and a JPEG has up to 65,535 columns.
_DIGIT = 2048

# The fingerprint, then width and height.
TRAITS = len(COEFFICIENTS) + 4

# Only headers are read here, and nothing else in the job opens files with Pillow: what a picture
# claims to be is not warned of, nor refused.
Image.MAX_IMAGE_PIXELS = None
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")

_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)

# Points at which a product of two cosines is summed for its integral.
_STEPS = 1024


def traits(contents: bytes, pixels: np.ndarray) -> np.ndarray:
    """Give float32 `[TRAITS]` for a file's bytes and its pixels, float32 `[h,w,3]` in [0,1].

    The values keep what they say when they are rounded to float16. Raises nothing for any bytes.
    """
    height, width = pixels.shape[:2]
    side = int(COEFFICIENTS.max()) + 1
    # Not `@`: so small a product takes BLAS's threads longer to share out than one to do, many
    # times so while the cores are busy embedding.
    columns = np.einsum("vh,hx->vx", _cosines(side, height), pixels.reshape(height, -1)) / height
    rows = np.einsum("uw,vwc->vuc", _cosines(side, width), columns.reshape(side, width, 3)) / width
    channel, vertical, horizontal = COEFFICIENTS.T
    fingerprint = np.einsum("vuc,yc->vuy", rows, _YCBCR)[vertical, horizontal, channel]
    digits = [part for side in _stored_size(contents) for part in divmod(side, _DIGIT)]
    return np.concatenate([fingerprint, digits]).astype(np.float32)


def fingerprints(rows: np.ndarray) -> np.ndarray:
    """Give the fingerprints float32 `[n,64]` of traits `[n,TRAITS]`, a view if those are float32.

    The coefficients are as `COEFFICIENTS` lists them, scaled so that their squares sum to the mean
    square of what they show: all but the first of the luminance, to that of the contrast.
    """
    return rows[:, : len(COEFFICIENTS)].astype(np.float32, copy=False)


def sizes(rows: np.ndarray) -> np.ndarray:
    """Give width and height as stored, float32 `[n,2]` in pixels, of traits `[n,TRAITS]`.

    0 where they are unknown: not an image, or a side of 4 Mi pixels.
    """
    digits = rows[:, len(COEFFICIENTS) :].astype(np.float32, copy=False).reshape(-1, 2, 2)
    pixels: np.ndarray = digits[:, :, 0] * _DIGIT + digits[:, :, 1]
    return pixels


def mirrored(fingerprints: np.ndarray) -> np.ndarray:
    """Give the fingerprints `[n,64]` of the same pictures with left and right exchanged."""
    signs = 1 - 2 * (COEFFICIENTS[:, 2] % 2)
    return fingerprints * signs.astype(np.float32)


def cropped(
    fingerprints: np.ndarray, rows: tuple[float, float], columns: tuple[float, float]
) -> np.ndarray:
    """Estimate the fingerprints float32 `[n,64]` of a part of the pictures, scaled to fill them.

    `rows` and `columns` are where it begins and ends, as shares in [0,1]. Frequencies beyond those
    kept are taken to be 0, so the highest ones are off by what these would have lent them.
    """
    part: np.ndarray = fingerprints @ _crop_matrix(rows, columns)
    return part


@cache
def _crop_matrix(rows: tuple[float, float], columns: tuple[float, float]) -> np.ndarray:
    """Give float32 `[64,64]`: what each coefficient, a row, lends to each of the part, a column."""
    side = int(COEFFICIENTS.max()) + 1
    down, across = (_shares(side, *span) for span in (rows, columns))
    channel, vertical, horizontal = COEFFICIENTS.T
    matrix = down[np.ix_(vertical, vertical)] * across[np.ix_(horizontal, horizontal)]
    return np.where(channel[:, np.newaxis] == channel, matrix, 0).astype(np.float32)


def _shares(side: int, start: float, end: float) -> np.ndarray:
    """Give `[side,side]`: how much of frequency i of the whole is frequency j of the part."""
    points = (np.arange(_STEPS) + 0.5) / _STEPS
    whole = _waves(side, start + (end - start) * points)
    shares: np.ndarray = whole @ _waves(side, points).T / _STEPS
    return shares


@cache
def _cosines(side: int, length: int) -> np.ndarray:
    """Give the DCT-II's first `side` rows for `length` samples, float32 `[side,length]`."""
    return _waves(side, (np.arange(length) + 0.5) / length).astype(np.float32)


def _waves(side: int, points: np.ndarray) -> np.ndarray:
    """Give the first `side` cosines, each of mean square 1, at points in [0,1]."""
    waves = np.cos(np.pi * np.arange(side)[:, np.newaxis] * points)
    scale = np.where(np.arange(side) > 0, np.sqrt(2), 1)[:, np.newaxis]
    return np.asarray(waves * scale)


def _stored_size(contents: bytes) -> tuple[int, int]:
    """Read width and height from a file's header, without its pixels; 0, 0 where that fails."""
    try:
        with Image.open(io.BytesIO(contents), formats=_FORMATS) as image:
            width, height = image.size
    except Exception:
        # Whatever a damaged header makes of Pillow's readers: the pixels were read all the same.
        return 0, 0
    return (width, height) if max(width, height) < _DIGIT**2 else (0, 0)
