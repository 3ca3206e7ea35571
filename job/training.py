"""Embeddings to a trained classifier: the solver by its name, watched, its state kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from job import lbfgs, sgd
from job.backbone import Backbone
from job.checkpoints import Checkpoints
from job.config import RunConfig
from job.dataset import Index, Split
from job.distort import view_loader, view_name
from job.divide import Divided
from job.embed import Embeddings
from job.fit import Fit, Pair, Session
from job.head import Head
from job.labelling import TASKS, Thresholds
from job.manifest import inputs_digest, split_digest
from job.progress import Progress
from job.recipe import tuning_options
from job.result import Result
from job.sgd import SgdOptions
from job.stages import Source, embed_images, open_cache
from job.stream import require_all
from job.task import Solved, Task, distortion_of
from job.unknown import Threshold, check_rate, choose, choose_threshold
from job.views import embed_views
from job.watch import Watch


@dataclass(frozen=True, slots=True)
class Trained:
    """What fit made: `head` is the one to export, its logits divided by the temperature.

    `backbone` is the one that the head goes with, `test` the test images as it embeds them, and
    `thresholds` are for its scores. `divided` has the embeddings that the fit began with, `inputs`
    is the digest of what they are of. `checkpoints` have the fit's state until the model is
    published. `unknown` is below which best score an image is of no label; None: it never is.
    """

    fit: Fit
    head: Head
    temperature: float
    thresholds: Thresholds
    backbone: Backbone
    test: Pair
    divided: Divided
    inputs: str
    checkpoints: Checkpoints
    unknown: Threshold | None = None

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings that the fit began with."""
        return self.divided.embeddings


def train(
    config: RunConfig, source: Source, divided: Divided, progress: Progress, result: Result
) -> Trained | None:
    """Fit the head, and on the validation images its temperature, thresholds and what is unknown.

    None where this worker has only helped another to fit, which goes on with it.
    Raises DataError when the training images do not tell some label apart from the rest.
    """
    embeddings, plan, backbone = divided.embeddings, source.plan, source.backbone
    labelling, labels = TASKS[config.task], embeddings.index.labels
    labelling.check(embeddings.side(Split.TRAIN, labelling.targets)[1], labels)
    validation = embeddings.side(Split.VALIDATION, labelling.targets)
    if config.unknown_rate is not None:
        check_rate(config.unknown_rate, len(labels), len(validation[1]))
    training = training_side(config, source, embeddings, progress, result)
    digest = inputs_digest(config, plan.index, embeddings.checksums, backbone.digest)
    checkpoints = open_checkpoints(config, source, digest, split_digest(embeddings.index))
    run = f"{config.name}-{digest[:12]}"
    with Watch(config, source, labels, run) as watch, checkpoints:
        with progress.phase("fit", steps_of(config, len(training[1]))) as advance:
            session = Session(advance, watch.observe, checkpoints)
            task = Task(config, source, embeddings, training, validation, session, watch)
            solved = SOLVERS[config.solver](task)
        if not source.replicas.is_chief:
            result.status = "helped"
            return None
        fit = solved.fit
        validation, test = scored_sides(config, source, embeddings, solved.backbone, progress)
        temperature = labelling.temperature(fit.head.logits(validation[0]), validation[1])
        head = fit.head.tempered(temperature)
        thresholds = labelling.thresholds(head.probabilities(validation[0]), validation[1])
        watch.conclude(fit, solved.backbone, head, validation, thresholds)
        unknown = find_unknown(config, task, fit, temperature, progress)
    return Trained(
        fit, head, temperature, thresholds, solved.backbone, test, divided, digest, checkpoints,
        unknown,
    )  # fmt: skip


def open_checkpoints(config: RunConfig, source: Source, inputs: str, sides: str) -> Checkpoints:
    """Keep the state of a fit to these inputs and sides of the split, digests in hex: the chief's.

    Raises UnavailableError where the workers that train together have not the same of both.
    """
    source.replicas.require_same(inputs + sides)
    models = source.plan.models if source.replicas.is_chief else None
    return Checkpoints(models, f"{inputs}/{sides}", config.checkpoint_interval)


