"""The sample drawings with copies and wrong labels planted among them, and the truth about both.

    python benchmarks/planted.py TARGET [--source samples/clipart] [--seed 0]

Writes the data set to TARGET/<label>/ and what was done to it to TARGET/truth.json, which a listing
passes over. The same seed gives the same bytes. A copy lies under its original's label, in a file
whose name says nothing. An image is the original of one copy at most, and those whose label is
swapped have no copy: what finds the one is not helped, nor misled, by the other.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from make_data import SAMPLES, on_white
from PIL import Image

# What is cut off on each of the four sides.
CROP = 0.03


@dataclass(frozen=True, slots=True)
class Copy:
    """A planted copy; both names are relative to the data, `kind` is one of `KINDS`."""

    name: str
    original: str
    kind: str


@dataclass(frozen=True, slots=True)
class Swap:
    """An image that was moved to another label; `name` is where it lies now."""

    name: str
    label: str
    true_label: str


@dataclass(frozen=True, slots=True)
class Truth:
    """What was planted, in the order of the names."""

    seed: int
    copies: tuple[Copy, ...]
    swaps: tuple[Swap, ...]


Random = np.random.Generator


def jpeg(image: Image.Image, random: Random) -> tuple[bytes, str]:
    """Encode as a JPEG of a quality from 40 to 95."""
    return _encoded(image, "JPEG", quality=int(random.integers(40, 96))), ".jpg"


def png(image: Image.Image, random: Random) -> tuple[bytes, str]:
    """Encode without loss."""
    return _encoded(image, "PNG"), ".png"


def webp(image: Image.Image, random: Random) -> tuple[bytes, str]:
    """Encode as a lossy WebP of a quality from 40 to 95."""
    return _encoded(image, "WEBP", quality=int(random.integers(40, 96))), ".webp"


def resized(image: Image.Image, random: Random) -> tuple[bytes, str]:
    """Scale to 0.4 to 2 times the width and height, and encode as a JPEG."""
    scale = float(np.exp(random.uniform(np.log(0.4), np.log(2.0))))
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    return _encoded(small, "JPEG", quality=90), ".jpg"


def cropped(image: Image.Image) -> Image.Image:
    """Cut `CROP` off on every side."""
    width, height = image.size
    left, top = max(1, round(CROP * width)), max(1, round(CROP * height))
    return image.crop((left, top, width - left, height - top))


def mirrored(image: Image.Image) -> Image.Image:
    """Exchange left and right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def unchanged(image: Image.Image) -> Image.Image:
    """Give the picture as it is."""
    return image


def both(image: Image.Image) -> Image.Image:
    """Crop and mirror."""
    return mirrored(cropped(image))


Edit = Callable[[Image.Image], Image.Image]
Encode = Callable[[Image.Image, Random], tuple[bytes, str]]

RENAMED = "renamed"
RE_ENCODED = ("jpeg", "png", "webp", "resized")
# What is done to a picture, and how it is then written; None keeps the file's bytes.
KINDS: dict[str, tuple[Edit, Encode | None]] = {
    RENAMED: (unchanged, None),
    "jpeg": (unchanged, jpeg),
    "png": (unchanged, png),
    "webp": (unchanged, webp),
    "resized": (unchanged, resized),
    "cropped": (cropped, png),
    "mirrored": (mirrored, png),
    "cropped jpeg": (cropped, jpeg),
    "mirrored resized": (mirrored, resized),
    "cropped mirrored webp": (both, webp),
}


def plant(source: Path, target: Path, *, copies: int = 40, swaps: int = 30, seed: int) -> Truth:
    """Copy the data set `source` to the new folder `target` and change it there.

    Kinds of copies take turns. Raises FileExistsError where `target` is there, and ValueError where
    `source` has fewer images than are to be changed.
    """
    shutil.copytree(source, target)
    random = np.random.default_rng(seed)
    names = sorted(p.relative_to(target).as_posix() for p in target.glob("*/*") if p.is_file())
    chosen = [names[i] for i in random.permutation(len(names))]
    if len(chosen) < copies + swaps:
        raise ValueError(f"{len(chosen)} images, expected at least {copies + swaps}")
    kinds = list(KINDS)
    made = [_copy(target, chosen[i], kinds[i % len(kinds)], random) for i in range(copies)]
    moved = [_swap(target, name, random) for name in chosen[copies : copies + swaps]]
    truth = Truth(
        seed,
        tuple(sorted(made, key=lambda copy: copy.name)),
        tuple(sorted(moved, key=lambda swap: swap.name)),
    )
    (target / "truth.json").write_text(json.dumps(asdict(truth), indent=1) + "\n")
    return truth


def read_truth(target: Path) -> Truth:
    """Read what `plant` wrote into a folder."""
    known = json.loads((target / "truth.json").read_text())
    copies = tuple(Copy(**copy) for copy in known["copies"])
    return Truth(known["seed"], copies, tuple(Swap(**swap) for swap in known["swaps"]))


def _copy(target: Path, original: str, kind: str, random: Random) -> Copy:
    edit, encode = KINDS[kind]
    path = target / original
    if encode is None:
        contents, suffix = path.read_bytes(), path.suffix
    else:
        contents, suffix = encode(edit(on_white(path)), random)
    copy = _unused(path.parent, suffix, random)
    copy.write_bytes(contents)
    return Copy(copy.relative_to(target).as_posix(), original, kind)


def _swap(target: Path, name: str, random: Random) -> Swap:
    path = target / name
    labels = sorted(p.name for p in target.iterdir() if p.is_dir() and p.name != path.parent.name)
    label = labels[int(random.integers(len(labels)))]
    moved = path.rename(_unused(target / label, path.suffix, random))
    return Swap(moved.relative_to(target).as_posix(), label, path.parent.name)


def _unused(folder: Path, suffix: str, random: Random) -> Path:
    while (path := folder / f"{random.bytes(5).hex()}{suffix}").exists():
        pass
    return path


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def main() -> None:
    """Plant into a folder and count what was planted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--source", type=Path, default=SAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    truth = plant(options.source, options.target, seed=options.seed)
    print(f"{options.target}: {len(truth.copies)} copies, {len(truth.swaps)} swapped labels")


if __name__ == "__main__":
    main()
