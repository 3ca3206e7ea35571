"""A trained classifier as TensorFlow Lite models, for phones, browsers and microcontrollers.

Every model takes one image, as accelerators want it, and has the signature `serving_default` of the
SavedModel: `image` gives `prediction`. Its labels are inside: `job.tflite_metadata`.

TensorFlow's calibration gives a tensor that is overwritten in place the range of what overwrites it
as well (tensorflow/tensorflow issue 127842, open in November 2026). In a residual network that is
one input of each addition: it gets up to 1.4 bits less. For EfficientNet-Lite0 the int8 embedding
is off by 0.079 (root mean square) with it and by 0.071 without, and the accuracy is the same.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.python.convert_phase import ConverterError
from tensorflow.lite.tools import flatbuffer_utils

from job.errors import ConfigError, brief
from job.export import ACTIVATIONS, FROZEN_INPUT, Classifier
from job.guard import beat
from job.progress import notes_aside
from job.redact import redact
from job.tflite_metadata import METADATA, attach_labels, describe

PREDICTION = "prediction"
SIGNATURE = "serving_default"

# So many training images are enough to find the range of each activation.
CALIBRATION_IMAGES = 100

Images = Iterable[np.ndarray]


@dataclass(frozen=True, slots=True)
class Format:
    """A way to convert a model; `file` is what it is called in a version's folder.

    `set_up` prepares TensorFlow's converter. `integers`: nothing inside may be floating point.
    """

    file: str
    set_up: Callable[[Any, Images], None]
    integers: bool = False


def _float16(converter: Any, calibration: Images) -> None:
    """Weights as float16, half the size; arithmetic in float16 on a GPU, in float32 elsewhere."""
    converter.target_spec.supported_types = [tf.float16]


def _dynamic(converter: Any, calibration: Images) -> None:
    """Weights as int8, a quarter of the size; activations become int8 as they come, on a CPU."""


def _int8(converter: Any, calibration: Images) -> None:
    """Integers from end to end, which Edge TPUs, DSPs and microcontrollers need.

    Input and output are uint8: what a camera or a decoder gives goes in as it is, and uint8 is what
    MediaPipe's image classifier takes beside float32; it refuses int8.
    """
    converter.representative_dataset = lambda: _spanning(calibration)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8


FORMATS: dict[str, Format] = {
    "tflite-float16": Format("model_float16.tflite", _float16),
    "tflite-dynamic": Format("model_dynamic.tflite", _dynamic),
    "tflite-int8": Format("model_int8.tflite", _int8, integers=True),
}


def convert(classifier: Classifier, name: str, calibration: Images) -> bytes:
    """Give a classifier as the contents of a TFLite file, of the format `name` of FORMATS.

    Its one input `image` is float32 `[1,h,w,3]` in [0,1], its one output `prediction` float32
    `[1,classes]`, after the head's activation. Those of `tflite-int8` are uint8: `image` is a
    pixel's bytes (scale 1/255, zero point 0) and `prediction` the probability times 256, 255 at
    most. The same arguments give the same bytes.

    Args:
        classifier: what is converted.
        name: the format.
        calibration: training images, float32 `[h,w,3]` in [0,1], CALIBRATION_IMAGES or so and at
            least one; only `tflite-int8` looks at them.

    Raises:
        ConfigError: TFLite has no kernel for an operation of the backbone.
    """
    chosen = FORMATS[name]
    with tempfile.TemporaryDirectory() as folder, notes_aside() as notes:
        # From a concrete function the converter would do the same, and where there is no room for
        # that folder go on without signatures.
        tf.saved_model.save(tf.Module(), folder, signatures={SIGNATURE: _function(classifier)})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        chosen.set_up(converter, calibration)
        try:
            converted = converter.convert()
        except (ConverterError, RuntimeError, ValueError) as error:
            notes.seek(0)
            raise _unconvertible(name, classifier, error, notes.read()) from error
    model = flatbuffer_utils.convert_bytearray_to_object(converted)
    if chosen.integers and (floating := _floating(model)):
        raise _no_kernel(name, classifier, "no integer kernel", floating)
    backbone = redact(classifier.backbone.handle)
    _attach(model, f"Tells {len(classifier.labels)} labels apart, on {backbone}.")
    whole = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    return attach_labels(whole, classifier.labels)


class TFLiteModel:
    """A TFLite file of this module, ready to be asked; not by two threads at once.

    TFLite's own kernels compute, one image on each core: a delegate, XNNPACK being the default one,
    rounds otherwise from one machine to another, and threads that share an operation wait for each
    other (docs/adr/0006-one-thread-an-operation.md; here up to 9 times as long).
    """

    def __init__(self, data: bytes) -> None:
        self._interpreters = [_interpreter(data) for _ in os.sched_getaffinity(0)]
        (target,) = self._interpreters[0].get_output_details()
        self._classes = int(target["shape"][1])

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Give float32 `[n,classes]` in [0,1] for images, float32 `[n,h,w,3]` in [0,1].

        After a softmax a row sums to 1, but for the rounding of a quantised output to 1/256.
        """
        scores = np.empty((len(images), self._classes), np.float32)
        count = len(self._interpreters)

        def fill(interpreter: Any, first: int) -> None:
            for row in range(first, len(images), count):
                scores[row] = _ask(interpreter, images[row])
                beat()

        with ThreadPoolExecutor(count, thread_name_prefix="tflite") as pool:
            list(pool.map(fill, self._interpreters, range(count)))
        return scores


