"""A small data set whose images have any number of labels, and the stages of a run over it."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from conftest import COLOURS
from PIL import Image

from job.assess import assess
from job.backbone import resolve
from job.config import RunConfig
from job.dataset import Example, Index, Split, splitter
from job.progress import LogProgress
from job.publish import publish, read_listing
from job.release import pass_gate, write_bundle
from job.report import Facts
from job.result import Result
from job.service import read_in_service
from job.stages import Plan, Source, embed_images, load_resolved, open_cache
from job.storage import LocalStore
from job.training import Trained, train

LABELS = tuple(sorted(COLOURS))
BLACK = (0, 0, 0)


def halves(left: str, right: str, seed: int, size: int = 48) -> bytes:
    """Give a picture with a colour in each half, black where there is none by that name."""
    noise = np.random.default_rng(seed).integers(-12, 13, (size, size, 3))
    pixels = np.empty((size, size, 3))
    pixels[:, : size // 2] = COLOURS.get(left, BLACK)
    pixels[:, size // 2 :] = COLOURS.get(right, BLACK)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_scenes(folder: Path, count: int = 8) -> Path:
    """Write `count` pictures of each pair of colours, and their manifest; gives its path.

    It is Vertex AI's CSV for images with several labels, without the column ML_USE:
    path,label,label,... A picture that is black has no label.
    """
    folder.mkdir(parents=True)
    rows = []
    for number, (left, right) in enumerate(product((*LABELS, "black"), repeat=2)):
        for item in range(count):
            name = f"{left}-{right}-{item}.jpg"
            (folder / name).write_bytes(halves(left, right, seed=1000 * number + item))
            rows.append([name, *sorted({left, right} & set(LABELS))])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "manifest.csv"


def read_scenes(manifest: Path, validation_percent: float, test_percent: float) -> Index:
    """Index the pictures of a manifest."""
    entries = {entry.name: entry for entry in LocalStore(manifest.parent).list()}
    split_of, sides = splitter(validation_percent, test_percent), list(Split)
    with manifest.open(newline="") as file:
        examples = [
            Example(entries[name], tuple(sorted(map(LABELS.index, labels))), split_of(name))
            for name, *labels in csv.reader(file)
        ]
    examples.sort(key=lambda example: (sides.index(example.split), example.name))
    return Index(LABELS, tuple(examples))


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run has left."""

    version: Path
    trained: Trained
    facts: Facts
    result: Result


def run_scenes(manifest: Path, models: Path, module: Path, scratch: Path, **options: Any) -> Ran:
    """Take the stages of a run over the pictures of a manifest; what they raise is raised.

    `scratch` is a folder of its own. What was written is not verified.
    """
    config = RunConfig(
        data=str(manifest), models=str(models), name="scenes", backbone=str(module),
        validation_percent=20, test_percent=20, **{"task": "multilabel", **options},
    )  # fmt: skip
    progress, result = LogProgress(), Result()
    place = LocalStore(models / "scenes")
    for folder in (place.root, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    index = read_scenes(manifest, config.validation_percent, config.test_percent)
    serving = read_in_service(place, read_listing(place))
    plan = Plan(LocalStore(manifest.parent), place, index, serving)
    found = resolve(config.backbone, cache_dir=scratch)
    backbone = load_resolved(config, found, scratch)
    source = Source(plan, backbone, open_cache(config, found.digest, result), scratch)
    embeddings = embed_images(config, source, index, progress, "embed")
    trained = train(config, source, embeddings, progress, result)
    facts = assess(config, plan, trained, progress, result)
    pass_gate(config, plan, facts, result)
    bundle, _ = write_bundle(config, source, trained, facts, progress, result)
    version = publish(bundle, place)
    return Ran(place.root / str(version), trained, facts, result)
