"""How many swapped labels are among the first suspects, and what the doctor takes at scale.

    python benchmarks/suspects.py [--data samples/clipart] [--seeds 20]
    python benchmarks/suspects.py --scale 100000 [--labels 20]

The images are embedded once. For every seed `planted.plant` moves 30 of them to another label's
folder; each embedding goes along with the content of its file. Found are swaps among the first 30
and 60 suspects and among all; `listed` is how many those are. The variants are what was left out:
the neighbours, or the doctor's list cut down to the confident joint's off-diagonal cells.

With --scale embeddings are generated: clouds around a label's mean that overlap, 2 % of the labels
wrong, a tenth of the images new since the version before. Memory is the process's peak, in which
the kernel counts what it keeps of the embeddings' file.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from job.doctor.examine import examine
from job.doctor.findings import Before, Material, Suspect
from job.doctor.folds import cross_validate
from job.doctor.reduce import reduced
from job.doctor.suspects import Neighbours, suspects, with_neighbours

SWAPS = 30
FIRST = (30, 60)
WIDTH = 1280
WRONG = 0.02
# How far the generated labels' means are apart, in standard deviations of a feature.
SEPARATION = 0.17


@dataclass(frozen=True, slots=True)
class Embedded:
    """The data set as it is: embeddings, class indices, names and SHA-256 of files."""

    labels: tuple[str, ...]
    features: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]
    digests: tuple[str, ...]


def head_and_neighbours(
    scores: np.ndarray, near: Neighbours, classes: np.ndarray
) -> tuple[Suspect, ...]:
    """Give the suspects as the doctor does."""
    agreed = with_neighbours(scores, near, classes, np.arange(len(classes)))
    return suspects(agreed, classes)


def head_alone(scores: np.ndarray, near: Neighbours, classes: np.ndarray) -> tuple[Suspect, ...]:
    """Give the suspects by the probabilities of the head."""
    return suspects(scores, classes)


def confident_joint(
    scores: np.ndarray, near: Neighbours, classes: np.ndarray
) -> tuple[Suspect, ...]:
    """Give those of the doctor's suspects that the confident joint counts as wrong."""
    agreed = with_neighbours(scores, near, classes, np.arange(len(classes)))
    thresholds = [agreed[classes == label, label].mean() for label in range(agreed.shape[1])]
    passing = np.where(agreed >= thresholds, agreed, -1)
    counted = (passing.max(axis=1) > 0) & (passing.argmax(axis=1) != classes)
    return tuple(s for s in suspects(agreed, classes) if counted[s.row])


VARIANTS: dict[str, Callable[[np.ndarray, Neighbours, np.ndarray], tuple[Suspect, ...]]] = {
    "as the doctor does": head_and_neighbours,
    "head alone": head_alone,
    "confident joint only": confident_joint,
}


def main() -> None:
    """Print the table, or the figures of a run at scale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("samples/clipart"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--scale", type=int)
    parser.add_argument("--labels", type=int, default=20)
    options = parser.parse_args()
    if options.scale:
        at_scale(options.scale, options.labels)
    else:
        print_table(options.data, options.seeds)


def print_table(data: Path, seeds: int) -> None:
    """Print a row a seed, and below them the mean and the least of every variant."""
    embedded = embed_data(data)
    features = reduced(embedded.features)
    near = neighbours_of(features)
    n, count = len(features), len(embedded.labels)
    print(f"{data}: {n} images, {count} labels, {SWAPS} swapped for each of {seeds} seeds\n")
    columns = " | ".join(f"first {first}" for first in FIRST)
    print(f"| seed | {columns} | of all | listed |")
    print("|---|---|---|---|---|")
    found: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    for seed in range(seeds):
        swapped, classes = swap(data, embedded, seed)
        scores = cross_validate(features, classes, np.arange(n), count)
        for name, variant in VARIANTS.items():
            ranked = [suspect.row for suspect in variant(scores, near, classes)]
            hits = [np.isin(swapped, ranked[:first]).mean() for first in (*FIRST, n)]
            found[name].append([*hits, len(ranked)])
        print(line(str(seed), found["as the doctor does"][-1]))
    for name, rows in found.items():
        print(line(f"{name}: mean", np.mean(rows, axis=0)))
        print(line(f"{name}: least", np.min(rows, axis=0)))


def line(name: str, figures: list[float] | np.ndarray) -> str:
    """Give a row of the table."""
    *shares, listed = figures
    return f"| {name} | {' | '.join(f'{share:.2f}' for share in shares)} | {listed:.0f} |"


def neighbours_of(features: np.ndarray) -> Neighbours:
    """Give each row's 10 nearest others, as a run does."""
    from job.neighbours import nearest

    return nearest(features, 10)


