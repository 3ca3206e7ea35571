"""The TFLite files of a version: converted, and each asked about all test images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from job.dataset import Example, Split
from job.evaluate import wilson
from job.export import Classifier
from job.images import loader
from job.labelling import TASKS, Labelling, Thresholds, wholly
from job.storage import Readable
from job.stream import load_batches, require_all
from job.tflite import CALIBRATION_IMAGES, FORMATS, TFLiteModel, convert

# Test images that are decoded at once.
BATCH = 32

# What a fresh process may answer otherwise than this one did, of a probability: half a step of a
# quantised output is 1/512, and a float one is far closer.
TOLERANCE = 0.002


@dataclass(frozen=True, slots=True)
class LiteScore:
    """A TFLite file: its name, its bytes, its accuracy and how far it is from the model.

    `accuracy` is of the test images and called as in the model's `Report`, `accuracy_ci95` its
    Wilson interval, `agreement` the share of them that it takes for what the float model takes them
    for. `off`, of a probability, is the most that it differs from that on the golden images.
    """

    file: str
    size: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    agreement: float
    off: float
    accuracy_name: str = "accuracy"

    def as_json(self) -> dict[str, object]:
        """Give the figures under the names that a result has for them, rounded to 6 decimals."""
        return {
            f"test_{self.accuracy_name}": round(self.accuracy, 6),
            f"test_{self.accuracy_name}_ci95": [round(bound, 6) for bound in self.accuracy_ci95],
            "agreement": round(self.agreement, 6),
            "bytes": self.size,
        }

    @property
    def tolerance(self) -> float:
        """Give how far it may be from the float model when it is verified."""
        return self.off + TOLERANCE


@dataclass(frozen=True, slots=True)
class Asked:
    """What the float model was asked, and its answers.

    `examples` are those of the index, in `store`; `scores`, float32 `[n,c]`, is what it gives for
    the n test images, in their order, and `goldens` the same for some of them, by name. What an
    image is taken for by its scores is the labelling's to say.
    """

    store: Readable
    examples: tuple[Example, ...]
    scores: np.ndarray
    goldens: dict[str, np.ndarray]
    labelling: Labelling = TASKS["single"]
    thresholds: Thresholds = None

    def side(self, split: Split) -> list[Example]:
        """Give the examples of one side."""
        return [example for example in self.examples if example.split is split]


def write_tflite(
    folder: Path,
    names: tuple[str, ...],
    classifier: Classifier,
    asked: Asked,
    *,
    threads: int,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[LiteScore, ...]:
    """Convert a classifier to the formats `names` of `tflite.FORMATS`, and score each file.

    Calibration takes training images evenly from all of them. `threads` read and decode images.

    Raises ConfigError for a backbone that cannot be converted, UnavailableError when images
    cannot be read any more.
    """
    if not names:
        return ()
    calibration: list[np.ndarray] = []
    if any(FORMATS[name].integers for name in names):
        train = asked.side(Split.TRAIN)
        places = np.linspace(0, len(train) - 1, min(CALIBRATION_IMAGES, len(train))).astype(int)
        batches = _decoded(classifier, asked.store, [train[i] for i in places], threads)
        calibration = [image for batch in batches for image in batch]
    models = []
    for name in names:
        data = convert(classifier, name, calibration)
        (folder / FORMATS[name].file).write_bytes(data)
        models.append(TFLiteModel(data))
        advance(1)
    answers: list[list[np.ndarray]] = [[] for _ in names]
    for batch in _decoded(classifier, asked.store, asked.side(Split.TEST), threads):
        for model, given in zip(models, answers, strict=True):
            given.append(model.probabilities(batch))
    return tuple(
        _score(folder / FORMATS[name].file, np.concatenate(given), asked)
        for name, given in zip(names, answers, strict=True)
    )


def _score(path: Path, answers: np.ndarray, asked: Asked) -> LiteScore:
    tests = asked.side(Split.TEST)
    targets = asked.labelling.targets(tests, answers.shape[1])
    chosen, usual = (
        asked.labelling.choose(scores, asked.thresholds) for scores in (answers, asked.scores)
    )
    right = wholly(chosen == targets)
    rows = {example.name: row for row, example in enumerate(tests)}
    off = [np.abs(answers[rows[name]] - scores).max() for name, scores in asked.goldens.items()]
    return LiteScore(
        path.name,
        path.stat().st_size,
        float(right.mean()),
        wilson(int(right.sum()), len(right)),
        float(wholly(chosen == usual).mean()),
        float(max(off)),
        asked.labelling.accuracy_name,
    )


def _decoded(
    classifier: Classifier, store: Readable, examples: list[Example], threads: int
) -> Iterator[np.ndarray]:
    """Give images as the model was trained on them, float32 `[<=BATCH,h,w,3]`, in order."""
    decode = loader(
        classifier.backbone.image_size, exact=classifier.exact, max_pixels=classifier.max_pixels
    )
    for batch in load_batches(store, examples, decode, batch_size=BATCH, threads=threads):
        require_all(batch.skipped())
        yield np.stack(batch.pixels())
