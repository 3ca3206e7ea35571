"""Photograph-sized JPEGs out of the sample drawings, the same bytes for the same seed.

    python benchmarks/make_data.py --work build/bench [--quick]

Writes below the work folder:

photos/<label>/    four variants of every drawing at 500x375, 30 to 80 KB
changes/<round>/   other images for 1 % of those files, under the same names; one set a round
large/<label>/     200 at 3000x2000

A variant is a crop, perhaps mirrored, a little brighter or darker, with grain as a sensor has it:
without grain a drawing is a file of a few KB that decodes faster than any photograph. What lies
behind `_nohash_` in a name does not count for the split, so variants stay on one side of it.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SAMPLES = Path(__file__).resolve().parent.parent / "samples/clipart"
VARIANTS = 4
CHANGE_ROUNDS = 3
LARGE = 200
SEED = 20
# Fewer drawings of a label would leave a side of the split without it.
QUICK_DRAWINGS, QUICK_VARIANTS, QUICK_LARGE = 31, 1, 8


@dataclass(frozen=True, slots=True)
class Look:
    """How a set is rendered: pixels, the grain's standard deviation (of 255), JPEG quality.

    `coarse` is how many pixels wide a grain is, as a larger sensor's noise is smoothed by its
    own processing.
    """

    size: tuple[int, int]  # width, height
    grain: float
    coarse: int
    quality: int


PHOTO = Look((500, 375), 7.0, 1, 85)
LARGE_PHOTO = Look((3000, 2000), 9.0, 2, 85)


@dataclass(frozen=True, slots=True)
class Order:
    """One file to write: from which drawing, and the seed of its variation."""

    source: Path
    target: Path
    look: Look
    seed: tuple[int, ...]


def render(order: Order) -> int:
    """Write one file and give its size in bytes."""
    random = np.random.default_rng(order.seed)
    image = on_white(order.source)
    width, height = image.size
    left, top = random.uniform(0, 0.08, 2)
    right, bottom = random.uniform(0.92, 1, 2)
    box = (left * width, top * height, right * width, bottom * height)
    image = image.resize(order.look.size, Image.Resampling.BICUBIC, box=box)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(image, np.float32) * random.uniform(0.8, 1.0)
    pixels += grain(random, order.look)
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(
        buffer, "JPEG", quality=order.look.quality
    )
    order.target.write_bytes(buffer.getvalue())
    return len(buffer.getvalue())


def on_white(path: Path) -> Image.Image:
    """Open a drawing as RGB, what is transparent laid on white."""
    with Image.open(path) as image:
        layers = image.convert("RGBA")
    white = Image.new("RGBA", layers.size, "white")
    return Image.alpha_composite(white, layers).convert("RGB")


def grain(random: np.random.Generator, look: Look) -> np.ndarray:
    """Draw noise, float32 `[h,w,3]`: mostly of brightness, some of colour."""
    width, height = (side // look.coarse for side in look.size)
    brightness = random.standard_normal((height, width, 1), np.float32)
    colour = random.standard_normal((height, width, 3), np.float32)
    noise = look.grain * (brightness + 0.3 * colour)
    return noise.repeat(look.coarse, axis=0).repeat(look.coarse, axis=1)


def drawings(quick: bool) -> list[list[Path]]:
    """Give the sample drawings by label."""
    labels = sorted(folder for folder in SAMPLES.iterdir() if folder.is_dir())
    most = QUICK_DRAWINGS if quick else None
    return [sorted(path for path in label.iterdir() if path.is_file())[:most] for label in labels]


def photos(root: Path, by_label: list[list[Path]], variants: int) -> list[Order]:
    """Give the files of the main set."""
    return [
        Order(
            source,
            root / "photos" / source.parent.name / f"{number:03d}_nohash_{variant}.jpg",
            PHOTO,
            (SEED, label, number, variant),
        )
        for label, sources in enumerate(by_label)
        for number, source in enumerate(sources)
        for variant in range(variants)
    ]


def changes(root: Path, by_label: list[list[Path]], main_set: list[Order]) -> Iterator[Order]:
    """Give the files that take the place of some: other drawings of the same labels."""
    for turn in range(CHANGE_ROUNDS):
        for order in main_set[::100]:
            _, label, number, _ = order.seed
            other = by_label[label][(number + 1 + turn) % len(by_label[label])]
            target = root / f"changes/{turn}" / order.target.relative_to(root / "photos")
            yield Order(other, target, PHOTO, (*order.seed, 1 + turn))


def large(root: Path, by_label: list[list[Path]], count: int) -> Iterator[Order]:
    """Give the files of the large set, drawings of all labels."""
    flat = [source for sources in by_label for source in sources]
    for number in range(count):
        source = flat[number * len(flat) // count]
        target = root / "large" / source.parent.name / f"{number:03d}.jpg"
        yield Order(source, target, LARGE_PHOTO, (SEED + 1, number))


def make(root: Path, quick: bool) -> None:
    """Write all sets below `root`, unless they are there already."""
    stamp = root / "made.json"
    wanted = json.dumps(
        [SEED, VARIANTS, CHANGE_ROUNDS, LARGE, quick, asdict(PHOTO), asdict(LARGE_PHOTO)]
    )
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(root, ignore_errors=True)
    by_label = drawings(quick)
    main_set = photos(root, by_label, QUICK_VARIANTS if quick else VARIANTS)
    sets = {
        "photos": main_set,
        "changes": list(changes(root, by_label, main_set)),
        "large": list(large(root, by_label, QUICK_LARGE if quick else LARGE)),
    }
    with ProcessPoolExecutor() as pool:
        for name, orders in sets.items():
            for folder in {order.target.parent for order in orders}:
                folder.mkdir(parents=True)
            sizes = np.array(list(pool.map(render, orders, chunksize=8))) / 1e3
            print(
                f"{name}: {len(sizes)} files of {sizes.mean():.0f} KB "
                f"({sizes.min():.0f} to {sizes.max():.0f})",
                flush=True,
            )
    stamp.write_text(wanted)


def main() -> None:
    """Write the sets below `--work`/data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--quick", action="store_true", help="few images, to prove the scripts")
    options = parser.parse_args()
    make(options.work / "data", options.quick)


if __name__ == "__main__":
    main()
