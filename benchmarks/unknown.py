"""Does the unknown threshold keep its word about a label that nobody had when it was chosen?

    python benchmarks/unknown.py [--data samples/clipart] [--splits 5] [--rates 0.05 0.1 0.2]

Each label in turn is taken out of the data altogether. A model is trained on the others, as a run
does, and its threshold chosen from those others alone; then it is shown all images of the label
that it never had. The share of them that passes is held against the rate that was asked for. Each
split of the known labels is drawn anew, in their proportions: 80 % train, 10 % validation, 10 %
test. A second table has the same for other scores than the one that `job/unknown.py` uses.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import logsumexp
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from job.backbone import load_backbone
from job.calibrate import fit_temperature
from job.config import DEFAULT_BACKBONE
from job.dataset import Split, build_index
from job.embed import embed
from job.fit import Pair
from job.head import Head
from job.lbfgs import fit
from job.progress import import_tensorflow
from job.storage import open_store
from job.unknown import auroc, choose, threshold_at

USED = "largest probability"
DROPPED = "the same, column dropped, no new fit"


@dataclass(frozen=True, slots=True)
class Trial:
    """A head of some labels, tempered, its split, and all images of the label that it lacks.

    `features` `[n,d]` are those of the new label.
    """

    train: Pair
    validation: Pair
    test: Pair
    features: np.ndarray
    head: Head
    l2: float

    @property
    def classes(self) -> int:
        """Give the number of known labels."""
        return len(self.head.bias)


@dataclass(slots=True)
class Tally:
    """What became of images: counts, the mean accuracy of what passes, and the AUROCs."""

    passed: int = 0
    unknown: int = 0
    rejected: int = 0
    known: int = 0
    right: int = 0
    areas: list[float] = field(default_factory=list)

    def add(self, unknown: np.ndarray, known: np.ndarray, value: float, right: np.ndarray) -> None:
        """Count new label's scores `[n]`, test scores `[m]` and which of those are right."""
        self.passed += int((unknown >= np.float32(value)).sum())
        self.unknown += len(unknown)
        self.rejected += int((known < np.float32(value)).sum())
        self.known += len(known)
        self.right += int(right[known >= np.float32(value)].sum())
        self.areas.append(auroc(unknown, known))

    def cells(self) -> str:
        """Give false accepts, false rejects, the accuracy of what passes, and the AUROC."""
        accuracy = self.right / max(self.known - self.rejected, 1)
        return (
            f"{100 * self.passed / self.unknown:.1f} % | {100 * self.rejected / self.known:.1f} % "
            f"| {100 * accuracy:.1f} % | {np.mean(self.areas):.3f}"
        )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="samples/clipart")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    options = parser.parse_args()
    features, classes, labels = embed_all(options.data, options.backbone)
    trials = {
        label: [draw(features, classes, new, seed) for seed in range(options.splits)]
        for new, label in enumerate(labels)
    }
    print(f"{options.data}: {len(classes)} images, {options.splits} splits\n")
    print_labels(trials, options.rates)
    print_scores([trial for drawn in trials.values() for trial in drawn], options.rates)


