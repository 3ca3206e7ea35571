"""Time OpenVINO on a frozen graph of the job; runs in OpenVINO's own environment.

    python benchmarks/forward_openvino.py --graph FILE --batch FILE.npz [--batches 20]

float32 throughout, as the job computes. `latency` waits for each batch, `throughput` keeps as many
under way as OpenVINO asks for. Prints both in images per second, and the largest difference
between its predictions and TensorFlow's, as JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import openvino

WARM_UP = 3


def main() -> None:
    """Print the rates and the difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--graph", "--batch"):
        parser.add_argument(name, required=True)
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    with np.load(options.batch) as saved:
        images, expected = saved["images"], saved["predictions"]
    core = openvino.Core()
    model = core.read_model(options.graph)
    model.reshape(images.shape)
    found, latency = one_by_one(compiled(core, model, "LATENCY"), images, options.batches)
    throughput = overlapping(compiled(core, model, "THROUGHPUT"), images, options.batches)
    difference = float(np.abs(found - expected).max())
    print(json.dumps({"latency": latency, "throughput": throughput, "difference": difference}))


def compiled(core: openvino.Core, model: openvino.Model, hint: str) -> openvino.CompiledModel:
    """Compile for the CPU with float32 arithmetic."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": hint}
    return core.compile_model(model, "CPU", settings)


def one_by_one(
    model: openvino.CompiledModel, images: np.ndarray, batches: int
) -> tuple[np.ndarray, float]:
    """Give the predictions and the images per second of one request after the other."""
    request = model.create_infer_request()
    for _ in range(WARM_UP):
        found = request.infer({0: images})[0].copy()
    start = time.perf_counter()
    for _ in range(batches):
        request.infer({0: images})
    return found, batches * len(images) / (time.perf_counter() - start)


def overlapping(model: openvino.CompiledModel, images: np.ndarray, batches: int) -> float:
    """Give the images per second of requests that overlap."""
    queue = openvino.AsyncInferQueue(model)
    for _ in range(WARM_UP * len(queue)):
        queue.start_async({0: images})
    queue.wait_all()
    start = time.perf_counter()
    for _ in range(batches):
        queue.start_async({0: images})
    queue.wait_all()
    return batches * len(images) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
