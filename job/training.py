"""Embeddings to a trained classifier: the solver by its name, with its state kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from job import lbfgs, sgd
from job.backbone import Backbone
from job.calibrate import fit_temperature
from job.checkpoints import Checkpoints
from job.config import RunConfig
from job.dataset import Split
from job.embed import Embeddings
from job.fit import Fit, Pair, Session
from job.head import Head
from job.manifest import inputs_digest
from job.progress import Progress
from job.sgd import SgdOptions
from job.stages import Source


@dataclass(frozen=True, slots=True)
class Trained:
    """What fit made: `head` is the one to export, its logits divided by the temperature.

    `backbone` and `embeddings` are what the head goes with: those that it was given, unless the
    backbone was trained as well. `checkpoints` have the fit's state until the model is published.
    """

    fit: Fit
    head: Head
    temperature: float
    backbone: Backbone
    embeddings: Embeddings
    checkpoints: Checkpoints


def train(config: RunConfig, source: Source, embeddings: Embeddings, progress: Progress) -> Trained:
    """Fit the head, and on the validation images its temperature."""
    digest = inputs_digest(
        config, embeddings.index.labels, embeddings.checksums, source.backbone.digest
    )
    checkpoints = Checkpoints(source.plan.models, digest, config.checkpoint_interval)
    training, validation = embeddings.side(Split.TRAIN), embeddings.side(Split.VALIDATION)
    with progress.phase("fit", steps_of(config)) as advance, checkpoints:
        session = Session(advance, checkpoints=checkpoints)
        classes = len(embeddings.index.labels)
        fitted = SOLVERS[config.solver](config, training, validation, classes, session)
        temperature = fit_temperature(fitted.head.logits(validation[0]), validation[1])
    head = fitted.head.tempered(temperature)
    return Trained(fitted, head, temperature, source.backbone, embeddings, checkpoints)


def steps_of(config: RunConfig) -> int:
    """Give how many steps the solver will take at most, in its own kind of step."""
    if config.solver == "sgd":
        return config.steps
    return len(lbfgs.L2_PATH) if config.l2 is None else 1


def solve_lbfgs(
    config: RunConfig, train: Pair, validation: Pair, classes: int, session: Session
) -> Fit:
    """Run to the optimum."""
    balanced = config.class_weights == "balanced"
    return lbfgs.fit(train, validation, classes, l2=config.l2, balanced=balanced, session=session)


def solve_sgd(
    config: RunConfig, train: Pair, validation: Pair, classes: int, session: Session
) -> Fit:
    """Take retrain.py's steps."""
    options = SgdOptions(
        steps=config.steps,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        cosine=config.schedule == "cosine",
        batch_size=config.train_batch_size,
        eval_interval=config.eval_interval,
        validation_batch_size=config.validation_batch_size,
        l2=config.l2 or 0.0,
        balanced=config.class_weights == "balanced",
    )
    return sgd.fit(train, validation, classes, options, session=session)


SOLVERS: dict[str, Callable[[RunConfig, Pair, Pair, int, Session], Fit]] = {
    "lbfgs": solve_lbfgs,
    "sgd": solve_sgd,
}