def embed_all(data: str, handle: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Give the embeddings `[n,d]` of all images, their classes `[n]`, and the labels."""
    import_tensorflow()
    store = open_store(data)
    index = build_index(store, 10, 10)
    with tempfile.TemporaryDirectory() as kept:
        embeddings = embed(store, index, load_backbone(handle, cache_dir=Path(kept)), threads=8)
    sides = [embeddings.side(split) for split in Split]
    features, classes = (np.concatenate(parts) for parts in zip(*sides, strict=True))
    return features, classes, index.labels


def draw(features: np.ndarray, classes: np.ndarray, new: int, seed: int) -> Trial:
    """Train on all labels but one, as a run does."""
    rows = np.flatnonzero(classes != new)
    known = classes - (classes > new)
    rest, test = train_test_split(rows, test_size=0.1, stratify=classes[rows], random_state=seed)
    train, validation = train_test_split(
        rest, test_size=1 / 9, stratify=classes[rest], random_state=seed
    )
    pairs = [(features[part], known[part]) for part in (train, validation, test)]
    fitted = fit(pairs[0], pairs[1], int(classes.max()))
    temperature = fit_temperature(fitted.head.logits(pairs[1][0]), pairs[1][1])
    head = fitted.head.tempered(temperature)
    return Trial(pairs[0], pairs[1], pairs[2], features[classes == new], head, fitted.l2)


def print_labels(trials: dict[str, list[Trial]], rates: list[float]) -> None:
    """Print what share of each new label's images passes, by the threshold of `job/unknown.py`."""
    print("| label never seen | images | " + " | ".join(f"asked {r:.0%}" for r in rates) + " |")
    print("|---|--:|" + "--:|" * len(rates))
    sums = [Tally() for _ in rates]
    chosen: list[list[float]] = [[] for _ in rates]
    for label, drawn in trials.items():
        cells = []
        for i, rate in enumerate(rates):
            own = Tally()
            for trial in drawn:
                found = choose(
                    refit_at(trial.l2), trial.train, trial.validation, trial.classes,
                    trial.head, rate,
                )  # fmt: skip
                chosen[i].append(found.value)
                for tally in (own, sums[i]):
                    tally.add(*best_scores(trial), found.value, is_right(trial))
            cells.append(f"{own.passed / own.unknown:.1%}")
        print(f"| {label} | {len(drawn[0].features)} | {' | '.join(cells)} |", flush=True)
    print("| all | | " + " | ".join(f"**{t.passed / t.unknown:.1%}**" for t in sums) + " |")
    print(
        "| known, yet rejected | | "
        + " | ".join(f"{t.rejected / t.known:.1%}" for t in sums)
        + " |"
    )
    print("| threshold, median | | " + " | ".join(f"{np.median(c):.3f}" for c in chosen) + " |\n")


def refit_at(l2: float) -> Callable[[Pair, Pair, int], Head]:
    """Give what fits a head with a penalty."""
    return lambda train, validation, classes: fit(train, validation, classes, l2=l2).head


def best_scores(trial: Trial) -> tuple[np.ndarray, np.ndarray]:
    """Give the best scores of the new label's images and of the test images."""
    new, test = trial.head.probabilities(trial.features), trial.head.probabilities(trial.test[0])
    return new.max(axis=1), test.max(axis=1)


def is_right(trial: Trial) -> np.ndarray:
    """Tell which test images the head takes for what they are."""
    right: np.ndarray = trial.head.logits(trial.test[0]).argmax(axis=1) == trial.test[1]
    return right


def energy(head: Head, features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Give the negative energy of Liu et al., NeurIPS 2020, equation 4, at a temperature of 1."""
    return np.asarray(logsumexp(head.logits(features), axis=1), np.float32)


def margin(head: Head, features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Give how far the best probability is above the second."""
    best = np.sort(head.probabilities(features), axis=1)
    return best[:, -1] - best[:, -2]


def cosine(head: Head, features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Give the cosine to the nearest training embedding (Sun et al., ICML 2022, k = 1)."""
    lengths = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in (features, train)]
    return np.asarray(((features / lengths[0]) @ (train / lengths[1]).T).max(axis=1))


SCORES: dict[str, Callable[[Head, np.ndarray, np.ndarray], np.ndarray]] = {
    USED: lambda head, features, train: head.probabilities(features).max(axis=1),
    DROPPED: lambda head, features, train: head.probabilities(features).max(axis=1),
    "best minus second probability": margin,
    "largest logit": lambda head, features, train: head.logits(features).max(axis=1),
    "energy": energy,
    "cosine to the nearest training image": cosine,
}


def print_scores(trials: list[Trial], rates: list[float]) -> None:
    """Print what other scores would do, their thresholds chosen in the same way."""
    print(
        "| score | asked | unknown, yet pass | known, yet rejected | accuracy of the rest | AUROC |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    tallies = {(name, rate): Tally() for name in SCORES for rate in rates}
    for trial in trials:
        left = list(leave_out(trial))
        for name, score in SCORES.items():
            pool = np.concatenate(
                [
                    score(dropped if name == DROPPED else head, unknown, rows)
                    for head, dropped, unknown, rows in left
                ]
            )
            new, test = (
                score(trial.head, rows, trial.train[0]) for rows in (trial.features, trial.test[0])
            )
            for rate in rates:
                value = threshold_at(pool, rate)
                tallies[name, rate].add(new, test, value, is_right(trial))
    for (name, rate), tally in tallies.items():
        print(f"| {name} | {rate:.0%} | {tally.cells()} |")


def leave_out(trial: Trial) -> Iterator[tuple[Head, Head, np.ndarray, np.ndarray]]:
    """Leave out each known label: a new head and the old one without its column, both tempered.

    Beside them are the validation images of that label, and the training images of the others.
    """
    for out in range(trial.classes):
        (features, classes), (others, own) = trial.train, trial.validation
        rows, known = features[classes != out], own != out
        side = others[known], own[known] - (own[known] > out)
        kept = classes[classes != out]
        head = refit_at(trial.l2)((rows, kept - (kept > out)), side, trial.classes - 1)
        temperature = fit_temperature(head.logits(side[0]), side[1])
        columns = np.arange(trial.classes) != out
        dropped = Head(trial.head.kernel[:, columns], trial.head.bias[columns])
        yield head.tempered(temperature), dropped, others[~known], rows


if __name__ == "__main__":
    main()
