"""Distortions are what retrain.py's formula says, and the same for the same file everywhere."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, jpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp, kstest

from job.distort import Distortion, distort, distort_batch, padded_size, view_loader, view_name
from job.errors import ConfigError
from job.formats import Size
from job.images import UnreadableImage, loader

SIZE = (48, 64)
ALL = Distortion(flip_left_right=True, random_crop=25, random_scale=50, random_brightness=40)
SEEDS = np.stack([np.arange(1000) ** 3 - 500, np.arange(1000) % 4], axis=1)

percents = st.floats(0, 100)
distortions = st.builds(Distortion, st.booleans(), percents, percents, percents)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
seeds = st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2)


def noise(size: Size, seed: int = 0) -> np.ndarray:
    """Draw an image, float32 `[*size,3]` in [0,1]."""
    return np.random.default_rng(seed).random((*size, 3)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was done to each image: sizes and corners int `[n,2]`, flips bool `[n]`, factors `[n]`.

    Corners are those of the window before the flip.
    """

    resized: np.ndarray
    corner: np.ndarray
    flipped: np.ndarray
    factor: np.ndarray


def reveal(distortion: Distortion, some: np.ndarray, size: Size = SIZE) -> Drawn:
    """Read off what `distort_batch` draws, from an image whose pixels say where they are.

    Resizing keeps a ramp, but near the edges, nearly as it is: its slope in the middle says how
    much smaller the image has become, and where it would be 0 says where it was cut.
    """
    height, width = padded_size(size, distortion)
    down, across = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    ramps = np.stack([*np.meshgrid(down / 2, across / 2, indexing="ij")], axis=-1)
    image = np.dstack([ramps, np.full((height, width), 0.5)]).astype(np.float32)

    @tf.function(autograph=False)
    def distorted(seeds: tf.Tensor) -> tf.Tensor:
        images = tf.repeat(image[None], len(some), axis=0)
        return distort_batch(images, distortion, seeds, size)

    views = distorted(tf.constant(some)).numpy().astype(np.float64)
    factor = 2 * views[:, 0, 0, 2]
    flipped = views[:, 0, 0, 1] > views[:, 0, -1, 1]
    views[flipped] = views[flipped, :, ::-1]
    resized, corner = [], []
    for axis, side in enumerate(size):
        line = np.moveaxis(views[..., axis], 1 + axis, 1)[:, :, 0] * 2 / factor[:, None]
        middle = np.arange(side // 6, side - side // 6)
        slope, start = np.polynomial.polynomial.polyfit(middle + 0.5, line[:, middle].T, 1)[::-1]
        resized.append(1 / slope)
        corner.append(start / slope)
    found = np.stack(resized, axis=1), np.stack(corner, axis=1)
    for numbers in found:
        assert np.abs(numbers - numbers.round()).max() < 0.2
    return Drawn(found[0].round().astype(int), found[1].round().astype(int), flipped, factor)


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """What is drawn for all of `SEEDS`."""
    return reveal(ALL, SEEDS)


def expected(image: np.ndarray, drawn: Drawn, item: int, size: Size = SIZE) -> np.ndarray:
    """Do to an image what was drawn, by Pillow and NumPy: all of it is resized, then cut."""
    height, width = (int(side) for side in drawn.resized[item])
    channels = [
        Image.fromarray(image[..., channel]).resize((width, height), Image.Resampling.BILINEAR)
        for channel in range(3)
    ]
    top, left = drawn.corner[item]
    window = np.stack(channels, axis=-1)[top : top + size[0], left : left + size[1]]
    window = window[:, ::-1] if drawn.flipped[item] else window
    return np.clip(window * drawn.factor[item], 0, 1)


def test_pixels_are_those_of_an_image_resized_cut_flipped_and_multiplied(drawn: Drawn) -> None:
    """The whole of retrain.py's formula, by other means, but that values end at 1."""
    image = noise(padded_size(SIZE, ALL))
    clipped = 0
    for item, seed in enumerate(SEEDS[:40]):
        view = distort(tf.constant(image), ALL, tf.constant(seed), SIZE).numpy()
        assert view == pytest.approx(expected(image, drawn, item), abs=1e-4)
        clipped += int((view == 1).sum())
    assert clipped > 0
    assert 0 < drawn.flipped[:40].sum() < 40


def test_sizes_and_windows_are_drawn_as_by_retrain(drawn: Drawn) -> None:
    """Sizes are floor(S * margin * uniform), one factor for both axes; windows lie anywhere."""
    factors = 1.25 * np.random.default_rng(0).uniform(1, 1.5, 20_000)
    for axis, side in enumerate(SIZE):
        assert drawn.resized[:, axis].min() >= int(side * 1.25)
        assert drawn.resized[:, axis].max() <= int(side * 1.25 * 1.5)
        assert ks_2samp(drawn.resized[:, axis], np.floor(side * factors)).pvalue > 0.01
        spare = drawn.resized[:, axis] - side
        assert (drawn.corner[:, axis] >= 0).all()
        assert (drawn.corner[:, axis] <= spare).all()
        assert (drawn.corner[:, axis] == 0).any()
        assert (drawn.corner[:, axis] == spare).any()
        # Within one place of its window a corner is uniform too.
        jitter = np.random.default_rng(axis).random(len(SEEDS))
        assert kstest((drawn.corner[:, axis] + jitter) / (spare + 1), "uniform").pvalue > 0.01
    shape = drawn.resized[:, 0] / SIZE[0] - drawn.resized[:, 1] / SIZE[1]
    assert np.abs(shape).max() < 1 / SIZE[0]


def test_flips_and_brightness_are_drawn_as_by_retrain(drawn: Drawn) -> None:
    """Half are flipped; factors are uniform between 0.6 and 1.4 at 40 %."""
    assert 460 <= drawn.flipped.sum() <= 540
    assert kstest(drawn.factor, "uniform", args=(0.6, 0.8)).pvalue > 0.01
    assert drawn.factor.min() >= 0.6 - 1e-6
    assert drawn.factor.max() <= 1.4 + 1e-6


def test_draws_do_not_go_together(drawn: Drawn) -> None:
    """Size, place, flip and brightness are five numbers, not one that is used five times."""
    place = drawn.corner / (drawn.resized - SIZE)
    numbers = [drawn.resized[:, 0], *place.T, drawn.flipped, drawn.factor]
    correlations = np.corrcoef(np.array(numbers, np.float64)) - np.eye(5)
    assert np.abs(correlations).max() < 0.1


def test_a_draw_does_not_depend_on_the_other_distortions() -> None:
    """Who adds brightness to a flip has the same images flipped."""
    both = Distortion(flip_left_right=True, random_brightness=20)
    for one, field in ((Distortion(True), "flipped"), (Distortion(random_brightness=20), "factor")):
        found = getattr(reveal(one, SEEDS[:50]), field)
        assert found == pytest.approx(getattr(reveal(both, SEEDS[:50]), field))


def test_the_draws_are_those_of_this_version() -> None:
    """What caches hold was made with these; other ones, of a new TensorFlow, need a new version."""
    drawn = reveal(ALL, np.array([[1, 2], [-(2**60), 1]]))
    assert drawn.resized.tolist() == [[82, 110], [73, 97]]
    assert drawn.corner.tolist() == [[33, 8], [16, 7]]
    assert drawn.flipped.tolist() == [False, True]
    assert drawn.factor == pytest.approx([1.011850, 1.370946], abs=1e-5)


@settings(deadline=None, max_examples=50)
@given(distortions, sizes, seeds, st.integers(0, 9))
def test_values_stay_between_0_and_1(
    distortion: Distortion, size: Size, seed: tuple[int, int], image_seed: int
) -> None:
    """Whatever is drawn, a view is float32 of the size asked for, and bright pixels end at 1."""
    image = noise(padded_size(size, distortion), image_seed)
    view = distort(tf.constant(image), distortion, tf.constant(seed, tf.int64), size).numpy()
    assert (view.shape, view.dtype) == ((*size, 3), np.float32)
    assert view.min() >= 0
    assert view.max() <= 1


@given(sizes, st.integers(0, 100), st.integers(0, 100))
def test_the_padded_size_is_the_largest_that_retrain_resizes_to(
    size: Size, crop: int, scale: int
) -> None:
    """In exact fractions, rounded down."""
    factor = (1 + Fraction(crop, 100)) * (1 + Fraction(scale, 100))
    padded = padded_size(size, Distortion(random_crop=crop, random_scale=scale))
    assert padded == tuple(int(side * factor) for side in size)


@pytest.mark.parametrize("crop", [1, 10, 15, 100])
def test_what_is_only_cut_keeps_its_pixels(crop: int) -> None:
    """Without a scale a view is a window of the decoded image, to the bit."""
    distortion = Distortion(random_crop=crop)
    image = noise(padded_size(SIZE, distortion))
    drawn = reveal(distortion, SEEDS[:20])
    views = tf.function(distort_batch)(
        tf.repeat(image[None], 20, axis=0), distortion, tf.constant(SEEDS[:20]), SIZE
    )
    for view, (top, left) in zip(views.numpy(), drawn.corner, strict=True):
        assert np.array_equal(view, image[top : top + SIZE[0], left : left + SIZE[1]])


def test_what_is_only_flipped_keeps_its_pixels() -> None:
    """Half of the views are the image and half its mirror image, to the bit."""
    image = noise(SIZE)
    flipped = 0
    for seed in SEEDS[:40]:
        view = distort(tf.constant(image), Distortion(True), tf.constant(seed), SIZE).numpy()
        mirrored = np.array_equal(view, image[:, ::-1])
        assert mirrored or np.array_equal(view, image)
        flipped += mirrored
    assert 10 < flipped < 30


@pytest.mark.parametrize("exact", [False, True])
def test_no_distortion_gives_the_pixels_of_the_image(exact: bool) -> None:
    """The same bytes as `images.loader`, whether the file is enlarged or made smaller."""
    for seed, side in enumerate((20, 64, 200)):
        contents = jpeg((200, 30, 90), seed, side)
        plain = loader(SIZE, exact=exact)(contents)
        view = view_loader(SIZE, Distortion(), 1, exact=exact)(contents)
        assert plain.tobytes() == view.tobytes()


def test_a_batch_in_a_graph_is_its_images_one_by_one() -> None:
    """To the bit: embeddings of a view do not depend on how it was made."""
    images = np.stack([noise(padded_size(SIZE, ALL), seed) for seed in range(9)])
    some = SEEDS[:9].astype(np.int32)
    batch = tf.function(lambda images, some: distort_batch(images, ALL, some, SIZE))
    together = batch(tf.constant(images), tf.constant(some)).numpy()
    for image, seed, view in zip(images, some, together, strict=True):
        alone = distort(tf.constant(image), ALL, tf.constant(seed, tf.int64), SIZE).numpy()
        assert alone.tobytes() == view.tobytes()
    assert batch(tf.constant(images[:0]), tf.constant(some[:0])).shape == (0, *SIZE, 3)


def test_an_image_of_another_size_is_refused() -> None:
    """One that was not decoded at `padded_size` would be scaled wrongly without a word."""
    with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible"):
        distort(tf.constant(noise(SIZE)), ALL, tf.constant([1, 1]), SIZE)
    with pytest.raises(ValueError, match="must be equal, but are 90 and 48"):
        tf.function(distort)(tf.constant(noise(SIZE)), ALL, tf.constant([1, 1]), SIZE)


def test_views_of_a_file_are_seeded_by_its_content_and_their_number() -> None:
    """Each file and each number draws anew; the file is decoded at the padded size."""
    files = [jpeg((200, 120, 40), seed, 150) for seed in range(2)]
    decode, seen = loader(padded_size(SIZE, ALL)), set()
    for file in files:
        content = int.from_bytes(hashlib.blake2b(file, digest_size=8).digest(), "little")
        for view in (1, 2):
            seed = tf.constant(np.array([content, view], np.uint64).astype(np.int64))
            wanted = distort(tf.constant(decode(file)), ALL, seed, SIZE).numpy().tobytes()
            assert view_loader(SIZE, ALL, view)(file).tobytes() == wanted
            seen.add(wanted)
    assert len(seen) == 4


PROGRAM = """
import hashlib, sys
from job.distort import Distortion, view_loader
load = view_loader((48, 64), Distortion(True, 25, 50, 40), 3)
print(hashlib.sha256(load(sys.stdin.buffer.read()).tobytes()).hexdigest())
"""


def test_another_process_draws_the_same() -> None:
    """Neither Python's hash seed nor the number of threads is in a view."""
    contents = jpeg((10, 200, 100), 5, 300)
    here = hashlib.sha256(view_loader(SIZE, ALL, 3)(contents).tobytes()).hexdigest()
    settings = {"TF_USE_LEGACY_KERAS": "1", "TF_NUM_INTRAOP_THREADS": "1", "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=contents, stdout=subprocess.PIPE, check=True,
        cwd=ROOT, env=os.environ | settings,
    )  # fmt: skip
    assert done.stdout.decode().strip() == here


def test_many_threads_may_load_at_once() -> None:
    """Each gets the view of its own file."""
    contents = [jpeg((90, 90, 90), seed, 60) for seed in range(40)]
    load = view_loader(SIZE, ALL, 1)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(load, contents))
    for file, view in zip(contents, together, strict=True):
        assert load(file).tobytes() == view.tobytes()


