"""What decoding JPEGs at a part of their size saves, and what it changes.

    python benchmarks/decode.py [--files 60] [--rounds 3] [--compare 120] [--seeds 5]

Prints Markdown tables, all on the sample drawings enlarged (see make_data.py).

Rate: decode and resize to the backbone's size, files in memory, one thread a core as in a run, both
ways in turns; medians. Embeddings: the distance from those of the files decoded in full, as a part
of their length, beside that of two things nobody would think twice about: saving the file again at
quality 90, and reading and resizing it with Pillow. Accuracy: as crossvalidate.py, all drawings.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from crossvalidate import score
from make_data import LARGE_PHOTO, PHOTO, Look, Order, drawings, render
from measure import machine

from job.backbone import Backbone, load_backbone
from job.config import DEFAULT_BACKBONE
from job.evaluate import wilson
from job.forward import Forward
from job.images import loader

# Grain makes a file long, and its Huffman codes are read in full at every ratio.
RATE_LOOKS = (PHOTO, LARGE_PHOTO, Look((3000, 2000), 0.0, 1, 85))
# The last is the worst there is for 224 pixels: decoded at half, nothing is left to resize.
LOOKS = (LARGE_PHOTO, Look((1500, 1125), 9.0, 1, 85), Look((1000, 750), 9.0, 1, 85))
WORST = Look((448, 448), 7.0, 1, 85)
FOLDS = 5

Decode = Callable[[bytes], np.ndarray]


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=60, help="of each size, for the rates")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compare", type=int, default=120, help="files, for the embeddings")
    parser.add_argument("--seeds", type=int, default=5, help="shuffles, for the accuracy")
    options = parser.parse_args()
    facts = machine()
    busy = f"load {os.getloadavg()[0]:.1f} before"
    print(f"{time.strftime('%Y-%m-%d')}, {facts['cpu']}, {facts['cores']} cores, {busy}")
    with tempfile.TemporaryDirectory() as folder:
        backbone = load_backbone(DEFAULT_BACKBONE, cache_dir=Path(folder))
        rates(Path(folder), backbone.image_size, options.files, options.rounds)
        distances(Path(folder), backbone, options.compare)
        accuracies(Path(folder), backbone, options.seeds)


def enlarged(folder: Path, look: Look, count: int | None = None) -> tuple[list[bytes], np.ndarray]:
    """Render `count` of the drawings, of all labels (None: every one); files and class indices."""
    flat = [(path, label) for label, paths in enumerate(drawings(False)) for path in paths]
    if count is not None:
        flat = [flat[number * len(flat) // count] for number in range(count)]
    orders = [
        Order(path, folder / f"{number}.jpg", look, (30, number))
        for number, (path, _) in enumerate(flat)
    ]
    with ProcessPoolExecutor() as pool:
        list(pool.map(render, orders, chunksize=8))
    files = [order.target.read_bytes() for order in orders]
    return files, np.array([label for _, label in flat])


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds on the clock, and of all cores together."""

    wall: float
    cpu: float


def rates(folder: Path, size: tuple[int, int], count: int, rounds: int) -> None:
    """Print files a second and CPU time, decoded in full and in part."""
    print(
        f"\n| {count} files | KB each | decoded | files/s | CPU ms each | times as fast | by CPU |"
    )
    print("|---|---|---|---|---|---|---|")
    ways = {exact: loader(size, exact=exact) for exact in (True, False)}
    for look in RATE_LOOKS:
        files, _ = enlarged(folder, look, count)
        took: dict[bool, list[Took]] = {True: [], False: []}
        for load in ways.values():
            load(files[0])
        for _ in range(rounds):
            for exact, load in ways.items():
                took[exact].append(timed(load, files))
        full, part = (middle(took[exact]) for exact in (True, False))
        start = f"| {name(look)} | {sum(map(len, files)) / count / 1e3:.0f}"
        for way, one in (("exact", full), ("by ratio", part)):
            rate, cpu = count / one.wall, one.cpu / count * 1e3
            gain = f"{full.wall / one.wall:.2f} | {full.cpu / one.cpu:.2f}"
            print(f"{start} | {way} | {rate:.1f} | {cpu:.1f} | {gain} |", flush=True)


