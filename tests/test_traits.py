"""A fingerprint is of the picture, not of the file, and a size is what the header says."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from scipy.fft import dctn

from job.traits import COEFFICIENTS, TRAITS, cropped, fingerprints, mirrored, sizes, traits

CLIPART = Path(__file__).resolve().parent.parent / "samples/clipart"


def pixels_of(image: Image.Image, side: int = 96) -> np.ndarray:
    """Give float32 [side,side,3] in [0,1]."""
    small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32) / 255


def drawing(name: str = "mammal/dolphin.jpg") -> Image.Image:
    """Open a sample drawing."""
    return Image.open(CLIPART / name).convert("RGB")


def fingerprint(image: Image.Image, side: int = 96) -> np.ndarray:
    """Give the fingerprint float32 [64] of a picture that has no file."""
    return fingerprints(traits(b"", pixels_of(image, side))[np.newaxis])[0]


def encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    """Encode in a format of Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Give a chunk of a PNG file."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


# 60,000 x 60,000 claimed pixels, and none behind.
HUGE = b"\x89PNG\r\n\x1a\n" + png_chunk(
    b"IHDR", struct.pack(">IIBBBBB", *[60_000] * 2, 8, 2, 0, 0, 0)
)
HUGE += png_chunk(b"IDAT", b"")

PICTURES = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)),
    elements=st.floats(0, 1, width=32),
)
PRINTS = npst.arrays(np.float32, (3, 64), elements=st.floats(-1, 1, width=32))


def test_the_coefficients_are_those_of_the_dct_of_luminance_and_colour() -> None:
    """They equal SciPy's DCT-II of Pillow's YCbCr, scaled to the mean square of the picture."""
    image = drawing().resize((96, 96))
    ycbcr = np.asarray(image.convert("YCbCr"), np.float64) / 255 - [0, 128 / 255, 128 / 255]
    channel, vertical, horizontal = COEFFICIENTS.T
    full = np.stack([dctn(ycbcr[:, :, c], norm="ortho") / 96 for c in range(3)])
    # Pillow rounds its YCbCr to whole numbers.
    assert np.abs(fingerprint(image) - full[channel, vertical, horizontal]).max() < 2e-3


@given(PICTURES)
def test_traits_of_any_picture_survive_float16(pixels: np.ndarray) -> None:
    """64 coefficients of at most 2, rounded by at most 0.001, and a size that stays whole."""
    row = traits(encoded(Image.new("RGB", (4097, 3)), "BMP"), pixels)[np.newaxis]
    assert row.shape == (1, TRAITS)
    assert row.dtype == np.float32
    assert np.abs(fingerprints(row)).max() <= 2.001
    rounded = row.astype(np.float16)
    assert np.abs(fingerprints(rounded) - fingerprints(row)).max() < 1e-3
    assert sizes(rounded).tolist() == [[4097, 3]]


@given(PICTURES)
def test_mirroring_the_picture_mirrors_the_fingerprint(pixels: np.ndarray) -> None:
    """The fingerprint of the mirror image is that of the picture with some signs flipped."""
    straight, turned = (traits(b"", p)[np.newaxis] for p in (pixels, pixels[:, ::-1]))
    assert np.allclose(fingerprints(turned), mirrored(fingerprints(straight)), atol=1e-5)


@given(PRINTS)
def test_mirrored_twice_is_the_same(prints: np.ndarray) -> None:
    """Mirroring a fingerprint twice gives it back, to the bit."""
    assert (mirrored(mirrored(prints)) == prints).all()


@given(PRINTS)
def test_all_of_a_picture_is_the_picture(prints: np.ndarray) -> None:
    """Cropping nothing changes nothing."""
    assert np.allclose(cropped(prints, (0, 1), (0, 1)), prints, atol=1e-5)


@given(PRINTS)
def test_the_mirror_image_of_a_part_is_a_part_of_the_mirror_image(prints: np.ndarray) -> None:
    """Cropping on the left and mirroring is mirroring and cropping on the right."""
    left = mirrored(cropped(prints, (0, 0.9), (0.2, 1)))
    assert np.allclose(left, cropped(mirrored(prints), (0, 0.9), (0, 0.8)), atol=1e-4)


@pytest.mark.parametrize("box", [(6, 6, 194, 194), (6, 0, 200, 200), (0, 0, 200, 194)])
def test_a_crop_is_foreseen(box: tuple[int, int, int, int]) -> None:
    """What `cropped` expects is nearer to a part's fingerprint than half what the whole's is."""
    image = drawing().resize((200, 200))
    left, top, right, bottom = (side / 200 for side in box)
    whole, part = fingerprint(image, 200), fingerprint(image.crop(box), 200)
    expected = cropped(whole[np.newaxis], (top, bottom), (left, right))[0]
    assert np.linalg.norm(expected - part) < 0.5 * np.linalg.norm(whole - part)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_encoding_again_hardly_changes_the_fingerprint(kind: str) -> None:
    """Lossy files and half the size differ by at most 2 % of the contrast."""
    image = drawing()
    again = Image.open(io.BytesIO(encoded(image, kind, quality=60)))
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    before = fingerprint(image)
    contrast = np.linalg.norm(before[1:])
    assert np.linalg.norm(before - fingerprint(again)) < 0.02 * contrast
    assert np.linalg.norm(before - fingerprint(half)) < 0.02 * contrast


def test_the_fingerprint_does_not_depend_on_the_size_of_the_pixels() -> None:
    """A backbone of another input size sees nearly the same coefficients."""
    assert np.abs(fingerprint(drawing(), 224) - fingerprint(drawing(), 96)).max() < 0.005


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_the_size_is_read_from_the_header_of_each_format(kind: str) -> None:
    """Width and height as stored, however small the pixels came in."""
    contents = encoded(Image.new("RGB", (70, 30), "red"), kind)
    assert sizes(traits(contents, np.zeros((4, 4, 3), np.float32))[np.newaxis]).tolist() == [
        [70, 30]
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("contents", "size"),
    [
        (b"", [0, 0]),
        (b"GIF89a", [0, 0]),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), [0, 0]),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", [0, 0]),
        (encoded(Image.new("RGB", (70, 30)), "TIFF"), [0, 0]),
        (HUGE, [60_000, 60_000]),
    ],
)
def test_a_header_is_believed_and_nothing_raises(contents: bytes, size: list[int]) -> None:
    """What is no image has the size 0, 0; what claims a huge one is neither warned of nor read."""
    assert sizes(traits(contents, np.zeros((4, 4, 3), np.float32))[np.newaxis]).tolist() == [size]


@given(st.binary(max_size=80), st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP"]))
@settings(max_examples=200)
def test_damaged_headers_raise_nothing(tail: bytes, kind: str) -> None:
    """Whatever follows the first bytes of a file, its traits are finite numbers."""
    head = encoded(Image.new("RGB", (7, 3)), kind)[:16]
    assert np.isfinite(traits(head + tail, np.zeros((4, 4, 3), np.float32))).all()
