"""A published version, read back: what `predict` and `evaluate` ask."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from job.dataset import Example
from job.documents import parse_object
from job.errors import ConfigError, DataError, brief
from job.evaluate import Report
from job.formats import MAX_PIXELS
from job.head import Head
from job.images import UnreadableImage, loader
from job.index import labelled
from job.labelling import TASKS, Thresholds, task_of, thresholds_of
from job.labels import label_line, quoted
from job.ledger import EXAMPLES, LEDGER, Ledger, parse_ledger
from job.publish import in_service, read_channels, read_listing
from job.sources import Found
from job.split import splitter
from job.storage import LocalStore, Readable, Store, download, open_store
from job.stream import Loaded, Skipped, load_batches

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded version; `signatures` are the SavedModel's own, by name.

    `task` is a key of `labelling.TASKS`, and `thresholds` are as that wants them.
    `loaded` is kept because the signatures' variables live only as long as it does. `exact` and
    `max_pixels` are how it decodes images, as in `images.preprocess`. `ledger` says on which side
    of the split the images were.
    """

    uri: str
    labels: tuple[str, ...]
    task: str
    thresholds: Thresholds
    manifest: dict[str, Any]
    exact: bool
    max_pixels: int
    signatures: dict[str, Any]
    loaded: Any
    ledger: Ledger

    @property
    def image_size(self) -> tuple[int, int]:
        """Give the height and width that `serving_default` takes."""
        (spec,) = self.signatures["serving_default"].structured_input_signature[1].values()
        return int(spec.shape[1]), int(spec.shape[2])

    def has_on(self, split: str, example: Example, digest: str) -> bool:
        """Tell whether an image was on a side of the split, or would have been by its name."""
        options = self.manifest["configuration"]
        split_of = splitter(options["validation_percent"], options["test_percent"])
        side = self.ledger.side(example.name, digest) or split_of(example.key)
        return split in ("all", side)

    def loader(self) -> Callable[[bytes], np.ndarray]:
        """Give what decodes an image file as in training, see `images.loader`."""
        return loader(self.image_size, exact=self.exact, max_pixels=self.max_pixels)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one image: labels and scores, the best first, or why it says nothing.

    `unknown` is whether it takes the image for one of no label; None: it always names one.
    `selected` are the labels that reach their thresholds; None where an image has one label.
    """

    image: str
    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    error: str = ""
    unknown: bool | None = None
    selected: tuple[str, ...] | None = None

    def as_json(self, top: int) -> dict[str, object]:
        """Give the answer as `predict` prints it, with the scores of the `top` best labels."""
        said: dict[str, object] = {"image": self.image}
        if self.error:
            said["error"] = self.error
        elif self.selected is None:
            said["label"] = self.labels[0]
        else:
            said["labels"] = self.selected
        if self.unknown is not None:
            said["unknown"] = self.unknown
        return said | {"scores": dict(zip(self.labels[:top], self.scores, strict=False))}


@dataclass(frozen=True, slots=True)
class Scored:
    """A model's answers: row i of `scores`, float32 `[n,c]`, is of `examples[i]`.

    `digests` are the SHA-256 of the files, hexadecimal.
    """

    examples: tuple[Example, ...]
    digests: tuple[str, ...]
    scores: np.ndarray
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of a model on a data set, and the images that could not be read."""

    report: Report
    skipped: tuple[Skipped, ...]


def load_model(uri: str) -> Model:
    """Load a version (`MODELS/NAME/VERSION`), or the one in service (`MODELS/NAME`).

    Raises ConfigError when there is none or when its files cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="regraft-") as temporary:
        place, folder = fetch_version(uri, Path(temporary))
        try:
            labels = tuple((folder / "labels.txt").read_text("utf-8").splitlines())
            manifest = parse_object((folder / "manifest.json").read_bytes())
            options = manifest["configuration"]
            task, thresholds = task_of(manifest), thresholds_of(manifest, labels)
            exact, max_pixels = (
                bool(options["exact_decode"]),
                int(options.get("max_pixels", MAX_PIXELS)),
            )
            loaded = tf.saved_model.load(str(folder))
            signatures = {
                name: loaded.signatures[name] for name in ("serving_default", "serve_bytes")
            }
            tables = [folder / name for name in (LEDGER, EXAMPLES)]
            table = next((path.read_bytes() for path in tables if path.exists()), b"")
            ledger = parse_ledger(table)
        except (OSError, ValueError, KeyError, TypeError, tf.errors.OpError) as error:
            raise ConfigError(
                f"{place} is no whole version: {error}",
                hint="give --model a folder that Regraft published",
            ) from error
    return Model(
        place, labels, task, thresholds, manifest, exact, max_pixels, signatures, loaded,
        ledger,
    )  # fmt: skip


def read_head(version: Store) -> Head:
    """Give the head of a version, its logits divided by the temperature, from `variables/`.

    Raises ConfigError when it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="regraft-") as temporary:
        download(version, version.list("variables/"), Path(temporary))
        try:
            checkpoint = tf.train.load_checkpoint(f"{temporary}/variables/variables")
            kernel, bias = (
                checkpoint.get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE")
                for name in ("kernel", "bias")
            )
        except (ValueError, tf.errors.OpError) as error:
            raise ConfigError(f"{version.uri} has no head: {brief(error)}") from error
    return Head(kernel, bias)