def timed(load: Decode, files: list[bytes]) -> Took:
    """Time all files, in as many threads as there are cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in pool.map(load, files):
            pass
        return Took(time.perf_counter() - wall, time.process_time() - cpu)


def middle(rounds: list[Took]) -> Took:
    """Give the medians."""
    return Took(median(one.wall for one in rounds), median(one.cpu for one in rounds))


def distances(folder: Path, backbone: Backbone, count: int) -> None:
    """Print how far embeddings are from the exact ones."""
    print(f"\n| {count} files | against exact | 1-cosine, mean | max | distance, mean | max |")
    print("|---|---|---|---|---|---|")
    forward = Forward(backbone)
    exact = loader(backbone.image_size, exact=True)
    others: dict[str, Decode] = {
        "by ratio": loader(backbone.image_size),
        "saved again, quality 90": lambda file: exact(saved_again(file)),
        "read and resized by Pillow": lambda file: by_pillow(file, backbone.image_size),
    }
    for look in (*LOOKS, WORST):
        files, _ = enlarged(folder, look, count)
        reference = embedded(forward, exact, files)
        norm = np.linalg.norm(reference, axis=1)
        for way, decode in others.items():
            other = embedded(forward, decode, files)
            cosine = 1 - (reference * other).sum(1) / norm / np.linalg.norm(other, axis=1)
            relative = np.linalg.norm(reference - other, axis=1) / norm
            figures = (cosine.mean(), cosine.max(), relative.mean(), relative.max())
            cells = " | ".join(f"{max(figure, 0):.5f}" for figure in figures)
            print(f"| {name(look)} | {way} | {cells} |", flush=True)


def accuracies(folder: Path, backbone: Backbone, seeds: int) -> None:
    """Print the cross-validated accuracy of heads on either kind of embeddings."""
    print(
        f"\n| all drawings | decoded | accuracy, {FOLDS} folds, {seeds} shuffles | 95 % interval |"
    )
    print("|---|---|---|---|")
    forward = Forward(backbone)
    for look in (LOOKS[1], WORST):
        files, classes = enlarged(folder, look)
        for exact in (True, False):
            features = embedded(forward, loader(backbone.image_size, exact=exact), files)
            hits = [score(features, classes, FOLDS, seed) for seed in range(seeds)]
            low, high = wilson(round(float(np.mean(hits))), len(classes))
            print(
                f"| {name(look)} | {'exact' if exact else 'by ratio'} "
                f"| {np.mean(hits) / len(classes):.4f} | {low:.3f} to {high:.3f} |",
                flush=True,
            )


def embedded(forward: Forward, decode: Decode, files: list[bytes]) -> np.ndarray:
    """Embed files, float32 [n,d]."""

    def batches() -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for start in range(0, len(files), forward.batch_size):
                yield forward(list(pool.map(decode, files[start : start + forward.batch_size])))

    return np.concatenate(list(batches()))


def saved_again(file: bytes) -> bytes:
    """Decode a JPEG and save it at quality 90."""
    out = io.BytesIO()
    Image.open(io.BytesIO(file)).save(out, "JPEG", quality=90)
    return out.getvalue()


def by_pillow(file: bytes, size: tuple[int, int]) -> np.ndarray:
    """Read and resize with Pillow, which rounds to 8 bits, float32 [*size,3] in [0,1]."""
    picture = Image.open(io.BytesIO(file)).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture, np.float32) / 255


def name(look: Look) -> str:
    """Give a set its size for a name."""
    return "x".join(map(str, look.size)) + ("" if look.grain else ", no grain")


if __name__ == "__main__":
    main()