def _interpreter(data: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it moves to another package
        interpreter = tf.lite.Interpreter(
            model_content=data,
            num_threads=1,
            experimental_op_resolver_type=(
                tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
        )
    interpreter.allocate_tensors()
    return interpreter


def _ask(interpreter: Any, image: np.ndarray) -> np.ndarray:
    """Give the scores, float32 `[classes]`, of one image; both are quantised as the file says."""
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    if np.issubdtype(source["dtype"], np.integer):
        scale, zero = source["quantization"]
        bounds = np.iinfo(source["dtype"])
        image = np.clip(np.round(image / scale) + zero, bounds.min, bounds.max)
    interpreter.set_tensor(source["index"], image[np.newaxis].astype(source["dtype"]))
    interpreter.invoke()
    scores: np.ndarray = interpreter.get_tensor(target["index"])[0]
    if np.issubdtype(scores.dtype, np.integer):
        scale, zero = target["quantization"]
        scores = (scores.astype(np.float32) - zero) * np.float32(scale)
    return scores


def _function(classifier: Classifier) -> Any:
    backbone, head = classifier.backbone, classifier.head
    spec = tf.TensorSpec([1, *backbone.image_size, 3], tf.float32, FROZEN_INPUT)

    @tf.function(input_signature=[spec], autograph=False)  # type: ignore[untyped-decorator]
    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = backbone.embed(image) @ head.kernel + head.bias
        return {PREDICTION: ACTIVATIONS[head.activation](logits)}

    return serve


def _spanning(images: Images) -> Iterator[list[np.ndarray]]:
    """Give images as the converter wants them, the first with a black and a white pixel.

    So the range of the input is [0,1], no less, and its quantised values are a pixel's bytes.
    """
    for number, image in enumerate(images):
        batch = image[np.newaxis]
        if number == 0:
            batch = batch.copy()
            batch[0, 0, :2] = [[0.0], [1.0]]
        beat()
        yield [batch]


def _floating(model: Any) -> set[str]:
    """Name the operations in floating point; one that only converts, if there is no other."""
    floats = {schema.TensorType.FLOAT16, schema.TensorType.FLOAT32, schema.TensorType.FLOAT64}
    found = {
        flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
        for graph in model.subgraphs
        for operator in graph.operators
        if floats & {graph.tensors[i].type for i in (*operator.inputs, *operator.outputs) if i >= 0}
    }
    return found - {"QUANTIZE", "DEQUANTIZE"} or found


def _attach(model: Any, description: str) -> None:
    """Put the metadata into the model, an unpacked flatbuffer."""
    contents = describe(description, image=FROZEN_INPUT, prediction=PREDICTION)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(contents, np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]


def _unconvertible(
    name: str, classifier: Classifier, error: Exception, notes: bytes
) -> ConfigError:
    missing = {found.operator.name.removeprefix("tf.") for found in getattr(error, "errors", ())}
    if missing - {""}:
        return _no_kernel(name, classifier, "no kernel", missing - {""})
    said = notes.decode(errors="replace").strip()[-500:]
    return ConfigError(
        f"{name}: backbone {classifier.backbone.handle} cannot be converted: {brief(error)}; "
        f"TensorFlow noted: {said}",
        hint="leave this format out, or use another backbone",
    )


def _no_kernel(name: str, classifier: Classifier, lacking: str, names: set[str]) -> ConfigError:
    return ConfigError(
        f"{name}: TensorFlow Lite has {lacking} for {', '.join(sorted(names))}, which the backbone "
        f"{classifier.backbone.handle} needs",
        hint="leave this format out, or use another backbone",
    )
