"""TensorFlow Serving beside the job: it serves what is published, and is ready when it does."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from manifests import environment, of_kind, pod_templates, rendered

from job.serving import models_config


@pytest.fixture
def server() -> Iterator[Callable[[int, dict[str, Any]], int]]:
    """A function that answers every status request with a code and a document: gives its port."""
    servers = []

    def start(code: int, document: dict[str, Any]) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path == "/v1/models/flowers"
                self.send_response(code if known else 404)
                self.end_headers()
                self.wfile.write(json.dumps(document if known else {}, indent=1).encode())

            def log_message(self, *args: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return int(servers[-1].server_port)

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()


def probe(port: int, name: str) -> int:
    """Run the readiness probe of the server on another port; 0 is ready."""
    (pod,) = pod_templates(rendered("serving"))
    command = pod["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
    assert "/8501" in command[-1]
    words = [*command[:-1], command[-1].replace("/8501", f"/{port}")]
    environ = {"MODEL_NAME": name, "PATH": "/usr/bin:/bin"}
    return subprocess.run(words, env=environ, timeout=20, stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize(
    ("code", "state", "name", "ready"),
    [
        (200, "AVAILABLE", "flowers", True),
        (200, "LOADING", "flowers", False),
        (200, "END", "flowers", False),
        (200, "AVAILABLE", "another", False),
    ],
)
def test_a_server_is_ready_with_a_version(
    server: Callable[[int, dict[str, Any]], int], code: int, state: str, name: str, ready: bool
) -> None:
    """The probe, run by bash, says ready where the REST API says AVAILABLE of that model."""
    status = {"error_code": "OK", "error_message": ""}
    document = {"model_version_status": [{"version": "1", "state": state, "status": status}]}
    assert (probe(server(code, document), name) == 0) is ready


def test_a_server_that_does_not_listen_is_not_ready() -> None:
    """A closed port is not ready, and the probe says so at once."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = int(closed.server_port)
    assert probe(port, "flowers") != 0


def test_the_server_has_what_is_published() -> None:
    """Base path, ports and version labels are those of the tree that the job publishes."""
    settings = of_kind(rendered("serving"), "ConfigMap")["data"]
    given = environment(rendered("base"))
    folder = f"{given['REGRAFT_MODELS']}/{given['REGRAFT_NAME']}"
    assert settings == {"MODEL_NAME": given["REGRAFT_NAME"], "MODEL_BASE_PATH": folder}
    labelled = rendered("components/serving-labels")
    (container,) = next(pod_templates(labelled))["spec"]["containers"]
    ports = {
        f"--{'port' if p['name'] == 'grpc' else 'rest_api_port'}={p['containerPort']}"
        for p in container["ports"]
    }
    assert ports <= set(container["args"])
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "models-config")
    assert f"--model_config_file={mount['mountPath']}/models.config" in container["args"]
    (config,) = (
        item["data"]["models.config"]
        for item in labelled
        if item["kind"] == "ConfigMap" and "models.config" in item["data"]
    )
    channels = {"stable": 1795403008, "canary": 1795489408}
    assert config == models_config(given["REGRAFT_NAME"], folder, channels)
