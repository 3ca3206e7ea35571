"""How a run learns: the solvers and what each of them can be told."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from job.config.declare import did_you_mean, flag, option
from job.config.reading import ReadOptions
from job.errors import ConfigError

SINGLE, MULTILABEL = "single", "multilabel"
LBFGS, SGD, FINETUNE = "lbfgs", "sgd", "finetune"

# What `--formats` knows beside the SavedModel and the frozen graph: `tflite.FORMATS`.
TFLITE = ("tflite-float16", "tflite-dynamic", "tflite-int8")

DISTORTIONS = ("flip_left_right", "random_crop", "random_scale", "random_brightness")

# What is trained depends on these; another solver's say nothing, and are refused where they are
# given all the same.
DECIDING: dict[str, tuple[str, ...]] = {
    LBFGS: ("l2", "class_weights", "views", *DISTORTIONS),
    SGD: (
        "l2", "class_weights", "views", *DISTORTIONS, "steps", "learning_rate", "momentum",
        "schedule", "train_batch_size",
    ),
    FINETUNE: (
        "l2", "class_weights", *DISTORTIONS, "learning_rate", "train_batch_size", "epochs",
        "unfreeze", "backbone_learning_rate", "warmup", "weight_decay", "label_smoothing",
        "augment", "ema", "patience", "mixed_precision", "accumulate",
    ),
}  # fmt: skip
# These only say what is seen of it.
WATCHING: dict[str, tuple[str, ...]] = {
    LBFGS: (),
    SGD: ("eval_interval", "validation_batch_size", "intermediate_interval"),
    FINETUNE: ("intermediate_interval",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions(ReadOptions):
    """The task, the solver, and what it is told."""

    task: str = option(
        "single: an image has one label. multilabel: any number, each selected where its score "
        "reaches a threshold that the validation images choose.",
        SINGLE, choices=(SINGLE, MULTILABEL),
    )  # fmt: skip
    solver: str = option(
        "How the head is found: lbfgs (the exact optimum), sgd (retrain.py's loop) or finetune "
        "(lbfgs, and then the layers of the backbone with it).",
        LBFGS, choices=tuple(DECIDING),
    )  # fmt: skip
    l2: float | None = option(
        "L2 penalty of the head; without it lbfgs chooses one on the validation images, and sgd "
        "has none.",
        low=0,
    )
    class_weights: str = option(
        "balanced: every label counts the same, however many images it has.", "none",
        choices=("none", "balanced"),
    )  # fmt: skip
    flip_left_right: bool = option("Distortion: mirror half of the training images.", False)
    random_crop: float = option(
        "Distortion: percentage of a margin to crop off at random.", 0.0, low=0, high=100
    )
    random_scale: float = option(
        "Distortion: percentage by which images are enlarged at random, at most.",
        0.0, low=0, high=100,
    )  # fmt: skip
    random_brightness: float = option(
        "Distortion: percentage by which pixels are brighter or darker at random, at most.",
        0.0, low=0, high=100,
    )  # fmt: skip
    views: int = option(
        "Distorted views of every training image that lbfgs and sgd learn from besides the image "
        "itself; embedded once and cached.",
        0, low=0, high=100,
    )  # fmt: skip
    steps: int = option("Steps of sgd.", 4000, low=1)
    learning_rate: float | None = option(
        "Step size of sgd (0.01 when it is not given), and of finetune for the head (0.001).",
        low=1e-9, high=1e3,
    )  # fmt: skip
    momentum: float = option("Momentum of sgd.", 0.0, low=0, high=0.999)
    schedule: str = option(
        "How the learning rate of sgd goes on: constant, or by a cosine to 0.", "constant",
        choices=("constant", "cosine"),
    )  # fmt: skip
    train_batch_size: int | None = option(
        "Training images a step of sgd (100 when it is not given) or finetune (32).",
        low=1, high=65536,
    )  # fmt: skip
    eval_interval: int = option("Steps of sgd between two looks at its scores.", 10, low=1)
    validation_batch_size: int | None = option(
        "Validation images at each look of sgd, or `all`.", 100, low=1, special="all"
    )

    epochs: int = option(
        "How often finetune takes each training image, at most.", 5, low=1, high=10000
    )
    unfreeze: int | None = option(
        "Layers of the backbone that finetune trains, from the last one on, or `all`.",
        low=0, special="all",
    )  # fmt: skip
    backbone_learning_rate: float = option(
        "Step size of finetune for the backbone.", 1e-4, low=0, high=10
    )
    warmup: float = option(
        "Share of finetune's steps in which both rates rise from 0; then they fall by a cosine.",
        0.1, low=0, high=1,
    )  # fmt: skip
    weight_decay: float = option(
        "AdamW's decay of the backbone's kernels in finetune.", 0.01, low=0, high=1
    )
    label_smoothing: float = option(
        "Share of a label that finetune gives to all labels alike.", 0.0, low=0, high=0.9
    )
    augment: str = option(
        "What finetune does to training images besides the distortions.", "none",
        choices=("none", "mixup", "cutmix", "randaugment"),
    )  # fmt: skip
    ema: float = option(
        "Decay a step of the average of finetune's weights, which is then what is kept; 0: off.",
        0.0, low=0, high=0.99999,
    )  # fmt: skip
    patience: int | None = option(
        "Epochs of finetune without a better validation loss after which it stops, or `never`.",
        3, low=1, special="never",
    )  # fmt: skip
    mixed_precision: bool = option("Have finetune multiply in float16; needs a GPU.", False)
    accumulate: int | None = option(
        "Pieces that a batch of finetune is cut into, or `auto`: 1 on a GPU, and on a CPU of 8 "
        "images.",
        low=1, high=65536, special="auto",
    )  # fmt: skip
    unknown_rate: float | None = option(
        "Share of images of labels the model does not know that may pass as known; serve_bytes "
        "then says which are unknown. Not given: off.",
        low=1e-4, high=0.5,
    )  # fmt: skip
    formats: str = option(
        "What is exported beside the SavedModel and the frozen graph, with commas between: "
        "tflite-float16, tflite-dynamic, tflite-int8.",
        "",
    )
    summaries: str | None = option(
        "Where TensorBoard's summaries go: gs://bucket/prefix or a path; a folder a run."
    )
    intermediate_interval: int | None = option(
        "Steps between two frozen graphs of the model as it is by then, in "
        "MODELS/NAME/.intermediate/; none when it is not given.",
        low=1,
    )

    @property
    def tflite(self) -> tuple[str, ...]:
        """Give the TFLite formats that are asked for, in the order of TFLITE."""
        asked = {name.strip() for name in self.formats.split(",")}
        return tuple(name for name in TFLITE if name in asked)

    @property
    def is_distorted(self) -> bool:
        """Tell whether training images are distorted."""
        return any(getattr(self, name) for name in DISTORTIONS)

    def decisions(self) -> dict[str, Any]:
        """Give the options that decide what is trained and published, by name."""
        names = ("task", "solver", *DECIDING[self.solver])
        if self.unknown_rate is not None:  # versions of before there was one are still the same
            names += ("unknown_rate",)
        return {name: getattr(self, name) for name in names} | {"formats": self.tflite}

    def check_fit(self) -> None:
        """Raise ConfigError for an option that the solver knows nothing of, or a contradiction."""
        if self.task == MULTILABEL and self.solver != LBFGS:
            raise ConfigError(
                f"--solver {self.solver} cannot fit --task {MULTILABEL}",
                hint=f"give --solver {LBFGS}, which finds the exact optimum",
            )
        takes = {solver: {*DECIDING[solver], *WATCHING[solver]} for solver in DECIDING}
        for spec in fields(self):
            users = [solver for solver, names in takes.items() if spec.name in names]
            given = getattr(self, spec.name) != spec.default
            if given and users and self.solver not in users:
                raise ConfigError(
                    f"{flag(spec.name)} means nothing to --solver {self.solver}",
                    hint=f"it is for {' and '.join(users)}: leave it out, or give that --solver",
                )
        self._check_unknown()
        for name in filter(None, (part.strip() for part in self.formats.split(","))):
            if name not in (*TFLITE, "saved_model", "frozen_graph"):
                raise ConfigError(
                    f"--formats has {name!r}{did_you_mean(name, set(TFLITE))}",
                    hint=f"give some of {', '.join(TFLITE)}; the SavedModel and the frozen graph "
                    "are always there",
                )
        distorted = [flag(name) for name in DISTORTIONS if getattr(self, name)]
        if distorted and self.solver != FINETUNE and not self.views:
            raise ConfigError(
                f"{', '.join(distorted)} with --views 0 would distort nothing",
                hint="give --views, the number of distorted views of each training image: 2 or so",
            )
        if self.views and not distorted:
            raise ConfigError(
                f"--views {self.views} without a distortion would be {self.views} copies",
                hint=f"give one or more of {', '.join(map(flag, DISTORTIONS))}, or no --views",
            )

    def _check_unknown(self) -> None:
        """Raise ConfigError where no label can be left out as if the model did not know it."""
        if self.unknown_rate is not None and self.task == MULTILABEL:
            raise ConfigError(
                f"--unknown-rate means nothing to --task {MULTILABEL}: where no label is selected, "
                "the image is of none that the model knows",
                hint=f"leave --unknown-rate out, or give --task {SINGLE}",
            )
        if self.unknown_rate is not None and self.solver == FINETUNE:
            raise ConfigError(
                f"--unknown-rate with --solver {FINETUNE}: the backbone it tunes has seen every "
                "label, so that none can be left out to see how one that is unknown would score",
                hint=f"leave --unknown-rate out, or give --solver {LBFGS} or {SGD}",
            )