def fetch_version(uri: str, scratch: Path) -> tuple[str, Path]:
    """Give a version's own URI and its local folder: downloaded to `scratch`, or where it is.

    Raises ConfigError when there is no version at `uri`.
    """
    store = _version_store(open_store(uri), uri)
    if isinstance(store, LocalStore):
        return store.uri, store.root
    download(store, store.list(), scratch)
    return store.uri, scratch


def _version_store(store: Store, uri: str) -> Store:
    if any(entry.name == "saved_model.pb" for entry in store.list("saved_model.pb")):
        return store
    if (version := in_service(read_listing(store), read_channels(store))) is not None:
        return store.child(str(version))
    raise ConfigError(
        f"{uri}: no version is there",
        hint="give --model MODELS/NAME or MODELS/NAME/VERSION, as `run` printed it",
    )


def predict(model: Model, images: list[Path]) -> Iterator[Prediction]:
    """Ask the `serve_bytes` signature about image files, one by one, as a client would."""
    check = model.loader()
    for path in images:
        try:
            contents = path.read_bytes()
            check(contents)  # the signature's own error would not say why in a few words
        except (OSError, UnreadableImage) as error:
            yield Prediction(str(path), error=str(error))
            continue
        answer = model.signatures["serve_bytes"](image_bytes=tf.constant([contents]))
        labels = tuple(name.decode() for name in answer["classes"].numpy()[0])
        scores = tuple(map(float, answer["scores"].numpy()[0]))
        unknown = bool(answer["unknown"].numpy()[0]) if "unknown" in answer else None
        selected = None
        if "selected" in answer:
            chosen = {model.labels[i] for i in np.flatnonzero(answer["selected"].numpy()[0])}
            selected = tuple(label for label in labels if label in chosen)
        yield Prediction(str(path), labels, scores, unknown=unknown, selected=selected)


def evaluate_model(
    model: Model,
    found: Found,
    *,
    split: str,
    threads: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Score a model on the images that were found, whose labels must be labels of the model.

    `split` is a side of the split that the model was trained with (`test`: images of the training
    data that it has not seen, wherever they lie now), or `all`, for data that it was not trained
    on. An image that the version's ledger does not know goes by its name.

    Raises DataError when a label is none of the model's, or when no image is left.
    """
    asked = tuple(
        example
        for example in _examples(model, found)
        # A name that is not known may be that of an image which is: its content will tell.
        if example.name not in model.ledger.by_name or model.has_on(split, example, "")
    )
    scored = score_images(model, found.store, asked, threads=threads, advance=advance)
    pairs = enumerate(zip(scored.examples, scored.digests, strict=True))
    rows = [row for row, (example, digest) in pairs if model.has_on(split, example, digest)]
    if not rows:
        raise DataError(
            f"{found.store.uri}: no image of the split {split!r} could be read",
            hint="`--split all` scores every image",
        )
    labelling, labels = TASKS[model.task], model.labels
    targets = labelling.targets([scored.examples[row] for row in rows], len(labels))
    report = labelling.evaluate(scored.scores[rows], targets, labels, model.thresholds)
    return Evaluation(report, scored.skipped)


def score_images(
    model: Model,
    data: Readable,
    examples: tuple[Example, ...],
    *,
    threads: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Scored:
    """Ask the `serving_default` signature about examples, in batches; unreadable ones are left out.

    Raises what the store raises.
    """
    scores = [np.empty((0, len(model.labels)), np.float32)]
    kept: list[Loaded] = []
    skipped: list[Skipped] = []
    answer = model.signatures["serving_default"]
    decode = model.loader()
    batches = load_batches(
        data, examples, decode, batch_size=BATCH_SIZE, threads=threads, advance=advance
    )
    for batch in batches:
        skipped += batch.skipped()
        if batch.readable:
            answers = answer(image=tf.constant(np.stack(batch.pixels())))
            scores.append(answers["prediction"].numpy())
            kept += batch.readable
    examples, digests = tuple(item.example for item in kept), tuple(item.digest for item in kept)
    return Scored(examples, digests, np.concatenate(scores), tuple(skipped))


def _examples(model: Model, found: Found) -> list[Example]:
    pairs = model.manifest["configuration"].get("label_map", ())
    renamed = dict(pair.split("=", 1) for pair in pairs)
    names = {name for row in found.rows for name in row.labels} | set(found.empty)
    lines = {name: label_line(renamed.get(name, name)) for name in names}
    if unknown := sorted(name for name, line in lines.items() if line not in ("", *model.labels)):
        raise DataError(
            f"{found.store.uri}: the labels {quoted(unknown)} are no labels of {model.uri}",
            hint=f"its labels are {quoted(model.labels, 20)}",
        )
    return labelled(found.rows, lines, model.labels)
