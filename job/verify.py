"""A version on disk answers as the trained model did, through every door, or says where not.

The golden images are a few test images: their bytes are the warm-up requests of the version, so
TensorFlow Serving runs them too, and the trained model's answers are in `manifest.json`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from job.errors import brief
from job.images import loader
from job.parity import (
    Expected,
    bytes_problems,
    frozen_problems,
    image_problems,
    tflite_problems,
)
from job.seal import MANIFEST, file_problems, read_manifest

SAVED_MODEL = "saved_model.pb"
WARMUP = "assets.extra/tf_serving_warmup_requests"
MAX_GOLDENS = 8  # TensorFlow Serving runs them all before a version is available

# Of a probability. On EfficientNet-Lite0 the exports differ from the trained model by 1e-6.
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Golden:
    """A test image: its file's `contents` and the trained model's answer, float32 `[c]`."""

    name: str
    contents: bytes
    prediction: np.ndarray


def write_warmup(folder: Path, goldens: Sequence[Golden]) -> None:
    """Write the warm-up records of the SavedModel in `folder`, for at most `MAX_GOLDENS` images.

    `serve_bytes` is asked about all of them at once and about the first alone, `serving_default`
    about one black image: a server that has answered once is warm, whatever the pixels were.
    """
    if not 1 <= len(goldens) <= MAX_GOLDENS:
        raise ValueError(f"{len(goldens)} golden images, expected 1 to {MAX_GOLDENS}")
    contents = [golden.contents for golden in goldens]
    pixels = np.zeros((1, *_image_size(folder), 3), np.float32)
    requests = (
        ("serve_bytes", "image_bytes", tf.make_tensor_proto(contents)),
        ("serve_bytes", "image_bytes", tf.make_tensor_proto(contents[:1])),
        ("serving_default", "image", tf.make_tensor_proto(pixels)),
    )
    path = folder / WARMUP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as file:
        for signature, name, tensor in requests:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.model_spec.signature_name = signature
            log.predict_log.request.inputs[name].CopyFrom(tensor)
            file.write(log.SerializeToString(deterministic=True))


def golden_record(goldens: Sequence[Golden]) -> dict[str, Any]:
    """Give what `manifest.json` holds under `golden`: names, predictions and the tolerance."""
    return {
        "names": [golden.name for golden in goldens],
        "predictions": [golden.prediction.tolist() for golden in goldens],
        "tolerance": TOLERANCE,
    }


def find_problems(folder: Path) -> list[str]:
    """Check one whole version on disk; [] when it is sound, else sentences that name the files.

    First every file against the manifest: where that fails nothing is loaded. Then the labels
    wherever they are; the golden images through both signatures and the frozen graph, one by one
    and all at once, and through each TFLite file; and the warm-up requests.
    """
    if problems := file_problems(folder):
        return problems
    manifest = read_manifest(folder)
    with _collect(problems, MANIFEST):
        labels, golden = tuple(manifest["labels"]), manifest["golden"]
        limits = manifest.get("thresholds")
        problems += _label_problems(folder, labels)
        names = tuple(golden["names"])
        predictions = np.array(golden["predictions"], np.float32)
        if predictions.shape != (len(names), len(labels)):
            raise ValueError(f"{predictions.shape} predictions of {len(names)} golden images")
        with _collect(problems, SAVED_MODEL):
            size = _image_size(folder)
            with _collect(problems, WARMUP):
                requests = _read_warmup(folder)
                contents = _golden_contents(requests, len(names))
                expected = Expected(
                    labels,
                    names,
                    contents,
                    _decode(contents, size, manifest["configuration"]),
                    predictions,
                    float(golden["tolerance"]),
                    golden.get("tflite_tolerance", {}),
                    manifest["unknown"]["value"] if "unknown" in manifest else None,
                    None if limits is None else np.array(limits, np.float32),
                )
                problems += _answer_problems(folder, expected, requests)
    return problems


@contextlib.contextmanager
def _collect(problems: list[str], name: str) -> Iterator[None]:
    """Make a problem of whatever a broken file makes TensorFlow or a parser raise."""
    try:
        yield
    except Exception as error:
        problems.append(f"{name} cannot be used: {type(error).__name__}: {brief(error)}")


def _label_problems(folder: Path, labels: tuple[str, ...]) -> Iterator[str]:
    expected = "".join(f"{label}\n" for label in labels).encode()
    for name in ("labels.txt", "assets/labels.txt"):
        path = folder / name
        found = path.read_bytes() if path.is_file() else b""
        if found != expected:
            yield f"{name} has {found[:200]!r}, expected the manifest's {expected[:200]!r}"


def _image_size(folder: Path) -> tuple[int, int]:
    """Give the height and width that `serving_default` takes, without loading the model."""
    model = saved_model_pb2.SavedModel.FromString((folder / SAVED_MODEL).read_bytes())
    shape = model.meta_graphs[0].signature_def["serving_default"].inputs["image"].tensor_shape
    return shape.dim[1].size, shape.dim[2].size


def _decode(
    contents: Sequence[bytes], size: tuple[int, int], options: dict[str, Any]
) -> np.ndarray:
    """Give the pixels that `serving_default` takes of each image, float32 `[n,h,w,3]` in [0,1]."""
    exact, max_pixels = options["exact_decode"], options["max_pixels"]
    load = loader(size, exact=exact, max_pixels=max_pixels)
    return np.stack([load(item) for item in contents])


def _read_warmup(folder: Path) -> list[Any]:
    """Give the PredictRequests of the warm-up records; raises what TensorFlow and protobuf do."""
    records = tf.data.TFRecordDataset(str(folder / WARMUP)).as_numpy_iterator()
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    requests = [log.predict_log.request for log in logs]
    asked = {request.model_spec.signature_name for request in requests}
    if asked != {"serve_bytes", "serving_default"}:
        raise ValueError(f"it warms up {sorted(asked)}, expected serve_bytes and serving_default")
    return requests


def _golden_contents(requests: Sequence[Any], count: int) -> tuple[bytes, ...]:
    for request in requests:
        # To index a map of protobuf is to add what is not there.
        if "image_bytes" in request.inputs:
            contents = tuple(request.inputs["image_bytes"].string_val)
            if len(contents) == count:
                return contents
    raise ValueError(f"it has no request with the {count} golden images of {MANIFEST}")


def _answer_problems(folder: Path, expected: Expected, requests: Sequence[Any]) -> list[str]:
    """Load each export and compare what it answers; half of them are asked in another thread."""
    problems: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        graphs = pool.submit(_graph_problems, folder, expected)
        with _collect(problems, SAVED_MODEL):
            model = tf.saved_model.load(str(folder))
            images = pool.submit(lambda: list(image_problems(model.signatures, expected)))
            problems += bytes_problems(model.signatures, expected)
            with _collect(problems, WARMUP):
                for request in requests:
                    _run(model.signatures, request)
            problems += images.result()
        return problems + graphs.result()


def _graph_problems(folder: Path, expected: Expected) -> list[str]:
    problems: list[str] = []
    with _collect(problems, "frozen_graph.pb"):
        problems += frozen_problems(folder / "frozen_graph.pb", expected)
    for path in sorted(folder.glob("*.tflite")):
        with _collect(problems, path.name):
            problems += tflite_problems(path, expected)
    return problems


def _run(signatures: Any, request: predict_pb2.PredictRequest) -> None:
    inputs = {name: tf.constant(tf.make_ndarray(t)) for name, t in request.inputs.items()}
    signatures[request.model_spec.signature_name](**inputs)
