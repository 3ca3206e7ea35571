"""A stand-in for TensorFlow Serving, as a process: polls a base path, loads versions, answers REST.

    python tests/serving_standin.py --base-path PATH --name NAME --port PORT

It keeps to what TensorFlow Serving's sources and documentation say:
- file_system_storage_path_source: every child whose name is an integer is a version, whole or not;
  the largest is aspired (policy `latest`, 1); a base path that is not there changes nothing.
- aspired_versions_manager, availability_preserving_policy: what is no longer aspired is unloaded
  once an aspired version is ready, or nothing is aspired; a version that is aspired again waits
  until its earlier life is over.
- loader_harness: 1 try and 5 more, a minute apart; then END with the error, and no further try.
- saved_model_warmup: each record of assets.extra/tf_serving_warmup_requests runs before AVAILABLE.
- http_rest_api_handler, json_tensor: model status and predict in the row format.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import re
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import tensorflow as tf
from standin_versions import Bucket, Folder, Manager, Refused, Source

STATUS_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?")
PREDICT_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:predict")
MANAGE_SECONDS = 0.1


def predict(model: Any, body: bytes) -> dict[str, Any]:
    """Answer a predict request in the row format."""
    try:
        request = json.loads(body)
    except ValueError as error:
        raise Refused(f"JSON Parse error: {error}") from error
    if not isinstance(request, dict) or "instances" not in request:
        raise Refused("Missing 'inputs' or 'instances' key")
    name = request.get("signature_name", "serving_default")
    if name not in model.signatures:
        raise Refused(f'Serving signature name: "{name}" not found in signature def')
    signature = model.signatures[name]
    specs = signature.structured_input_signature[1]
    columns = by_input(request["instances"], sorted(specs))
    inputs = {key: tensor(key, rows, specs[key].dtype) for key, rows in columns.items()}
    try:
        outputs = {key: value.numpy() for key, value in signature(**inputs).items()}
    except (tf.errors.OpError, TypeError, ValueError) as error:
        raise Refused(str(error)) from error
    rows = {key: [to_json(key, row) for row in value] for key, value in outputs.items()}
    if len(rows) == 1:
        return {"predictions": next(iter(rows.values()))}
    count = len(next(iter(rows.values())))
    return {"predictions": [{key: rows[key][i] for key in sorted(rows)} for i in range(count)]}


def is_b64(value: Any) -> bool:
    """Tell whether a JSON value stands for bytes."""
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def by_input(instances: Any, names: list[str]) -> dict[str, list[Any]]:
    """Sort rows by input: bare values where there is one input, objects with all names else."""
    if not isinstance(instances, list) or not instances:
        raise Refused("Excepting 'instances' to be an list/array with values")
    objects = [isinstance(row, dict) and not is_b64(row) for row in instances]
    if not any(objects) and len(names) == 1:
        return {names[0]: instances}
    if not all(objects) or any(sorted(row) != names for row in instances):
        raise Refused(
            f"Failed to process 'instances' list: keys must be equal to: {','.join(names)}"
        )
    return {name: [row[name] for row in instances] for name in names}


def tensor(name: str, rows: list[Any], dtype: tf.DType) -> tf.Tensor:
    """Turn the rows of one input into a tensor; JSON types must fit, shapes must agree."""
    try:
        if dtype == tf.string:
            return tf.constant(strings(rows), tf.string)
        array = np.asarray(rows)
        kinds = "iuf" if dtype.is_floating else "iu" if dtype.is_integer else "b"
        if array.dtype.kind not in kinds:
            raise ValueError(f"is not of expected type: {dtype.name}")
        return tf.constant(array, dtype)
    except (TypeError, ValueError) as error:  # a ragged list is among them
        raise Refused(f"JSON Value of {name}: {error}") from error


def strings(value: Any) -> Any:
    """Turn nested JSON strings and `b64` objects into nested bytes."""
    if isinstance(value, list):
        return [strings(item) for item in value]
    if isinstance(value, str):
        return value.encode()
    if not is_b64(value):
        raise ValueError("is not of expected type: string")
    try:
        return base64.b64decode(value["b64"], validate=True)
    except binascii.Error as error:
        raise ValueError("Unable to base64 decode") from error


def to_json(name: str, value: Any) -> Any:
    """Turn part of an output into JSON values, float32 in as few digits as tell it apart."""
    if isinstance(value, np.ndarray):
        return [to_json(name, item) for item in value]
    if isinstance(value, bytes):
        binary = name.endswith("_bytes")
        return {"b64": base64.b64encode(value).decode()} if binary else value.decode()
    return float(str(value)) if isinstance(value, np.floating) else value.item()


class Handler(BaseHTTPRequestHandler):
    """The REST API; `manager` is set by `main`."""

    manager: Manager

    def log_message(self, *args: Any) -> None:
        """Keep requests out of the log."""

    def do_GET(self) -> None:
        """Answer a status request."""
        self.answer(STATUS_PATH, self.manager.status)

    def do_POST(self) -> None:
        """Answer a predict request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(PREDICT_PATH, lambda *wanted: predict(self.manager.servable(*wanted), body))

    def answer(
        self, route: re.Pattern[str], do: Callable[[str, int | None], dict[str, Any]]
    ) -> None:
        """Send what `do` gives for the model and version in the path, or its error."""
        try:
            match = route.fullmatch(self.path)
            if not match:
                raise Refused(f"Malformed request: {self.command} {self.path}")
            code, content = 200, do(match[1], int(match[2]) if match[2] else None)
        except Refused as error:
            code, content = error.http, {"error": str(error)}
        text = json.dumps(content, indent=1).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def main() -> None:
    """Serve until killed."""
    options = argparse.ArgumentParser()
    options.add_argument("--base-path", required=True)
    options.add_argument("--name", required=True)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--poll-seconds", type=float, default=1.0)
    options.add_argument("--retries", type=int, default=5)
    options.add_argument("--retry-seconds", type=float, default=60.0)
    given = options.parse_args()
    source: Source = (Bucket if given.base_path.startswith("gs://") else Folder)(given.base_path)
    manager = Manager(source, given.name, given.retries, given.retry_seconds)
    Handler.manager = manager
    server = ThreadingHTTPServer(("127.0.0.1", given.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    polled = -given.poll_seconds
    while True:
        if time.monotonic() - polled >= given.poll_seconds:
            polled = time.monotonic()
            try:
                manager.poll()
            except Exception:  # a poll that fails is logged and tried again, as there
                traceback.print_exc()
        manager.manage()
        time.sleep(MANAGE_SECONDS)


if __name__ == "__main__":
    main()
