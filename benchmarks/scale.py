"""What 10,000, 100,000 and 1,000,000 images cost beside their embedding: time and memory.

    python benchmarks/scale.py [--sizes 10000 100000 1000000] [--work DIR] [--docs docs]

Embeddings of 1,280 float32 are generated, all else is the job's own code. For each size one process
writes the embedding cache, as a cold run does, and a fresh one is the warm run: listing, index and
split, the cache's index, the embeddings into a memory-mapped file, the fit. The process keeps all
of it, as the job does. Exits with 1 when a process needs more than 12 GiB. One million needs 11 GB
of disk in DIR and about half an hour. Writes scale.md and scale.png into the documents.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from job.cache import EmbeddingCache, space_name
from job.catalogue import Known
from job.dataset import Split
from job.fit import Session
from job.index import build_index
from job.lbfgs import fit
from job.sources import folder_rows
from job.storage import Entry, open_store

LIMIT_GIB = 12
LABELS, WIDTH, BLOCK = 10, 1280, 4096
STEPS = {
    "generate": "embeddings generated (no part of a job)",
    "write": "cache written",
    "index": "listing, index, split",
    "look up": "cache's index read, every image looked up",
    "fetch": "embeddings from the cache to a memory-mapped file",
    "fit": "fit: penalty chosen, head at its optimum",
}
SPACE = space_name(benchmark="scale")


class Listing:
    """A bucket that has only a listing: so many images, evenly spread over the labels."""

    def __init__(self, size: int) -> None:
        self.uri = f"memory://{size}"
        self._size = size

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Give the objects sorted by name, as a bucket does."""
        for number in range(self._size):
            label = number * LABELS // self._size
            yield Entry(
                f"label{label}/{number:07}.jpg", 100_000, 1_700_000_000 + number, "AAAAAA=="
            )


def content(entry: Entry) -> Known:
    """Give what a cache knows of an object: the digest stands for that of its content."""
    return Known(hashlib.sha256(entry.name.encode()).hexdigest(), entry.crc32c)


class Generator:
    """Embeddings like those of a network: not negative, a few strong directions, many weak ones.

    The variances along the principal axes are close to those of EfficientNet-Lite0 on the sample
    drawings (11 at the first, 1.2 at the 32nd, 0.09 at the 256th); labels differ along the first
    64 of them, by so much that most images can be told apart.
    """

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        turn = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0]
        deviations = np.sqrt(11 * (1 + np.arange(WIDTH) / 8) ** -1.4)
        self._mix = (turn * deviations).T.astype(np.float32)
        self._centres = np.zeros((LABELS, WIDTH), np.float32)
        self._centres[:, :64] = 0.45 * random.normal(size=(LABELS, 64))

    def rows(self, first: int, classes: np.ndarray) -> np.ndarray:
        """Give float32 `[n,1280]` for images numbered from `first`; `classes` int `[n]`."""
        random = np.random.default_rng(first)
        rows = random.standard_normal((len(classes), WIDTH), np.float32) + self._centres[classes]
        return np.maximum(rows @ self._mix + np.float32(0.4), 0)


class Meter:
    """Seconds of each step and the most memory during it, from /proc/self/status in GiB.

    Memory-mapped pages count in `file`; the kernel takes them back when it needs them.
    """

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure what is done inside."""
        most = {"anonymous": 0.0, "file": 0.0, "total": 0.0}
        over = threading.Event()

        def watch() -> None:
            while True:
                last = over.wait(0.05)
                for key, value in memory().items():
                    most[key] = max(most[key], value)
                if last:
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            over.set()
            watcher.join()
        self.steps[name] = {"seconds": seconds} | most


def memory() -> dict[str, float]:
    """Give the resident memory of this process now, in GiB."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    kibs = {words[0]: int(words[1]) for words in lines if words[-1:] == ["kB"]}
    names = {"anonymous": "RssAnon:", "file": "RssFile:", "total": "VmRSS:"}
    return {key: kibs[name] / 2**20 for key, name in names.items()}