def embed_data(data: Path) -> Embedded:
    """Embed a data set with the default backbone."""
    from job.backbone import load_backbone
    from job.config import DEFAULT_BACKBONE
    from job.embed import embed
    from job.index import build_index
    from job.sources import folder_rows
    from job.storage import open_store

    store = open_store(str(data))
    with tempfile.TemporaryDirectory() as cache:
        backbone = load_backbone(DEFAULT_BACKBONE, cache_dir=Path(cache))
        found = embed(
            store, build_index(folder_rows(store), 10, 10), backbone, batch_size=32, threads=8
        )
    classes = np.array([example.class_index for example in found.index.examples])
    names = tuple(example.name for example in found.index.examples)
    return Embedded(found.index.labels, found.features, classes, names, found.digests)


def swap(data: Path, embedded: Embedded, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the rows whose labels `plant` swaps, and all class indices after that."""
    from planted import plant

    classes = embedded.classes.copy()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "planted")
        truth = plant(data, target, copies=0, swaps=SWAPS, seed=seed)
        # Two of the samples' files may be the same: it is one that is gone which was moved.
        gone: dict[tuple[str, str], list[int]] = {}
        for row, name in enumerate(embedded.names):
            if not (target / name).exists():
                label = embedded.labels[embedded.classes[row]]
                gone.setdefault((label, embedded.digests[row]), []).append(row)
        for moved in truth.swaps:
            digest = hashlib.sha256((target / moved.name).read_bytes()).hexdigest()
            row = gone[moved.true_label, digest].pop()
            classes[row] = embedded.labels.index(moved.label)
    return np.flatnonzero(classes != embedded.classes), classes


def at_scale(n: int, labels: int) -> None:
    """Examine generated embeddings and print seconds, memory and what came out."""
    with tempfile.TemporaryDirectory() as folder:
        data, wrong = generate(Path(folder), n, labels)
        old = np.flatnonzero(np.arange(n) % 10 != 0)
        before = Before(
            version=1,
            names=tuple(data.names[row] for row in old),
            digests=tuple(data.digests[row] for row in old),
            labels=tuple(data.labels[data.classes[row]] for row in old),
            rows=np.arange(0, len(old), 10),
            features=data.features[old[::10]],
        )
        print(f"{n} images of {WIDTH} features, {labels} labels, {wrong.sum()} of them wrong")
        print(f"before: {peak():,.0f} MiB at the most")
        start = time.perf_counter()
        near = neighbours_of(reduced(data.features))
        print(f"neighbours: {time.perf_counter() - start:.0f} s, {peak():,.0f} MiB at the most")
        start = time.perf_counter()
        found = examine(data, before, (), near)
        print(f"examine: {time.perf_counter() - start:.0f} s, {peak():,.0f} MiB at the most")
    ranked = np.array([suspect.row for suspect in found.suspects], np.int64)
    hits = np.isin(np.flatnonzero(wrong), ranked).mean()
    first = wrong[ranked[: wrong.sum()]].mean()
    print(f"accuracy {found.accuracy:.3f}, {len(ranked)} suspects with {hits:.2f} of the wrong;")
    print(f"of the first {wrong.sum()} suspects {first:.2f} are wrong")
    print(f"{len(found.outliers)} outliers, {len(found.alike)} pairs alike, {found.curve}")
    print(f"drift p-value {found.drift.p_value if found.drift else None}")


def generate(folder: Path, n: int, labels: int) -> tuple[Material, np.ndarray]:
    """Write embeddings into a file and give the data set of them, and which labels are wrong."""
    random = np.random.default_rng(0)
    truth = random.integers(labels, size=n)
    means = SEPARATION * random.normal(size=(labels, WIDTH))
    # As a run has them: columns of wider rows, in a file.
    table = np.memmap(folder / "rows", np.float32, "w+", shape=(n, WIDTH + 66))
    features = table[:, :WIDTH]
    for start in range(0, n, 4096):
        classes = truth[start : start + 4096]
        noise = random.normal(size=(len(classes), WIDTH))
        # Few directions vary much, as in a backbone's features, and none is below 0.
        noise[:, :40] *= 4
        features[start : start + 4096] = np.maximum(0, means[classes] + noise)
    wrong = random.random(n) < WRONG
    given = np.where(wrong, (truth + random.integers(1, labels, n)) % labels, truth)
    material = Material(
        names=tuple(f"{label}/{row}.jpg" for row, label in enumerate(given)),
        labels=tuple(f"label {label}" for label in range(labels)),
        classes=given,
        features=features,
        fingerprints=np.zeros((n, 64), np.float32),
        sizes=np.zeros((n, 2), np.float32),
        digests=tuple(str(row) for row in range(n)),
        file_bytes=np.ones(n, np.int64),
        groups=np.arange(n),
    )
    return material, wrong


def peak() -> float:
    """Give the most memory that the process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
