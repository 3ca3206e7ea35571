"""Copies are found however they were made, and what only looks alike is left alone."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from job.near import NEIGHBOURS, NearPairs, components, near_duplicates
from job.traits import fingerprints, mirrored, traits

CLIPART = Path(__file__).resolve().parent.parent / "samples/clipart"
DRAWINGS = sorted(CLIPART.glob("vehicle/*.jpg"))[::2] + sorted(CLIPART.glob("mammal/*.jpg"))[::2]


def seen(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Give features `[n,144]` of a simple kind, and fingerprints `[n,64]`.

    The features are where the edges are, summed over 12 x 12 cells and the same for mirror images:
    in place of an embedding, and like one not to be told from the low frequencies.
    """
    pixels = [np.asarray(i.convert("RGB").resize((96, 96)), np.float32) / 255 for i in images]
    grey = np.stack(pixels).mean(axis=3)
    edges = np.abs(np.diff(grey, axis=1, append=1)) + np.abs(np.diff(grey, axis=2, append=1))
    cells = edges.reshape(-1, 12, 8, 12, 8).sum(axis=(2, 4))
    features = (cells + cells[:, :, ::-1]).reshape(len(images), -1)
    return features, fingerprints(np.stack([traits(b"", p) for p in pixels]))


def opened(path: Path) -> Image.Image:
    """Open a drawing as RGB."""
    return Image.open(path).convert("RGB")


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    """The vehicles and mammals, every other one, no two of them alike."""
    return [opened(path) for path in DRAWINGS]


def cut(image: Image.Image, *shares: float) -> Image.Image:
    """Cut shares off on the left, top, right and bottom."""
    width, height = image.size
    left, top, right, bottom = shares
    return image.crop(
        (
            round(left * width),
            round(top * height),
            round((1 - right) * width),
            round((1 - bottom) * height),
        )
    )