def write(size: int, work: Path) -> dict[str, object]:
    """Write the embedding cache, as the end of a cold run's stream does."""
    meter, generator = Meter(), Generator()
    cache = EmbeddingCache(open_store(str(work / "cache")), SPACE)
    cache.refresh()
    spent = 0.0
    entries = list(Listing(size).list())
    with meter.step("write"):
        for first in range(0, size, BLOCK):
            block = entries[first : first + BLOCK]
            start = time.perf_counter()
            rows = generator.rows(first, np.array([int(e.name[5]) for e in block]))
            spent += time.perf_counter() - start
            for entry, row in zip(block, rows, strict=True):
                cache.add(entry, content(entry), row)
        cache.flush()
    meter.steps["write"]["seconds"] -= spent
    meter.steps["generate"] = meter.steps["write"] | {"seconds": spent}
    return {"steps": meter.steps}


def job(size: int, work: Path) -> dict[str, object]:
    """Do what a warm run does between its listing and its evaluation."""
    meter = Meter()
    with meter.step("index"):
        index = build_index(folder_rows(Listing(size)), 10, 10)
    cache = EmbeddingCache(open_store(str(work / "cache")), SPACE)
    with meter.step("look up"):
        cache.refresh()
        # The sides lie one after the other, so that each is a slice.
        sides = {s: [e for e in index.examples if e.split is s] for s in Split}
        ordered = [example for side in sides.values() for example in side]
        known = [cache.known(example.entry) for example in ordered]
        wanted = {item.digest: (row,) for row, item in enumerate(known) if item}
    with meter.step("fetch"):
        features = np.memmap(work / "features", np.float32, "w+", shape=(size, WIDTH))
        missing = cache.fetch(wanted, features)
        features.flush()
    if missing or len(wanted) < size:
        raise SystemExit(f"{size - len(wanted) + len(missing)} embeddings are not in the cache")
    features = np.memmap(work / "features", np.float32, "r", shape=(size, WIDTH))
    classes = np.array([example.class_index for example in ordered])
    train, validation, test = np.split(
        np.arange(size), np.cumsum([len(sides[s]) for s in Split])[:2]
    )
    pairs = [
        (features[s[0] : s[-1] + 1], classes[s[0] : s[-1] + 1]) for s in (train, validation, test)
    ]
    penalties: list[int] = []
    with meter.step("fit"):
        fitted = fit(pairs[0], pairs[1], LABELS, session=Session(penalties.append))
    right = fitted.head.logits(pairs[2][0]).argmax(axis=1) == pairs[2][1]
    return {
        "steps": meter.steps,
        "train": len(train),
        "penalties": len(penalties),
        "iterations": fitted.iterations,
        "l2": fitted.l2,
        "gradient_norm": fitted.gradient_norm,
        "accuracy": float(right.mean()),
    }


PROCESSES = {"write": write, "job": job}


def run(process: str, size: int, work: Path) -> dict[str, object]:
    """Run one process afresh and give what it printed."""
    command = [sys.executable, __file__, "--process", process, "--sizes", str(size)]
    done = subprocess.run(
        [*command, "--work", str(work)], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    print(f"{size:9,} {process}: {done.stdout.strip()}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Measure every size, write the documents and judge the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--work", type=Path, help="a folder for 11 GB; by default a temporary one")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--process", choices=PROCESSES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        print(json.dumps(PROCESSES[options.process](options.sizes[0], options.work)))
        return 0
    results = {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.work, prefix="scale-") as work:
            found = {name: run(name, size, Path(work)) for name in PROCESSES}
        steps = found["write"]["steps"] | found["job"]["steps"]
        results[size] = found["job"] | {"steps": {name: steps[name] for name in STEPS}}
    from scale_page import write_page

    write_page(options.docs, results, STEPS, LIMIT_GIB)
    most = max(step["total"] for found in results.values() for step in found["steps"].values())
    print(f"most memory: {most:.2f} GiB, limit {LIMIT_GIB} GiB")
    return int(most > LIMIT_GIB)


if __name__ == "__main__":
    raise SystemExit(main())
