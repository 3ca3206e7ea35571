"""What stands between a run and its solvers: the task that one is given, and what it found."""

from __future__ import annotations

from dataclasses import dataclass

from job.backbone import Backbone
from job.config import DISTORTIONS, RunConfig
from job.distort import Distortion
from job.embed import Embeddings
from job.fit import Fit, Pair, Session
from job.stages import Source
from job.watch import Watch


@dataclass(frozen=True, slots=True)
class Task:
    """What a solver is given, and where it says how it gets on."""

    config: RunConfig
    source: Source
    embeddings: Embeddings
    train: Pair
    validation: Pair
    session: Session
    watch: Watch

    @property
    def classes(self) -> int:
        """Give the number of labels."""
        return len(self.embeddings.index.labels)


@dataclass(frozen=True, slots=True)
class Solved:
    """What a solver found, and the backbone that its head goes with."""

    fit: Fit
    backbone: Backbone


def distortion_of(config: RunConfig) -> Distortion:
    """Give the distortion that the options ask for."""
    return Distortion(**{name: getattr(config, name) for name in DISTORTIONS})
