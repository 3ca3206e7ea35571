"""Time the job's own forward pass, and leave what another runtime needs for a fair comparison.

    python benchmarks/forward_regraft.py --data FOLDER --module FOLDER --graph FILE --out FILE.npz

The file gets `images`, one batch of decoded images, float32 `[32,224,224,3]` in [0,1], and
`predictions`, what TensorFlow makes of them with the frozen graph, float32 `[32,c]`. Prints
images per second as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from job.backbone import load_backbone
from job.forward import Forward
from job.images import loader
from job.index import build_index
from job.progress import import_tensorflow
from job.sources import folder_rows
from job.storage import open_store

BATCH = 32
WARM_UP = 3


def main() -> None:
    """Print the rate and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    for name in ("--module", "--graph", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    import_tensorflow()
    store = open_store(options.data)
    backbone = load_backbone(str(options.module), cache_dir=options.module.parent)
    decode = loader(backbone.image_size)
    examples = build_index(folder_rows(store), 10, 10).examples
    images = [decode(store.read(e.name)) for e in examples[:: len(examples) // BATCH][:BATCH]]
    forward = Forward(backbone, BATCH)
    with ThreadPoolExecutor(forward.workers) as pool:
        list(pool.map(forward, [images] * WARM_UP))
        start = time.perf_counter()
        list(pool.map(forward, [images] * options.batches))
        rate = options.batches * BATCH / (time.perf_counter() - start)
    batch = np.stack(images)
    np.savez(options.out, images=batch, predictions=run_graph(options.graph, batch))
    print(json.dumps({"regraft": rate}))


def run_graph(path: Path, images: np.ndarray) -> np.ndarray:
    """Give what TensorFlow computes with a frozen graph, float32 `[n,c]`."""
    definition = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(definition, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            predictions: np.ndarray = session.run("final_result:0", {"image:0": images})
    return predictions


if __name__ == "__main__":
    main()
