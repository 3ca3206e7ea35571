"""JPEGs decoded at a part of their size, against Pillow's `draft` and against averages."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_images import SAMPLES, encoded, reason, segment, tiff

from job import images

# A step of 8 bits, with the rounding of float32.
STEP = 1.01 / 255
KINDS = ("L", "RGB", "CMYK")


def photo(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours with texture, far enough from black and white not to be cut off there."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 17), np.cos(x / 23 - y / 7), np.sin((x + y) / 13)]
    noise = np.random.default_rng(height * 1000 + width).normal(0, 5, (height, width, 3))
    pixels = 128 + 60 * np.stack(waves, -1) + noise
    return Image.fromarray(np.clip(pixels, 20, 235).astype(np.uint8)).convert(mode)


def turned(file: bytes, orientation: int) -> bytes:
    """Say in EXIF how the picture is to be turned."""
    return file[:2] + segment(0xE1, b"Exif\0\0" + tiff(orientation, "<")) + file[2:]


def triangle(pixels: int, extent: float, target: int) -> np.ndarray:
    """Weights [target,pixels] of an antialiased bilinear resize of `extent` of the pixels."""
    scale = extent / target
    centres = (np.arange(target)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(pixels)[None] + 0.5 - centres) / max(scale, 1)
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def shrink(image: np.ndarray, extent: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Resize [h,w,3] from the filter's definition."""
    rows = triangle(image.shape[0], extent[0], size[0])
    columns = triangle(image.shape[1], extent[1], size[1])
    return np.einsum("ah,hwc,bw->abc", rows, image, columns, optimize=True)


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn as EXIF says, from the table of the standard."""
    if orientation > 4:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image[::-1] if orientation in (3, 4, 7, 8) else image


def by_draft(file: bytes, size: tuple[int, int], orientation: int = 1) -> np.ndarray:
    """Read, shrink and turn a JPEG with Pillow's choice of the ratio, in [0,1]."""
    picture = Image.open(io.BytesIO(file))
    height, width = picture.height, picture.width
    stored = size[::-1] if orientation > 4 else size
    picture.draft(None, (stored[1], stored[0]))
    scale = min(height // stored[0], width // stored[1])
    ratio = max(r for r in (1, 2, 4, 8) if r <= max(scale, 1))
    assert (picture.height, picture.width) == (-(-height // ratio), -(-width // ratio))
    pixels = np.asarray(picture.convert("RGB")) / 255
    return upright(shrink(pixels, (height / ratio, width / ratio), stored), orientation)


def stored_shape(file: bytes, least: tuple[int, int]) -> tuple[int, int]:
    """Height and width that a file is decoded at, as it is stored."""
    pixels = images._decode(file, least)
    return tuple(pixels.octets.shape[:2])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("height", "width"), [(240, 320), (241, 323), (247, 101), (64, 500)])
def test_shrunk_jpegs_are_what_pillow_makes_of_them(height, width, orientation):
    """Every ratio, odd sizes and all orientations give Pillow's pixels in the right place."""
    file = turned(encoded(photo(height, width), "JPEG", quality=92, subsampling=0), orientation)
    for size in [(24, 31), (60, 40), (100, 100), (7, 9)]:
        got = images.preprocess(file, size).numpy()
        np.testing.assert_allclose(got, by_draft(file, size, orientation), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    size=st.sampled_from([(8, 6), (5, 11)]),
    mode=st.sampled_from(KINDS),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
)
def test_every_kind_of_jpeg_is_shrunk(height, width, size, mode, subsampling, progressive):
    """Grey, colour, CMYK, progressive, subsampled: no pixel is a step away from Pillow's."""
    options = {} if mode == "L" else {"subsampling": subsampling}
    picture = photo(height, width, mode)
    file = encoded(picture, "JPEG", quality=90, progressive=progressive, **options)
    got = images.preprocess(file, size).numpy()
    np.testing.assert_allclose(got, by_draft(file, size), atol=STEP)


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_a_shrunk_pixel_is_the_average_of_those_it_stands_for(mode, progressive, ratio):
    """Where the target is exactly an eighth, a quarter or half, it is the mean of the full image.

    Rounding to 8 bits is left: that of the full pixels averages out, that of the mean does not, and
    on the way from YCbCr to RGB the two chroma channels add theirs.
    """
    options = {} if mode == "L" else {"subsampling": 0}
    file = encoded(photo(160, 240, mode), "JPEG", quality=95, progressive=progressive, **options)
    full = images.decode(file).numpy()
    mean = full.reshape(160 // ratio, ratio, 240 // ratio, ratio, 3).mean((1, 3))
    got = images.preprocess(file, (160 // ratio, 240 // ratio)).numpy()
    assert np.abs(got - mean).max() < 2.5 / 255
    assert abs((got - mean).mean()) < 0.4 / 255


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 100),
    width=st.integers(1, 100),
    least=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    orientation=st.integers(1, 8),
)
def test_no_image_is_decoded_below_the_target(height, width, least, orientation):
    """The ratio is the largest in 1, 2, 4, 8 that leaves the target, whichever way up it is."""
    file = turned(encoded(Image.new("L", (width, height)), "JPEG"), orientation)
    swap = slice(None, None, -1 if orientation > 4 else 1)
    got = stored_shape(file, least)[swap]
    full = (height, width)[swap]
    ratio = max(r for r in (1, 2, 4, 8) if r == 1 or all(np.array(full) >= r * np.array(least)))
    assert got == tuple(-(-side // ratio) for side in full)
    assert ratio == 1 or all(np.array(got) >= least)


@settings(max_examples=40, deadline=None)
@given(
    short=st.integers(1, 15),
    long=st.integers(1, 60),
    lying=st.booleans(),
    orientation=st.integers(1, 8),
)
def test_below_twice_the_target_nothing_is_left_out(short, long, lying, orientation):
    """A JPEG less than twice as high or as wide as the target is exact to the last bit."""
    picture = photo(short, long) if lying else photo(long, short)
    file = turned(encoded(picture, "JPEG"), orientation)
    np.testing.assert_array_equal(
        images.preprocess(file, (8, 8)), images.preprocess(file, (8, 8), exact=True)
    )


def test_exact_decodes_in_full():
    """At twice the target `exact` takes every pixel; without it the result is another, but near."""
    file = encoded(photo(16, 16), "JPEG", quality=95, subsampling=0)
    full = images.resize(images.decode(file), (8, 8)).numpy()
    exact = images.loader((8, 8), exact=True)(file)
    shrunk = images.loader((8, 8))(file)
    np.testing.assert_allclose(exact, full, atol=1e-6)
    assert 0.001 < np.abs(shrunk - exact).max() < 0.1


@pytest.mark.parametrize("height", [160, 161, 163, 167])
def test_a_last_row_that_is_not_full_moves_nothing(height):
    """A ramp keeps its slope where libjpeg rounds the number of rows up."""
    ramp = np.linspace(20, 235, height)[:, None].repeat(160, axis=1).astype(np.uint8)
    file = encoded(Image.fromarray(ramp), "JPEG", quality=98)
    shrunk = images.preprocess(file, (20, 20)).numpy()
    exact = images.preprocess(file, (20, 20), exact=True).numpy()
    # One row of 20 more or less would be 0.04.
    assert stored_shape(file, (20, 20))[0] == -(-height // 8)
    # The outermost rows average over the edge, each in its way.
    np.testing.assert_allclose(shrunk[1:-1], exact[1:-1], atol=0.004)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (16, 16), (32, 32), (64, 64)])
def test_cut_files_are_refused_at_every_ratio(progressive, size):
    """A JPEG cut anywhere is refused for the same reason, however little of it would be used."""
    file = encoded(photo(64, 64), "JPEG", progressive=progressive, quality=60)
    exact, load = images.loader(size, exact=True), images.loader(size)
    load(file)
    for length in [*range(1, len(file), 31), len(file) - 2, len(file) - 1]:
        assert reason(load, file[:length]) == reason(exact, file[:length])


@settings(max_examples=100, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), min_size=1, max_size=6),
    progressive=st.booleans(),
)
def test_damaged_files_are_refused_or_read(flips, progressive):
    """Changed bytes give a picture or UnreadableImage when an eighth is decoded, too."""
    file = bytearray(encoded(photo(64, 64), "JPEG", progressive=progressive, quality=60))
    for at, change in flips:
        file[at % len(file)] ^= change
    try:
        pixels = images.loader((8, 8))(bytes(file))
    except images.UnreadableImage:
        return
    assert pixels.shape == (8, 8, 3)
    assert 0 <= pixels.min() <= pixels.max() <= 1


@pytest.mark.parametrize("name", [name for name in SAMPLES if not name.startswith("jpeg")])
def test_other_formats_are_always_exact(name):
    """Only JPEG has a shorter way."""
    np.testing.assert_array_equal(
        images.preprocess(SAMPLES[name], (8, 6)),
        images.preprocess(SAMPLES[name], (8, 6), exact=True),
    )


class Server(tf.Module):
    """Both kinds of string signature."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def shrunk(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Files in, pixels out."""
        return {"image": images.preprocess_batch(image_bytes, (10, 14))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def exact(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Files in, pixels out, decoded in full."""
        return {"image": images.preprocess_batch(image_bytes, (10, 14), exact=True)}


def test_serving_shrinks_as_training_does(tmp_path):
    """Saved and reloaded, either signature gives its loader's pixels to the last bit."""
    module = Server()
    signatures = {"shrunk": module.shrunk, "exact": module.exact}
    tf.saved_model.save(module, tmp_path, signatures=signatures)
    served = tf.saved_model.load(tmp_path).signatures
    files = [
        turned(encoded(photo(side, side + 30), "JPEG"), orientation)
        for side, orientation in [(9, 1), (25, 3), (50, 6), (90, 8), (121, 1)]
    ]
    answers = {}
    for name in signatures:
        load = images.loader((10, 14), exact=name == "exact")
        answers[name] = served[name](image_bytes=tf.constant(files))["image"].numpy()
        np.testing.assert_array_equal(answers[name], np.stack([load(file) for file in files]))
    assert np.abs(answers["shrunk"] - answers["exact"]).max((1, 2, 3))[1:].min() > 0
