"""TensorFlow Serving, asked over its REST API about one version, and its configuration."""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from job.documents import parse_object
from job.errors import ConfigError, PublishError, UnavailableError

if TYPE_CHECKING:  # that module is about TensorFlow, this one needs none
    from job.verify import Golden

POLL_SECONDS = 0.5
# A first answer may have to wait for kernels to be compiled.
ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """A JSON object and its HTTP status; anything else is no answer of TensorFlow Serving."""

    code: int
    content: dict[str, Any]

    @property
    def error(self) -> str:
        return f"HTTP {self.code}: {self.content.get('error', self.content)}"


def wait_available(url: str, name: str, version: int, *, timeout: float) -> None:
    """Wait until the server at `url` says that a version is AVAILABLE.

    `url` is that of the REST API, such as http://serving:8501; `timeout` is in seconds. The server
    is asked twice a second: https://www.tensorflow.org/tfx/serving/api_rest#model_status_api.

    Raises PublishError when the server gave up loading the version, or did not have it in time;
    UnavailableError when it never answered at all; ConfigError when `url` is none.
    """
    start = time.monotonic()
    deadline = start + timeout
    seen = trouble = ""
    while True:
        left = deadline - time.monotonic()
        try:
            answer = _ask(_model(url, name, version), timeout=max(left, POLL_SECONDS))
            state, failed, seen = _read_status(answer)
            trouble = ""
        except UnavailableError as error:
            trouble = error.message
        else:
            if state == "AVAILABLE":
                return
            if failed:
                break
        if time.monotonic() + POLL_SECONDS > deadline:
            break
        time.sleep(POLL_SECONDS)
    if not seen:
        raise UnavailableError(trouble, hint="check --serving-url, and that the server is up")
    raise PublishError(
        f"{url} does not serve version {version} of {name!r} after "
        f"{time.monotonic() - start:.0f} s; last seen: {seen}"
        + (f"; then {trouble}" if trouble else ""),
        hint="the server's log says why; check that its base path is where this was published",
    )


def _read_status(answer: _Answer) -> tuple[str, bool, str]:
    """Give the state, whether it is a failure for good, and both in words.

    Raises UnavailableError when the answer is none to this question.
    """
    if answer.code == 404 and "error" in answer.content:
        return "", False, str(answer.content["error"])
    try:
        (entry,) = answer.content["model_version_status"]
        state, status = entry["state"], entry["status"]
        code = status.get("error_code", "OK")
        message = status.get("error_message", "")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UnavailableError(f"the server answered {answer.error}") from None
    words = state if code == "OK" else f"{state}, {code}: {message}"
    # END alone is a version that was unloaded earlier and may be loaded again.
    return state, state == "END" and code != "OK", words


def compare_answers(
    url: str, name: str, version: int, goldens: Sequence[Golden], *, tolerance: float
) -> list[str]:
    """Send every golden image to a version's `serve_bytes`; give a sentence for each that differs.

    `tolerance` is the largest difference of a score that passes; REST writes float32 as decimals,
    so 1e-4 leaves room for another machine's kernels.

    Raises UnavailableError when the server cannot be reached, ConfigError when `url` is none.
    """
    problems = []
    for golden in goldens:
        image = {"image_bytes": {"b64": base64.b64encode(golden.contents).decode()}}
        body = {"signature_name": "serve_bytes", "instances": [image]}
        answer = _ask(f"{_model(url, name, version)}:predict", body, timeout=ANSWER_SECONDS)
        if problem := _difference(answer, golden.prediction, tolerance):
            problems.append(f"{golden.name}: {problem}")
    return problems


def _difference(answer: _Answer, expected: np.ndarray, tolerance: float) -> str:
    try:
        (row,) = answer.content["predictions"]
        found = np.asarray(row["prediction"], np.float64)
    except (KeyError, TypeError, ValueError):
        return f"the server answered {answer.error[:500]}"
    if found.shape != expected.shape:
        return f"the server gave {found.shape} scores, expected {expected.shape}"
    worst = float(np.abs(found - expected).max())
    if worst <= tolerance:  # false for NaN, as it should be
        return ""
    return f"a score is {worst:.2g} from the trained model's, expected at most {tolerance:.2g}"


def models_config(name: str, base_path: str, channels: Mapping[str, int]) -> str:
    """Write the text for `tensorflow_model_server --model_config_file`: each channel is a label.

    The server then serves the versions of the channels and no others, and answers under
    /v1/models/NAME/labels/CHANNEL. `base_path` is the model's folder as the server sees it. A
    server that starts with labels needs `--allow_version_labels_for_unavailable_models`. Format:
    tensorflow_serving/config/model_server_config.proto.

    Raises ConfigError when there is no channel: the server would serve nothing.
    """
    if not channels:
        raise ConfigError(
            f"{base_path} has no channel, so there is nothing to serve", hint="publish a model"
        )
    versions = "".join(f"        versions: {v}\n" for v in sorted(set(channels.values())))
    labels = "".join(
        f"    version_labels {{ key: {_quote(label)} value: {version} }}\n"
        for label, version in sorted(channels.items())
    )
    return (
        "model_config_list {\n  config {\n"
        f"    name: {_quote(name)}\n    base_path: {_quote(base_path)}\n"
        '    model_platform: "tensorflow"\n'
        f"    model_version_policy {{\n      specific {{\n{versions}      }}\n    }}\n"
        f"{labels}  }}\n}}\n"
    )


def _quote(text: str) -> str:
    """Quote as protocol buffers' text format does: octal escapes for all but plain ASCII."""
    plain = {ord(c) for c in map(chr, range(32, 127)) if c not in '"\\'}
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'


def _model(url: str, name: str, version: int) -> str:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            f"--serving-url is {url!r}, expected http:// or https://",
            hint="give TensorFlow Serving's REST address, such as http://serving:8501",
        )
    return f"{url.rstrip('/')}/v1/models/{urllib.parse.quote(name, safe='')}/versions/{version}"


def _ask(url: str, body: dict[str, Any] | None = None, *, timeout: float) -> _Answer:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310  (_model lets http and https through only)
        url, data, {"Content-Type": "application/json"}
    )
    try:
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310
                code, text = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                code, text = error.code, error.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnavailableError(f"{url} cannot be reached: {error}") from error
    try:
        return _Answer(code, parse_object(text))
    except ValueError as error:
        raise UnavailableError(
            f"{url} is no TensorFlow Serving: HTTP {code} without a JSON object"
        ) from error
