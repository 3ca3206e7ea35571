"""A small data set whose images have any number of labels, and the stages of a run over it."""

from __future__ import annotations

import io
import json
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
from job.progress import LogProgress
from job.publish import publish
from job.release import pass_gate, write_bundle
from job.report import Facts
from job.result import Result
from job.stages import (
    Source,
    load_resolved,
    make_plan,
    open_cache,
    read_images,
    settle_split,
)
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
    """Write `count` pictures of each pair of colours, and their import file; gives its path.

    A picture that is black has no label.
    """
    folder.mkdir(parents=True)
    rows = {}
    for number, (left, right) in enumerate(product((*LABELS, "black"), repeat=2)):
        for item in range(count):
            name = f"{left}-{right}-{item}.jpg"
            (folder / name).write_bytes(halves(left, right, seed=1000 * number + item))
            rows[name] = sorted({left, right} & set(LABELS))
    return write_listing(folder / "import.jsonl", rows)


def write_listing(path: Path, rows: dict[str, list[str]]) -> Path:
    """Write an import file of images and their labels as JSON Lines; gives its path."""
    lines = (
        {"imageGcsUri": name, "classificationAnnotations": [{"displayName": x} for x in labels]}
        for name, labels in rows.items()
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_listing_of(path: Path) -> dict[str, list[str]]:
    """Give what `write_listing` wrote."""
    lines = map(json.loads, path.read_text().splitlines())
    return {
        line["imageGcsUri"]: [item["displayName"] for item in line["classificationAnnotations"]]
        for line in lines
    }


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run has left."""

    version: Path
    trained: Trained
    facts: Facts
    result: Result


def run_scenes(manifest: Path, models: Path, module: Path, scratch: Path, **options: Any) -> Ran:
    """Take the stages of a run over the pictures of an import file; what they raise is raised.

    `scratch` is a folder of its own. What was written is not verified.
    """
    config = RunConfig(
        data=(str(manifest),), models=str(models), name="scenes", backbone=str(module),
        validation_percent=20, test_percent=20, **{"task": "multilabel", **options},
    )  # fmt: skip
    progress, result = LogProgress(), Result()
    scratch.mkdir(parents=True, exist_ok=True)
    plan = make_plan(config, progress, result)
    found = resolve(config.backbone, cache_dir=scratch)
    backbone = load_resolved(config, found, scratch)
    cache = open_cache(config, found.digest, result)
    source = Source(plan.data, backbone, cache, scratch, plan)
    embeddings = read_images(config, source, progress, result)
    divided = settle_split(config, plan, embeddings, progress, result)
    trained = train(config, source, divided, progress, result)
    facts = assess(config, plan, trained, None, progress, result)
    pass_gate(config, plan, facts, result)
    bundle, _ = write_bundle(config, source, trained, facts, progress, result)
    version = publish(bundle, plan.models)
    return Ran(models / "scenes" / str(version), trained, facts, result)
