"""How a run learns: the solvers and what each of them can be told."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from job.config.declare import did_you_mean, flag, option
from job.config.inputs import InputOptions
from job.errors import ConfigError

LBFGS, SGD = "lbfgs", "sgd"

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
}  # fmt: skip
# These only say what is seen of it.
WATCHING: dict[str, tuple[str, ...]] = {
    LBFGS: (),
    SGD: ("eval_interval", "validation_batch_size", "intermediate_interval"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions(InputOptions):
    """The solver, and what it is told."""

    solver: str = option(
        "How the head is found: lbfgs (the exact optimum) or sgd (retrain.py's loop).",
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
    learning_rate: float = option("Step size of sgd.", 0.01, low=1e-9, high=1e3)
    momentum: float = option("Momentum of sgd.", 0.0, low=0, high=0.999)
    schedule: str = option(
        "How the learning rate of sgd goes on: constant, or by a cosine to 0.", "constant",
        choices=("constant", "cosine"),
    )  # fmt: skip
    train_batch_size: int = option("Training images a step of sgd.", 100, low=1, high=65536)
    eval_interval: int = option("Steps of sgd between two looks at its scores.", 10, low=1)
    validation_batch_size: int | None = option(
        "Validation images at each look of sgd, or `all`.", 100, low=1, special="all"
    )

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

    def decisions(self) -> dict[str, Any]:
        """Give the options that decide what is trained and published, by name."""
        names = ("solver", *DECIDING[self.solver])
        return {name: getattr(self, name) for name in names} | {"formats": self.tflite}

    def check_fit(self) -> None:
        """Raise ConfigError for an option that the solver knows nothing of, or a contradiction."""
        takes = {solver: {*DECIDING[solver], *WATCHING[solver]} for solver in DECIDING}
        for spec in fields(self):
            users = [solver for solver, names in takes.items() if spec.name in names]
            given = getattr(self, spec.name) != spec.default
            if given and users and self.solver not in users:
                raise ConfigError(
                    f"{flag(spec.name)} means nothing to --solver {self.solver}",
                    hint=f"it is for {' and '.join(users)}: leave it out, or give that --solver",
                )
        for name in filter(None, (part.strip() for part in self.formats.split(","))):
            if name not in (*TFLITE, "saved_model", "frozen_graph"):
                raise ConfigError(
                    f"--formats has {name!r}{did_you_mean(name, set(TFLITE))}",
                    hint=f"give some of {', '.join(TFLITE)}; the SavedModel and the frozen graph "
                    "are always there",
                )
        distorted = [flag(name) for name in DISTORTIONS if getattr(self, name)]
        if distorted and not self.views:
            raise ConfigError(
                f"{', '.join(distorted)} with --views 0 would distort nothing",
                hint="give --views, the number of distorted views of each training image: 2 or so",
            )
        if self.views and not distorted:
            raise ConfigError(
                f"--views {self.views} without a distortion would be {self.views} copies",
                hint=f"give one or more of {', '.join(map(flag, DISTORTIONS))}, or no --views",
            )