EDITS = {
    "smaller": lambda image: image.resize((image.width // 2, image.height // 2)),
    "of fewer colours": lambda image: image.quantize(32).convert("RGB"),
    "cropped on all sides": lambda image: cut(image, 0.03, 0.03, 0.03, 0.03),
    "cropped in a corner": lambda image: cut(image, 0.03, 0.03, 0, 0),
    "mirrored": ImageOps.mirror,
    "mirrored and cropped": lambda image: cut(ImageOps.mirror(image), 0, 0.03, 0.03, 0),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_copy_is_found_among_drawings(edit: str, drawings: list[Image.Image]) -> None:
    """Of ten copies at least nine are found, and each tells whether it is a mirror image."""
    count = len(drawings)
    originals = range(3, count, count // 10)
    copies = [EDITS[edit](drawings[i]) for i in originals]
    found = near_duplicates(*seen([*drawings, *copies]))
    expected = {(i, count + place) for place, i in enumerate(originals)}
    told = dict(zip(zip(found.first, found.second, strict=True), found.mirrored, strict=True))
    right = [told[pair] for pair in expected & told.keys()]
    assert len(right) >= 0.9 * len(expected)
    # A few drawings are symmetric.
    assert np.mean(np.array(right) == edit.startswith("mirrored")) >= 0.8


def test_drawings_on_white_are_not_alike(drawings: list[Image.Image]) -> None:
    """Among the drawings themselves, a centred object on white each, there are at most two pairs.

    Two road signs are the same but for the symbol, which this stand-in for an embedding cannot see.
    """
    assert len(near_duplicates(*seen(drawings)).first) <= 2


def test_the_embedding_has_a_say(drawings: list[Image.Image]) -> None:
    """A copy by its fingerprint is none where the embedding is quite another."""
    features, prints = seen([*drawings, drawings[5].resize((100, 100))])
    assert 5 in near_duplicates(features, prints).first
    features[-1] = features.mean(axis=0) * 2 - features[5]
    assert len(drawings) not in near_duplicates(features, prints).second


def test_blank_pictures_are_nobodys_duplicates() -> None:
    """Forty even squares of three colours make no pairs, with or without a little noise."""
    random = np.random.default_rng(0)
    squares = []
    for place in range(40):
        colour = np.zeros((48, 48, 3)) + np.eye(3)[place % 3] * 200
        noise = random.integers(0, 13, colour.shape) if place % 2 else 0
        squares.append(Image.fromarray((colour + noise).astype(np.uint8)))
    assert len(near_duplicates(*seen(squares)).first) == 0


def test_a_frame_common_to_all_is_taken_off(drawings: list[Image.Image]) -> None:
    """Pictures that share seven eighths are told apart by the rest: no group has a tenth of them.

    Without the mean taken off, a third of them would be one group.
    """
    frame = drawings[0].resize((200, 200))
    framed = []
    for image in drawings[1:61]:
        picture = frame.copy()
        picture.paste(image.resize((70, 70)), (65, 65))
        framed.append(picture)
    found = near_duplicates(*seen([*framed, framed[7].resize((90, 90))]))
    assert (7, 60) in set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert np.bincount(components(61, found.edges)).max() <= 6


def test_pairs_come_once_in_order_and_never_with_oneself(drawings: list[Image.Image]) -> None:
    """`first` is below `second`, sorted, without repeats; the arrays have their dtypes."""
    found = near_duplicates(*seen(drawings[:40] + drawings[:20] + drawings[:10]))
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert len(pairs) >= 20 + 2 * 10
    assert pairs == sorted(set(pairs))
    assert (found.first < found.second).all()
    kinds = [getattr(found, field.name).dtype for field in fields(NearPairs)]
    assert kinds == [np.int64, np.int64, np.float32, bool]


def test_more_copies_than_neighbours_are_one_group(drawings: list[Image.Image]) -> None:
    """A burst of half as many again as each image is compared with stays together."""
    count = 3 * NEIGHBOURS // 2
    burst = [cut(drawings[0], share, 0, 0, 0) for share in np.linspace(0, 0.03, count)]
    groups = components(60 + count, near_duplicates(*seen(drawings[1:61] + burst)).edges)
    assert len(set(groups[60:].tolist())) == 1


@cache
def _thirty_and_fifteen_copies() -> tuple[np.ndarray, np.ndarray]:
    images = [opened(path) for path in DRAWINGS[:30]]
    mirror_images = [ImageOps.mirror(image) for image in images[:10]]
    return seen([*images, *mirror_images, *map(EDITS["smaller"], images[10:15])])


@given(st.permutations(range(45)))
@settings(deadline=None, max_examples=15)
def test_images_in_another_order_make_the_same_pairs(order: list[int]) -> None:
    """Permuting the images permutes the pairs, and which of them are mirrored."""
    features, prints = _thirty_and_fifteen_copies()
    straight, moved = (
        near_duplicates(features, prints),
        near_duplicates(features[order], prints[order]),
    )
    back = np.array(order)
    ends = np.sort(np.stack([back[moved.first], back[moved.second]]), axis=0)
    said = {(*pair, flag) for *pair, flag in zip(*ends.tolist(), moved.mirrored, strict=True)}
    assert said == set(zip(straight.first, straight.second, straight.mirrored, strict=True))
    assert len(said) >= 15


def test_mirroring_every_image_changes_nothing(drawings: list[Image.Image]) -> None:
    """The pairs among mirror images are those among the images, with the same features."""
    features, prints = seen(drawings[:50] + [ImageOps.mirror(i) for i in drawings[:9]])
    straight = near_duplicates(features, prints)
    turned = near_duplicates(features, mirrored(prints))
    assert len(straight.first) >= 9
    assert (straight.first == turned.first).all()
    assert (straight.second == turned.second).all()
    assert (straight.mirrored == turned.mirrored).all()


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_images_make_no_pairs(n: int) -> None:
    """Nothing and one image are no error."""
    found = near_duplicates(np.zeros((n, 8), np.float32), np.zeros((n, 64), np.float32))
    assert len(found.first) == 0
    assert components(n, found.edges).tolist() == [0] * n


def pairs_of(*ends: tuple[int, int]) -> NearPairs:
    """Give pairs of rows, all alike and none mirrored."""
    first, second = (np.array([pair[side] for pair in ends], np.int64) for side in (0, 1))
    return NearPairs(first, second, np.ones(len(ends), np.float32), np.zeros(len(ends), bool))


def test_groups_are_numbered_by_their_first_rows() -> None:
    """Chains make one group, whichever call named their links; rows alone are groups too."""
    assert components(7, pairs_of((1, 5), (4, 6)).edges).tolist() == [0, 1, 2, 3, 4, 1, 4]
    chain = np.array([(1, 5), (5, 3)])
    assert components(7, chain).tolist() == [0, 1, 2, 1, 3, 1, 4]
    assert components(3, np.empty((0, 2), np.int64)).tolist() == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=14))
def test_groups_are_the_same_whatever_the_order_of_the_pairs(ends: list[tuple[int, int]]) -> None:
    """Both rows of each pair share a group, and turning everything round changes no number."""
    groups = components(12, pairs_of(*ends).edges)
    assert all(groups[a] == groups[b] for a, b in ends)
    assert (components(12, pairs_of(*[(b, a) for a, b in reversed(ends)]).edges) == groups).all()
    starts = np.unique(groups, return_index=True)[1]
    assert (np.diff(starts) > 0).all()
