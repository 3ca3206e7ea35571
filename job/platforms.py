"""What a platform that starts the container says about the job, as defaults of the job's options.

A flag, a REGRAFT_ variable and the --config file beat a platform's value. `docs/platforms.md` has
the contracts, each from the platform's own documentation, and what of them is not honoured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.documents import parse_object
from job.errors import ConfigError
from job.redact import redact

Environment = Mapping[str, str]

# The name of a model where nobody gives one: a platform's folders are one job's alone.
NAME = "model"

# What SageMaker shows of a job's failure.
FAILURE_LENGTH = 1024

# Channels that look like labelled images, the first being what a job learns from.
TRAINING_CHANNELS = ("training", "train")
OTHER_CHANNELS = ("validation", "test", "eval", "evaluation")


@dataclass(frozen=True, slots=True)
class Contract:
    """What a platform says.

    `options` has a text for each option, as a REGRAFT_ variable would have it; `unread` a sentence
    for what it says in vain.
    """

    options: dict[str, str]
    unread: tuple[str, ...] = ()


def vertex_ai(environment: Environment) -> Contract | None:
    """Read what Vertex AI's custom training sets; the folders come with `baseOutputDirectory`."""
    said = {name: value for name, value in environment.items() if name.startswith("AIP_") and value}
    folders = {"AIP_MODEL_DIR", "AIP_CHECKPOINT_DIR", "AIP_TENSORBOARD_LOG_DIR", "AIP_DATA_FORMAT"}
    if not folders & said.keys():
        return None
    options = {}
    if "AIP_CHECKPOINT_DIR" in said:
        options = {"models": f"{said['AIP_CHECKPOINT_DIR'].rstrip('/')}/models", "name": NAME}
    if "AIP_MODEL_DIR" in said:
        options["deliver"] = said["AIP_MODEL_DIR"]
    if "AIP_TENSORBOARD_LOG_DIR" in said:
        options["summaries"] = said["AIP_TENSORBOARD_LOG_DIR"]
    found = said.get("AIP_DATA_FORMAT")
    if found == "jsonl":
        # Each row says which side of the split it is for, as the names of the files do.
        sides = ("AIP_TRAINING_DATA_URI", "AIP_VALIDATION_DATA_URI", "AIP_TEST_DATA_URI")
        options["data"] = "\n".join(said[side] for side in sides if side in said)
    elif found:
        unread = f"AIP_DATA_FORMAT is {found}, expected jsonl: the managed data set is not read"
        return Contract(options, (unread,))
    return Contract(options)


def sagemaker(environment: Environment) -> Contract | None:
    """Read what SageMaker puts below /opt/ml for a training job.

    Raises ConfigError for a contract that cannot be honoured: several hosts, images in other
    channels than the training one, hyperparameters that are no JSON object.
    """
    base = _opt_ml(environment)
    if base is None:
        return None
    settings = base / "input/config"
    hosts = _read_object(settings / "resourceconfig.json").get("hosts", [])
    if len(hosts) > 1:
        raise ConfigError(
            f"resourceconfig.json names {len(hosts)} hosts, expected one: they share no storage",
            hint="set InstanceCount to 1",
        )
    given = dict(_hyperparameters(_read_object(settings / "hyperparameters.json")))
    options = {
        # SageMaker copies this folder to S3 as it changes, and back when a job goes on.
        "models": f"{base}/checkpoints/models",
        "name": NAME,
        "deliver": f"{base}/model/{{version}}",
        "stop_timeout": "100",  # of the 120 seconds between SIGTERM and SIGKILL
    }
    if "data" not in given and "REGRAFT_DATA" not in environment:
        options |= _training_channel(base / "input/data")
    return Contract(options | given)


def _opt_ml(environment: Environment) -> Path | None:
    """Give /opt/ml, or what SageMaker's own toolkits take in its place; None anywhere else."""
    base = Path(environment.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    return base if (base / "input/config").is_dir() else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return parse_object(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(
            f"{path} is no JSON object: {error}", hint="SageMaker writes it: see what changed it"
        ) from error


def _hyperparameters(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the options among the hyperparameters: not what SageMaker adds for its own toolkits."""
    for name, value in given.items():
        if not name.startswith(("sagemaker_", "_tuning_")):
            yield name.replace("-", "_"), _text(str(value))


def _text(value: str) -> str:
    """Give a hyperparameter as a REGRAFT_ variable would have it.

    Some estimators of the SDK write a text as a JSON string. Several are a JSON list, as there is
    no line break in a hyperparameter.
    """
    try:
        found = json.loads(value)
    except ValueError:
        return value
    if isinstance(found, list):
        return "\n".join(map(str, found))
    return found if isinstance(found, str) else value


def _training_channel(folder: Path) -> dict[str, str]:
    channels = [path.name for path in sorted(folder.glob("*")) if path.is_dir()]
    training = [name for name in TRAINING_CHANNELS if name in channels]
    if training and (others := [name for name in OTHER_CHANNELS if name in channels]):
        raise ConfigError(
            f"there are the channels {training[0]} and {', '.join(others)}, expected one alone: "
            "the images of a channel are split into train, validation and test",
            hint="give all images in the channel training; to say who is on which side, put an "
            f"import file with ML_USE there and its path ({folder}/training/...) into the "
            "hyperparameter `data`",
        )
    return {"data": str(folder / training[0])} if training else {}


PLATFORMS: dict[str, Callable[[Environment], Contract | None]] = {
    "Vertex AI": vertex_ai,
    "SageMaker": sagemaker,
}


def recognise(environment: Environment = os.environ) -> tuple[str, Contract] | None:
    """Give the platform that the process runs on and what it says; None on none of `PLATFORMS`.

    Raises ConfigError as the platforms' functions do.
    """
    for name, read in PLATFORMS.items():
        contract = read(environment)
        if contract is not None:
            return name, contract
    return None


def failure_note(
    error: Mapping[str, str], environment: Environment = os.environ
) -> dict[Path, str]:
    """Give the file in which the platform looks for what went wrong, with its text; {} for none.

    `error` is that of a result.
    """
    base = _opt_ml(environment)
    if base is None:
        return {}
    said = f"{error['type']}: {error['message']}" + (error["hint"] and f" ({error['hint']})")
    return {base / "output/failure": redact(said)[:FAILURE_LENGTH]}
