"""What one process can embed at most, and what it does embed.

    python benchmarks/limit.py --data FOLDER --module FOLDER [--rounds 6] [--batches 40]

Decoding alone (a thread a core) and the forward pass alone are timed in turn with `embed`, which
does both at once. Where they share the cores, no schedule embeds more images per second than
1 / (1/decode + 1/forward). Prints one JSON object a round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from job.backbone import Backbone, load_backbone
from job.dataset import Index
from job.embed import embed
from job.forward import Forward
from job.images import loader
from job.index import build_index
from job.progress import import_tensorflow
from job.sources import folder_rows
from job.storage import Store, open_store

BATCH = 32
THREADS = 32  # the default of --fetch-threads
# Images at each end of a stream that are not counted: there it fills and runs empty.
EDGE = 4 * BATCH


def main() -> None:
    """Print the rates of every round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--module", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batches", type=int, default=40)
    options = parser.parse_args()
    import_tensorflow()
    store = open_store(options.data)
    index = build_index(folder_rows(store), 10, 10)
    backbone = load_backbone(str(options.module), cache_dir=options.module.parent)
    index = replace(index, examples=index.examples[: options.batches * BATCH])
    files = [store.read(example.name) for example in index.examples]
    decode = loader(backbone.image_size)
    forward = Forward(backbone, BATCH)
    pixels = [decode(contents) for contents in files[: 4 * BATCH]]
    forward(pixels[:BATCH])
    for _ in range(options.rounds):
        rates = {
            "decode": decode_rate(decode, files),
            "forward": forward_rate(forward, pixels, options.batches),
            "embed": embed_rate(store, index, backbone),
        }
        print(json.dumps(rates), flush=True)


def decode_rate(decode: Callable[[bytes], np.ndarray], files: list[bytes]) -> float:
    """Give images per second with a thread for each core."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        start = time.perf_counter()
        for _ in pool.map(decode, files):
            pass
        return len(files) / (time.perf_counter() - start)


def forward_rate(forward: Forward, pixels: list[np.ndarray], batches: int) -> float:
    """Give images per second of forward passes, a batch on each core."""
    starts = itertools.islice(itertools.cycle(range(0, len(pixels) - BATCH + 1, BATCH)), batches)
    with ThreadPoolExecutor(forward.workers) as pool:
        start = time.perf_counter()
        for _ in pool.map(lambda at: forward(pixels[at : at + BATCH]), starts):
            pass
        return batches * BATCH / (time.perf_counter() - start)


def embed_rate(store: Store, index: Index, backbone: Backbone) -> float:
    """Give images per second of the job's own stream, while it is full."""
    times = [0.0]

    def advance(count: int) -> None:
        times.extend([time.perf_counter()] * count)

    embed(store, index, backbone, batch_size=BATCH, threads=THREADS, advance=advance)
    edge = min(EDGE, len(times) // 4)
    # Images are counted as they are decoded, a constant number ahead of the forward pass.
    return (len(times) - 1 - 2 * edge) / (times[-1 - edge] - times[edge])


if __name__ == "__main__":
    main()
