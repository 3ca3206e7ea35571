"""The story of `inspect`: a data set is embedded and looked at, and nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from job.backbone import resolve
from job.checkup import Checkup, check_up, data_before
from job.config import InspectConfig, ReadOptions
from job.divide import find_copies, find_groups
from job.doctor.listing import csv_text
from job.doctor.page import render
from job.doctor.summary import as_json
from job.errors import ConfigError, DataError
from job.intake import index_of, open_data, open_place, read_quietly
from job.progress import Progress
from job.publish import in_service, read_channels, read_listing
from job.redact import redact
from job.result import Result
from job.stages import Reader, embed_images, load_resolved, open_cache
from job.storage import Store, check_writable
from job.workdir import work_folder

PAGE, LISTING, FIGURES = "index.html", "findings.csv", "findings.json"


@dataclass(frozen=True, slots=True)
class Compared:
    """The model whose data is compared with, and its version in service."""

    models: Store
    version: int


def inspect(config: InspectConfig, progress: Progress) -> Checkup:
    """Look at the images in --data; leaves the page, the CSV and the figures in --output.

    Raises the errors of `job.errors`.
    """
    with work_folder(config.work_dir) as folder:
        with progress.phase("index"):
            output = open_place(config, config.output)
            check_writable(output)
            found = open_data(config)
            index = index_of(config, found, check=False)
            compared = find_compared(config)
        with progress.phase("backbone"):
            kept = config.work_dir or folder
            resolved = resolve(config.backbone, cache_dir=kept)
            cache = open_cache(config, resolved.digest, Result())
            backbone = load_resolved(config, resolved, kept)
        reader = Reader(found.store, backbone, cache, folder)
        embeddings = embed_images(config, reader, index, progress, "embed")
        if not embeddings.index.examples:
            first = embeddings.skipped[0]
            raise DataError(
                f"none of {len(index.examples)} images could be read, the first being "
                f"{first.name!r}: {first.reason}",
                hint="give images that are JPEG, PNG, GIF, BMP or WebP",
            )
        with progress.phase("examine"):
            copies = find_copies(embeddings)
            groups = find_groups(config, embeddings, copies)
            before = None
            if compared is not None:
                models, version = compared.models, compared.version
                before = data_before(models, version, cache, embeddings)
            checkup = check_up(embeddings, groups, copies, before)
        with progress.phase("write"):
            write_checkup(output, checkup, partial(read_quietly, found.store), title_of(config))
    return checkup


def find_compared(config: InspectConfig) -> Compared | None:
    """Give the version in service of the model that --models and --name say, if they do.

    Raises ConfigError when there is none.
    """
    if config.models is None or config.name is None:
        return None
    models = open_place(config, config.models).child(config.name)
    version = in_service(read_listing(models), read_channels(models))
    if version is None:
        raise ConfigError(
            f"{models.uri}: no version is there",
            hint="check --models and --name, or leave both out",
        )
    return Compared(models, version)


def title_of(config: ReadOptions) -> str:
    """Give what the page is called."""
    return f"Data of {', '.join(map(redact, config.data))}"


def write_checkup(
    output: Store, checkup: Checkup, read_image: Callable[[str], bytes | None], title: str
) -> None:
    """Write the page, the CSV and the figures; `read_image` is that of `doctor.page.render`."""
    material, findings = checkup.material, checkup.findings
    figures = json.dumps(as_json(material, findings), allow_nan=False, separators=(",", ":"))
    output.write(FIGURES, (figures + "\n").encode())
    output.write(LISTING, csv_text(material, findings).encode())
    output.write(PAGE, render(material, findings, read_image, title).encode())
