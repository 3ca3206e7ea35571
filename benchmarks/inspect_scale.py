"""What `inspect` takes for 100,000 images whose embeddings are cached: a whole process.

    python benchmarks/inspect_scale.py [--images 100000] [--labels 20] [--work DIR]

The images are small files that the page's pictures are made of; their embeddings are generated and
put into the cache as a run would: clouds around a label's mean that overlap, 2 % of the labels
wrong, one image in a hundred a near duplicate of another. Prints the seconds of each phase, the
peak of the process's memory, and how much of what was planted was found. Needs 1 GB of disk in DIR.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suspects import SEPARATION, WIDTH, WRONG

from job.backbone import resolve
from job.catalogue import Known
from job.config import InspectConfig
from job.result import Result
from job.stages import open_cache
from job.storage import crc32c, open_store
from job.traits import TRAITS, traits

ROOT = Path(__file__).resolve().parent.parent
COPIES = 0.01
PICTURES = 500
BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Planted:
    """Which rows have a wrong label, and pairs of rows that are near duplicates."""

    names: list[str]
    wrong: np.ndarray
    copies: np.ndarray


def pictures() -> list[tuple[bytes, np.ndarray]]:
    """Make small pictures with something in them, and their traits."""
    random, made = np.random.default_rng(1), []
    for _ in range(PICTURES):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
        image = coarse.resize((64, 64), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        pixels = np.asarray(image, np.float32) / 255
        made.append((buffer.getvalue(), traits(buffer.getvalue(), pixels)))
    return made


def write(work: Path, n: int, labels: int) -> Planted:
    """Write the files, and the cache that has their embeddings."""
    random = np.random.default_rng(0)
    truth = random.integers(labels, size=n)
    wrong = random.random(n) < WRONG
    given = np.where(wrong, (truth + random.integers(1, labels, n)) % labels, truth)
    made = pictures()
    names = [f"label{label:02}/{row:06}.jpg" for row, label in enumerate(given)]
    for row, name in enumerate(names):
        (work / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        # What follows the end of a JPEG is not looked at: other bytes, the same picture.
        (work / "data" / name).write_bytes(made[row % PICTURES][0] + row.to_bytes(4, "big"))
    means = SEPARATION * random.normal(size=(labels, WIDTH))
    copies = random.permutation(n)[: 2 * int(COPIES * n)].reshape(-1, 2)
    original = dict(copies.tolist())
    time.sleep(3)  # the cache takes no file for settled that was changed a moment ago
    backbone = resolve(config(work).backbone, cache_dir=work).digest
    cache = open_cache(config(work), backbone, Result())
    if cache is None:
        raise RuntimeError("the configuration has a cache")
    entries = {entry.name: entry for entry in open_store(str(work / "data")).list()}

    def row_of(row: int) -> np.ndarray:
        seeded = np.random.default_rng([2, original.get(row, row)])
        noise = seeded.normal(size=WIDTH)
        noise[:40] *= 4
        features = np.maximum(0, means[truth[original.get(row, row)]] + noise)
        shown = made[original.get(row, row) % PICTURES][1]
        # No two pictures share a fingerprint, but for the copies.
        other = shown + np.where(np.arange(TRAITS) < 64, seeded.normal(size=TRAITS) * 0.05, 0)
        return np.concatenate([features * (1 + 0.02 * (row in original)), other])

    for row, name in enumerate(names):
        contents = (work / "data" / name).read_bytes()
        known = Known(sha256(contents).hexdigest(), crc32c(contents))
        cache.add(entries[name], known, row_of(row).astype(np.float32))
    cache.flush()
    return Planted(names, wrong, copies)


def config(work: Path) -> InspectConfig:
    """Give what `inspect` is asked to do."""
    return InspectConfig(
        data=(str(work / "data"),), cache=str(work / "cache"), output=str(work / "out")
    )


def main() -> None:
    """Write, inspect, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        planted = write(work, options.images, options.labels)
        command = [sys.executable, "-m", "job", "inspect", "--data", str(work / "data")]
        command += ["--cache", str(work / "cache"), "--output", str(work / "out")]
        start = time.perf_counter()
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(
            f"{options.images:,} images, {options.labels} labels: {seconds:.0f} s, {peak:.2f} GiB"
        )
        for line in ended.stderr.splitlines():
            said = json.loads(line)
            if "seconds" in said:
                print(f"  {said['phase']}: {said['seconds']:.1f} s")
        found = json.loads((work / "out" / "findings.json").read_text())
        report(planted, found)
        print(f"page: {(work / 'out' / 'index.html').stat().st_size / 2**20:.2f} MB")


def report(planted: Planted, found: dict[str, list[dict[str, object]]]) -> None:
    """Print how much of what was planted was found."""
    wrong = {planted.names[row] for row in np.flatnonzero(planted.wrong)}
    named = [suspect["name"] for suspect in found["suspects"]]
    first = sum(name in wrong for name in named[: len(wrong)])
    print(f"wrong labels: {len(wrong)}, {first} of them among as many first suspects")
    groups = [frozenset(map(str, group["names"])) for group in found["copies"]]  # type: ignore[call-overload]
    pairs = [{planted.names[a], planted.names[b]} for a, b in planted.copies]
    hits = sum(any(pair <= group for group in groups) for pair in pairs)
    print(f"near duplicates: {len(pairs)}, {hits} of them found in {len(groups)} groups")


if __name__ == "__main__":
    main()
