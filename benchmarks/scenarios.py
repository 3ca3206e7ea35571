"""Steps whose figures are whole processes: the job in five situations, and what it replaces."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from figures import BUILT, CHANGED, COLD, UNCHANGED, WARM
from measure import ROOT, Bench, Timed

# What the job does, at the start of each of its two processes.
IMPORT = "from job.progress import import_tensorflow; import_tensorflow()"


@dataclass(frozen=True, slots=True)
class JobRun:
    """One run of the job: its times, the phases' seconds, and what it said of itself."""

    scenario: str
    timed: Timed
    phases: dict[str, float]
    status: str
    images: int
    hits: int
    misses: int


@dataclass(frozen=True, slots=True)
class Folders:
    """Where a run reads and writes; what is empty among them makes the scenario."""

    data: Path
    models: Path
    cache: Path
    work: Path


def job(bench: Bench) -> dict[str, Any]:
    """Run the scenarios in rounds, so that a busy minute of the machine meets all of them.

    Raises SystemExit when a run does not end as its scenario says, or the cache did not do what
    the scenario is named for.
    """
    root = bench.work / "job"
    shutil.rmtree(root, ignore_errors=True)
    # A copy: the scenario with changes replaces files in it.
    shutil.copytree(bench.photos, root / "data")
    imports, runs = [], []
    for turn in range(bench.rounds):
        imports.append(bench.run("import", [sys.executable, "-c", IMPORT]).timed)
        runs += one_round(bench, root, turn)
    return {
        "images": runs[0].images,
        "changed": next(run.misses for run in runs if run.scenario == CHANGED),
        "imports": [asdict(timed) for timed in imports],
        "runs": [asdict(run) for run in runs],
    }


def one_round(bench: Bench, root: Path, turn: int) -> list[JobRun]:
    """Run every scenario once, starting from empty folders."""
    data, base = root / "data", root / str(turn)
    (base / "work").mkdir(parents=True)
    first = Folders(data, base / "models", base / "cache", base / "work")
    again = Folders(data, base / "models-2", base / "cache-2", base / "work")
    total = sum(1 for _ in data.rglob("*.jpg"))
    runs = [
        run_job(bench, COLD, first, misses=total),
        run_job(bench, BUILT, again, misses=total),
        run_job(bench, WARM, first, misses=0),
    ]
    changes = bench.work / f"data/changes/{turn}"
    shutil.copytree(changes, data, dirs_exist_ok=True)
    count = sum(1 for _ in changes.rglob("*.jpg"))
    runs.append(run_job(bench, CHANGED, first, misses=count))
    runs.append(run_job(bench, UNCHANGED, first, misses=0, force=False))
    return runs


def run_job(
    bench: Bench, scenario: str, folders: Folders, *, misses: int, force: bool = True
) -> JobRun:
    """Run the job once; with `force` False it must find that there is nothing to do."""
    options = {
        "--data": folders.data,
        "--models": folders.models,
        "--name": "bench",
        "--cache": folders.cache,
        "--work-dir": folders.work,
        "--log-format": "json",
    }
    command = [
        sys.executable,
        "-m",
        "job",
        "run",
        *(part for pair in options.items() for part in pair),
    ]
    output = bench.run(f"job, {scenario}", [*command, "--force"] if force else command)
    result = output.last_json()
    expected = "published" if force else "unchanged"
    if result["status"] != expected or result["cache"]["misses"] != misses:
        sys.exit(
            f"{scenario}: found status {result['status']} and cache {result['cache']}, expected "
            f"{expected} and {misses} misses"
        )
    return JobRun(
        scenario=scenario,
        timed=output.timed,
        phases=result["seconds"],
        status=result["status"],
        images=result["images"]["total"],
        hits=result["cache"]["hits"],
        misses=result["cache"]["misses"],
    )


def make_image_classifier(bench: Bench) -> dict[str, Any]:
    """Run TensorFlow Hub's trainer from its own environment, with its own defaults."""
    folder = bench.environment("make_image_classifier")
    target = bench.work / "make_image_classifier"
    shutil.rmtree(target, ignore_errors=True)
    # Nobody is to pay for files that come from disk for the first time.
    bench.run("make_image_classifier, import", [folder / "python", "-c", "import tensorflow_hub"])
    output = bench.run(
        "make_image_classifier",
        [
            folder / "make_image_classifier",
            "--image_dir", bench.photos.absolute(),
            "--tfhub_module", bench.module.absolute(),
            "--image_size", "224",
            "--saved_model_dir", target.absolute(),
            "--labels_output_file", (bench.work / "make_image_classifier.txt").absolute(),
            *(["--train_epochs", "1"] if bench.quick else []),
        ],
    )  # fmt: skip
    return {"epochs": 1 if bench.quick else 5, "runs": [asdict(output.timed)]}


def keras_recipe(bench: Bench) -> dict[str, Any]:
    """Run the tutorial's recipe in the job's own environment."""
    epochs = 1 if bench.quick else 5
    output = bench.script(
        "keras recipe",
        "keras_recipe.py",
        "--data", bench.photos,
        "--module", bench.module,
        "--model", bench.work / "keras",
        "--epochs", str(epochs),
    )  # fmt: skip
    return {"epochs": epochs, "runs": [asdict(output.timed)]}


def build_module(bench: Bench) -> None:
    """Write the backbone, as the code builds it now, as a module that all tools load."""
    shutil.rmtree(bench.module, ignore_errors=True)
    command = [sys.executable, "-m", "job", "backbone", "build", "builtin:efficientnet-lite0"]
    bench.run("backbone build", [*command, bench.module])


def published_graph(bench: Bench) -> Path:
    """Give the frozen graph of the newest version that this benchmark has published."""
    found = list(bench.work.glob("*/**/bench/[0-9]*/frozen_graph.pb"))
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    root = bench.work / "graph"
    shutil.rmtree(root, ignore_errors=True)
    (root / "work").mkdir(parents=True)
    folders = Folders(ROOT / "samples/clipart", root / "models", root / "cache", root / "work")
    images = sum(1 for path in folders.data.rglob("*.*"))
    run_job(bench, "for its frozen graph", folders, misses=images)
    return published_graph(bench)