def find_unknown(
    config: RunConfig, task: Task, fit: Fit, temperature: float, progress: Progress
) -> Threshold | None:
    """Choose what is unknown to a head, where that is asked for; as `choose_threshold` raises."""
    if config.unknown_rate is None:
        return None
    train, validation, classes = task.train, task.validation, task.classes
    with progress.phase("unknown"):
        if config.solver == "sgd":

            def refit(train: Pair, validation: Pair, classes: int) -> Head:
                return sgd.fit(train, validation, classes, sgd_options(config)).head

            tempered = fit.head.tempered(temperature)
            return choose(refit, train, validation, classes, tempered, config.unknown_rate)
        return choose_threshold(
            train, validation, classes, fit.head,
            rate=config.unknown_rate,
            l2=fit.l2,
            balanced=config.class_weights == "balanced",
            temperature=temperature,
        )  # fmt: skip


def scored_sides(
    config: RunConfig,
    source: Source,
    embeddings: Embeddings,
    backbone: Backbone,
    progress: Progress,
) -> tuple[Pair, Pair]:
    """Give the validation and the test images as a backbone embeds them, which may be a new one.

    Raises UnavailableError for an image that was there before and cannot be read any more.
    """
    if backbone.digest != source.backbone.digest:
        examples = embeddings.index.examples
        others = embeddings.index.without(e.name for e in examples if e.split is Split.TRAIN)
        tuned = replace(source, backbone=backbone, cache=None)
        embeddings = embed_images(config, tuned, others, progress, "embed again")
        require_all(embeddings.skipped)
    targets = TASKS[config.task].targets
    return embeddings.side(Split.VALIDATION, targets), embeddings.side(Split.TEST, targets)


def training_side(
    config: RunConfig, source: Source, embeddings: Embeddings, progress: Progress, result: Result
) -> Pair:
    """Give the training images' embeddings and classes, their views behind them."""
    distortion, backbone = distortion_of(config), source.backbone

    def embed_view(index: Index, view: int) -> Embeddings:
        cache = open_cache(config, backbone.digest, result, view_name(distortion, view))
        opener = partial(
            view_loader, backbone.image_size, distortion, view,
            exact=config.exact_decode, max_pixels=config.max_pixels,
        )  # fmt: skip
        place = replace(source, cache=cache)
        return embed_images(config, place, index, progress, f"view {view}", opener)

    return embed_views(
        embeddings, config.views, embed_view,
        scratch=source.scratch, targets=TASKS[config.task].targets,
    )  # fmt: skip


def steps_of(config: RunConfig, images: int) -> int:
    """Give how many steps the solver will take at most, each of its own kind."""
    if config.solver == "sgd":
        return config.steps
    penalties = len(lbfgs.L2_PATH) if config.l2 is None else 1
    return penalties + (tuning_options(config).steps(images) if config.solver == "finetune" else 0)


def solve_lbfgs(task: Task) -> Solved:
    """Run to the optimum."""
    return Solved(_optimum(task), task.source.backbone)


def solve_sgd(task: Task) -> Solved:
    """Take retrain.py's steps."""
    config, backbone = task.config, task.source.backbone
    found = sgd.fit(
        task.train, task.validation, task.classes, sgd_options(config), session=task.session,
        watch=lambda step, head: task.watch.reached(step, head, lambda: backbone, config.steps),
    )  # fmt: skip
    return Solved(found, backbone)


def sgd_options(config: RunConfig) -> SgdOptions:
    """Give the settings of sgd that a configuration asks for."""
    return SgdOptions(
        steps=config.steps,
        learning_rate=config.learning_rate or SgdOptions().learning_rate,
        momentum=config.momentum,
        cosine=config.schedule == "cosine",
        batch_size=config.train_batch_size or SgdOptions().batch_size,
        eval_interval=config.eval_interval,
        validation_batch_size=config.validation_batch_size,
        l2=config.l2 or 0.0,
        balanced=config.class_weights == "balanced",
    )


def solve_finetune(task: Task) -> Solved:
    """Run to the optimum, and train the backbone from there on."""
    # Keras, which moves the weights, takes seconds to import.
    from job.tuning import tune

    return tune(task, _optimum(task))


def _optimum(task: Task) -> Fit:
    config, balanced = task.config, task.config.class_weights == "balanced"
    return lbfgs.fit(
        task.train, task.validation, task.classes, activation=TASKS[config.task].activation,
        l2=config.l2, balanced=balanced, session=task.session,
    )  # fmt: skip


SOLVERS: dict[str, Callable[[Task], Solved]] = {
    "lbfgs": solve_lbfgs,
    "sgd": solve_sgd,
    "finetune": solve_finetune,
}
