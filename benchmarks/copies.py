"""How many planted copies are found, and what else is taken for one.

    python benchmarks/copies.py [--seeds 5] [--copies 40] [--scale 100000]

Copies are planted among the sample drawings (benchmarks/planted.py) and looked for as a run does
it: embedded by the default backbone, traits rounded to float16 as in the cache of half the size. Of
the pairs found beside, some show one drawing twice, for the samples hold such: which these are was
decided by looking at each and is written down in benchmarks/same_drawing.txt. The rest is false.

Then, in a process of its own, time and memory for many images, generated: mixtures of two samples'
embeddings and fingerprints with noise, and of every hundredth a copy.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from make_data import SAMPLES
from planted import KINDS, RE_ENCODED, Truth, plant

from job.near import NEIGHBOURS, NearPairs, components, near_duplicates
from job.neighbours import nearest
from job.traits import TRAITS, fingerprints, traits

SEEN = Path(__file__).with_name("same_drawing.txt")
FEATURES = 1280
SAME, REAL, FALSE = "one file, or its planted copy", "one drawing, by looking", "false"


@dataclass(frozen=True, slots=True)
class Row:
    """One image as a run knows it: SHA-256, embedding float32 `[d]`, traits float16 `[TRAITS]`."""

    digest: str
    features: np.ndarray
    traits: np.ndarray


class Embedder:
    """Reads images with the default backbone, each content once."""

    def __init__(self) -> None:
        from job.backbone import load_backbone
        from job.config import DEFAULT_BACKBONE
        from job.forward import Forward
        from job.images import loader

        with tempfile.TemporaryDirectory() as cache:
            backbone = load_backbone(DEFAULT_BACKBONE, cache_dir=Path(cache))
        self._load, self._forward = loader(backbone.image_size), Forward(backbone, 32)
        self._known: dict[str, Row] = {}

    def __call__(self, paths: list[Path]) -> list[Row]:
        """Give a row for each file."""
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        new = {d: p for d, p in zip(digests, paths, strict=True) if d not in self._known}
        for start in range(0, len(new), 32):
            batch = list(new.items())[start : start + 32]
            pixels = [self._load(path.read_bytes()) for _, path in batch]
            for (digest, path), image, row in zip(
                batch, pixels, self._forward(pixels), strict=True
            ):
                kept = traits(path.read_bytes(), image).astype(np.float16)
                self._known[digest] = Row(digest, row, kept)
        return [self._known[digest] for digest in digests]


def drawings(root: Path, names: list[str], rows: list[Row], truth: Truth) -> list[str]:
    """Give the name of the sample that each image shows: files with the same bytes share one."""
    by_digest: dict[str, str] = {}
    for path in sorted(SAMPLES.glob("*/*")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        by_digest.setdefault(digest, path.relative_to(SAMPLES).as_posix())
    digests = {name: row.digest for name, row in zip(names, rows, strict=True)}
    originals = {copy.name: digests[copy.original] for copy in truth.copies}
    return [by_digest[originals.get(name, digests[name])] for name in names]


def seen() -> list[set[str]]:
    """Read which samples show one drawing: a line each, of names."""
    lines = SEEN.read_text().splitlines()
    return [set(line.split()) for line in lines if line and not line.startswith("#")]


def judged(pairs: NearPairs, shown: list[str]) -> Counter[tuple[str, str, str]]:
    """Count the pairs found by what they are and the two samples that they show."""
    families = seen()
    found: Counter[tuple[str, str, str]] = Counter()
    for i, j in zip(pairs.first, pairs.second, strict=True):
        one, other = sorted((shown[i], shown[j]))
        real = any({one, other} <= family for family in families)
        found[SAME if one == other else REAL if real else FALSE, one, other] += 1
    return found


def measure(seeds: int, copies: int, swaps: int) -> None:
    """Print what is found of each kind of copy, and what else, over several plantings."""
    embedder = Embedder()
    planted, paired, together = Counter[str](), Counter[str](), Counter[str]()
    found: Counter[tuple[str, str, str]] = Counter()
    largest = 0
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "data"
            truth = plant(SAMPLES, root, copies=copies, swaps=swaps, seed=seed)
            names = sorted(p.relative_to(root).as_posix() for p in root.glob("*/*"))
            rows = embedder([root / name for name in names])
        features = np.stack([row.features for row in rows])
        pairs = near_duplicates(features, fingerprints(np.stack([row.traits for row in rows])))
        groups = components(len(rows), pairs.edges)
        largest = max(largest, int(np.bincount(groups).max()))
        known = {*zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}
        for copy in truth.copies:
            i, j = sorted((names.index(copy.name), names.index(copy.original)))
            planted[copy.kind] += 1
            paired[copy.kind] += (i, j) in known
            together[copy.kind] += int(groups[i] == groups[j])
        found += judged(pairs, drawings(root, names, rows, truth))
    print(f"{seeds} plantings of {copies} copies and {swaps} swapped labels\n")
    print("| kind | planted | found | in its original's group |\n|---|--:|--:|--:|")
    rows_of = {kind: (kind,) for kind in KINDS}
    rows_of |= {"**encoded again**": RE_ENCODED, "**all**": tuple(KINDS)}
    for name, kinds in rows_of.items():
        counts = [sum(c[kind] for kind in kinds) for c in (planted, paired, together)]
        print(f"| {name} | {counts[0]} | {counts[1]} | {counts[2]} |")
    print_pairs(found, largest)


def print_pairs(found: Counter[tuple[str, str, str]], largest: int) -> None:
    """Print the pairs by what they are, and the false ones by name."""
    total = sum(found.values())
    print("\n| pairs that are | found | of all |\n|---|--:|--:|")
    for what in (SAME, REAL, FALSE):
        count = sum(n for (kind, *_), n in found.items() if kind == what)
        print(f"| {what} | {count} | {100 * count / total:.1f} % |")
    print(f"\nthe largest group has {largest} images")
    for (kind, one, other), count in sorted(found.items()):
        if kind == FALSE:
            print(f"false, {count} times: {one} {other}")


def generate(folder: Path, count: int) -> None:
    """Write `[count,FEATURES+TRAITS]` float32: mixtures of samples, one in a hundred a copy."""
    rows = Embedder()(sorted(SAMPLES.glob("*/*")))
    known = np.stack([np.concatenate([row.features, row.traits]) for row in rows])
    spread = known.std(axis=0)
    random = np.random.default_rng(0)
    table = np.memmap(folder / "rows", np.float32, "w+", shape=(count, known.shape[1]))
    for start in range(0, count, 1000):
        size = min(1000, count - start)
        one, other = random.integers(0, len(known), (2, size))
        share = random.uniform(0.5, 0.8, (size, 1))
        noise = spread * random.standard_normal((size, known.shape[1]))
        block = share * known[one] + (1 - share) * known[other] + 0.4 * noise
        table[start : start + size] = block
    copies, originals = random.permutation(count)[: 2 * (count // 100)].reshape(2, -1)
    noise = spread * random.standard_normal((len(copies), known.shape[1]))
    # What encoding again does to a sample: 0.97 of the embedding and 0.999 of the fingerprint.
    noise *= np.where(np.arange(known.shape[1]) < FEATURES, 0.2, 0.02)
    table[copies] = table[originals] + noise
    np.savez(folder / "truth.npz", copies=copies, originals=originals)


def scale(folder: Path) -> None:
    """Print time, memory and what was found for the generated rows."""
    table = np.memmap(folder / "rows", np.float32, "r").reshape(-1, FEATURES + TRAITS)
    features, prints = table[:, :FEATURES], fingerprints(table[:, FEATURES:])
    truth = np.load(folder / "truth.npz")
    before = peak_memory()
    start, worked = time.perf_counter(), time.process_time()
    pairs = near_duplicates(features, prints)
    groups = components(len(table), pairs.edges)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    peak = peak_memory()
    together = (groups[truth["copies"]] == groups[truth["originals"]]).mean()
    print(f"\n{len(table):,} generated images of {FEATURES} features, a memory map of both")
    print(f"near_duplicates and components: {seconds:.0f} s, {worked:.0f} s of CPU")
    print(f"at most {peak:,.0f} MiB, {before:,.0f} before, what is mapped of the file included")
    print(f"{100 * together:.2f} % of {len(truth['copies']):,} copies found in their group")
    print(
        f"{len(pairs.first):,} pairs in all, the largest group {np.bincount(groups).max()} images"
    )
    print(f"nearest: recall of the {NEIGHBOURS} nearest {recall(features):.3f}, 500 rows asked")


def peak_memory() -> float:
    """Give the most MiB that this process had in memory: getrusage would count its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def recall(features: np.ndarray) -> float:
    """Give the share of the true nearest rows that `nearest` names, for 500 rows."""
    indices, _ = nearest(features, NEIGHBOURS)
    centred = np.array(features) - features.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    asked = np.arange(0, len(features), len(features) // 500)[:500]
    similar = centred[asked] @ centred.T
    similar[np.arange(len(asked)), asked] = -1
    true = np.argpartition(-similar, NEIGHBOURS)[:, :NEIGHBOURS]
    return float(np.mean([np.isin(t, indices[a]).mean() for t, a in zip(true, asked, strict=True)]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=40)
    parser.add_argument("--swaps", type=int, default=30)
    parser.add_argument("--scale", type=int, default=0, help="images to generate")
    parser.add_argument("--scaled", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scaled:
        return scale(options.scaled)
    if options.seeds:
        measure(options.seeds, options.copies, options.swaps)
    if options.scale:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder), options.scale)
            sys.stdout.flush()
            subprocess.run([sys.executable, __file__, "--scaled", folder], check=True)
    return None


if __name__ == "__main__":
    main()