def test_what_the_plain_loader_refuses_is_refused_alike() -> None:
    """No image, a cut one, and one of too many pixels, each for the same reason."""
    large = io.BytesIO()
    Image.new("RGB", (300, 300)).save(large, "PNG")
    for contents in (b"", b"no image", jpeg((1, 2, 3), 0)[:300], large.getvalue()):
        reasons = []
        for load in (
            loader(SIZE, max_pixels=80_000),
            view_loader(SIZE, ALL, 1, max_pixels=80_000),
        ):
            with pytest.raises(UnreadableImage) as caught:
                load(contents)
            reasons.append(caught.value.reason)
        assert reasons[0] == reasons[1]


def test_names_differ_where_pixels_do() -> None:
    """Each option and the number is in a view's name; 10 and 10.0 are one."""
    some = [Distortion(), Distortion(True), Distortion(random_crop=1), Distortion(random_scale=1)]
    some += [Distortion(random_brightness=1), Distortion(random_brightness=1.0000000001), ALL]
    names = {view_name(distortion, view) for distortion in some for view in (1, 2)}
    assert len(names) == 2 * len(some)
    assert view_name(Distortion(random_crop=10), 1) == view_name(Distortion(random_crop=10.0), 1)


def test_only_a_distortion_that_is_none_is_not_any() -> None:
    """Each option alone makes one."""
    assert not Distortion(False, 0.0, 0, 0.0).is_any
    for name, value in (
        ("flip_left_right", True),
        ("random_crop", 0.5),
        ("random_scale", 1),
        ("random_brightness", 100),
    ):
        assert Distortion(**{name: value}).is_any


@pytest.mark.parametrize("value", [-1, 100.5, float("nan")])
@pytest.mark.parametrize("name", ["random_crop", "random_scale", "random_brightness"])
def test_a_percentage_that_is_none_is_refused(name: str, value: float) -> None:
    """The error names the option."""
    with pytest.raises(ConfigError, match=f"{name} is .*expected 0 to 100"):
        Distortion(**{name: value})
