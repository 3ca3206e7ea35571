"""What a TFLite model says of itself: its labels, and what its input and output mean.

The metadata are a flatbuffer of TFLite's `metadata_schema.fbs` (file identifier M001), kept in the
model's buffer METADATA. The labels are a file that they name, in a zip archive behind the model:
any unzip shows it. MediaPipe's image classifier reads both. Fields that came with later versions of
the schema than 1.0.0 are not used. docs/adr/0010-tflite-labels.md says why no library writes this.

No TensorFlow is needed here.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import flatbuffers

# The file behind the model, and its name in the metadata.
LABELS = "labels.txt"

# What the model calls its entry that holds the flatbuffer.
METADATA = "TFLITE_METADATA"

IDENTIFIER = b"M001"

# Of the enums of the schema.
TENSOR_AXIS_LABELS = 2
RGB = 1
FEATURE_PROPERTIES, IMAGE_PROPERTIES = 1, 2
NORMALIZATION_OPTIONS = 1

# The earliest that a zip archive can say: the same model has the same bytes.
LONG_AGO = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the schema; `fields` in its order, None where one is left out.

    An int is a value of an enum, all of which are bytes.
    """

    fields: tuple[Field, ...]


Field = None | int | str | Table | tuple[float, ...] | tuple[Table, ...]


def describe(description: str, *, image: str, prediction: str) -> bytes:
    """Give the metadata of a classifier as a flatbuffer.

    They say that the tensor `image` takes RGB values in [0,1], which are a pixel's bytes less 0 and
    divided by 255, and that `prediction` gives a probability in [0,1] for each line of LABELS. A
    quantised model has the same ones: there too they are meant before quantisation. The version
    of the model is left out: it is chosen when the model is published.
    """
    normalization = Table((NORMALIZATION_OPTIONS, Table(((0.0,), (255.0,)))))
    stats = Table(((1.0,), (0.0,)))  # max, min
    source = Table(
        (
            image,
            "RGB image; a byte of a pixel divided by 255.",
            None,
            Table((IMAGE_PROPERTIES, Table((RGB,)))),
            (normalization,),
            stats,
        )
    )
    file = Table((LABELS, "Line i names the class of score i.", TENSOR_AXIS_LABELS))
    target = Table(
        (
            prediction,
            "Probability of each label.",
            None,
            Table((FEATURE_PROPERTIES, Table(()))),
            None,
            stats,
            (file,),
        )
    )
    subgraph = Table((None, None, (source,), (target,)))
    model = Table(("Image classifier", description, None, (subgraph,), None, None, None, "1.0.0"))
    builder = flatbuffers.Builder()
    builder.Finish(_write(builder, model), IDENTIFIER)
    return bytes(builder.Output())


def attach_labels(model: bytes, labels: Sequence[str]) -> bytes:
    """Put a zip archive with LABELS, one label a line in UTF-8, behind the model."""
    file = zipfile.ZipInfo(LABELS, LONG_AGO)
    file.external_attr = 0o644 << 16
    whole = io.BytesIO(model)
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr(file, "".join(f"{label}\n" for label in labels))
    return whole.getvalue()


def labels(data: bytes) -> tuple[str, ...]:
    """Read the labels of a whole TFLite file, in the order of its scores.

    Raises zipfile.BadZipFile or KeyError when it has none.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # Not splitlines(): that has more ends of lines than a label's file does.
        return tuple(archive.read(LABELS).decode().split("\n")[:-1])


def _write(builder: flatbuffers.Builder, value: str | Table | tuple[float | Table, ...]) -> int:
    """Write a value and all that it refers to, which comes first; gives its offset."""
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, tuple):
        return _write_vector(builder, value)
    offsets = {
        slot: _write(builder, field)
        for slot, field in enumerate(value.fields)
        if field is not None and not isinstance(field, int)
    }
    builder.StartObject(len(value.fields))
    for slot, field in enumerate(value.fields):
        if isinstance(field, int):
            builder.PrependInt8Slot(slot, field, 0)
        elif slot in offsets:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[slot], 0)
    return int(builder.EndObject())


def _write_vector(builder: flatbuffers.Builder, items: tuple[float | Table, ...]) -> int:
    # Floats and offsets both take 4 bytes. A flatbuffer is written from its end.
    written = [_write(builder, item) if isinstance(item, Table) else item for item in items]
    builder.StartVector(4, len(items), 4)
    for item, value in reversed(list(zip(items, written, strict=True))):
        if isinstance(item, Table):
            builder.PrependUOffsetTRelative(value)
        else:
            builder.PrependFloat32(value)
    return int(builder.EndVector())
