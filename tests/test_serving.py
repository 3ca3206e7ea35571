"""What is published comes up in a server and answers as it should."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import COLOURS, jpeg
from gcs_server import free_port
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from modules import write_pooling
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from job.backbone import load_backbone
from job.errors import ConfigError, PublishError, UnavailableError
from job.export import Classifier, export
from job.head import Head
from job.images import preprocess_batch
from job.publish import publish
from job.serving import compare_answers, models_config, wait_available
from job.storage import LocalStore, open_store
from job.verify import WARMUP, Golden, write_warmup

LABELS = tuple(COLOURS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Golden]]:
    """A tiny classifier's bundle with warm-up records, and what it says of three images."""
    folder = tmp_path_factory.mktemp("export")
    backbone = load_backbone(str(write_pooling(folder / "module")), cache_dir=folder / "cache")
    random = np.random.default_rng(0)
    kernel = random.normal(size=(backbone.feature_dim, 3)).astype("f4")
    head = Head(kernel, random.normal(size=3).astype("f4"))
    export(Classifier(backbone, head, LABELS), folder / "bundle")
    files = {f"{name}.jpg": jpeg(colour, 1) for name, colour in COLOURS.items()}
    pixels = preprocess_batch(tf.constant(list(files.values())), backbone.image_size)
    scores = head.probabilities(backbone.embed(pixels).numpy())
    goldens = [
        Golden(name, contents, row)
        for (name, contents), row in zip(files.items(), scores, strict=True)
    ]
    write_warmup(folder / "bundle", goldens)
    return folder / "bundle", goldens


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """A function that starts a server on a base path, model `m`: gives its URL."""
    servers = []

    def begin(base_path: str) -> str:
        port = free_port()
        script = Path(__file__).with_name("serving_standin.py")
        flags = ["--base-path", base_path, "--name", "m", "--port", str(port)]
        flags += ["--poll-seconds", "0.2", "--retries", "2", "--retry-seconds", "0.6"]
        log = tmp_path_factory.mktemp("server") / "log"
        with log.open("wb") as file:
            servers.append(
                subprocess.Popen([sys.executable, script, *flags], stdout=file, stderr=file)
            )
        return f"http://127.0.0.1:{port}"

    yield begin
    for server in servers:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def server(
    start: Callable[[str], str],
    exported: tuple[Path, list[Golden]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """A server that has a version, and its base path."""
    base = tmp_path_factory.mktemp("models") / "m"
    base.mkdir()
    url = start(str(base))
    wait_available(url, "m", publish(exported[0], LocalStore(base)), timeout=120)
    return url, base


def ask(url: str, body: Any = None) -> tuple[int, Any]:
    """Send a request: gives the HTTP status and the JSON of the answer."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def states(url: str) -> dict[int, str]:
    """Give the state of every version that a server knows."""
    _, content = ask(f"{url}/v1/models/m")
    return {int(s["version"]): s["state"] for s in content["model_version_status"]}


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that a server does by itself."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_new_version_comes_up_and_answers(
    server: tuple[str, Path], exported: tuple[Path, list[Golden]]
) -> None:
    """After publishing it is AVAILABLE, agrees with the trained model, and the old one goes."""
    (url, base), (bundle, goldens) = server, exported
    first = publish(bundle, LocalStore(base))
    wait_available(url, "m", first, timeout=60)
    assert compare_answers(url, "m", first, goldens, tolerance=1e-4) == []
    second = publish(bundle, LocalStore(base))
    wait_available(url + "/", "m", second, timeout=20)
    assert compare_answers(url, "m", second, goldens, tolerance=1e-4) == []
    until(lambda: (states(url)[first], states(url)[second]) == ("END", "AVAILABLE"))


def test_other_answers_are_named(
    server: tuple[str, Path], exported: tuple[Path, list[Golden]]
) -> None:
    """A score that differs, one too many, NaN, an unreadable image: a sentence each."""
    (url, base), (bundle, goldens) = server, exported
    version = publish(bundle, LocalStore(base))
    wait_available(url, "m", version, timeout=60)
    good, contents = goldens[0].prediction, goldens[0].contents
    bent = [
        Golden("shifted", contents, good + np.float32(0.01)),
        Golden("short", contents, good[:2]),
        Golden("nan", contents, good * np.float32(np.nan)),
        Golden("unreadable", b"no image", good),
        Golden("fine", contents, good),
    ]
    problems = compare_answers(url, "m", version, bent, tolerance=1e-4)
    assert [p.partition(":")[0] for p in problems] == ["shifted", "short", "nan", "unreadable"]
    assert "0.01 from" in problems[0]
    assert "(3,)" in problems[1]
    assert "HTTP 400" in problems[3]
    gone = compare_answers(url, "m", 7, goldens[:1], tolerance=1e-4)
    assert "HTTP 404" in gone[0]
    assert "Servable not found" in gone[0]


def test_a_broken_version_never_comes_up(
    server: tuple[str, Path], exported: tuple[Path, list[Golden]]
) -> None:
    """`wait_available` says why within its time; the version before serves on, without it too."""
    (url, base), (bundle, goldens) = server, exported
    good = publish(bundle, LocalStore(base))
    wait_available(url, "m", good, timeout=60)
    broken = base / str(good + 1)
    shutil.copytree(bundle, base / "copy")
    (base / "copy/saved_model.pb").write_bytes(b"\xffgarbage")
    (base / "copy").rename(broken)
    until(lambda: states(url).get(good + 1) == "LOADING")
    with pytest.raises(PublishError, match="last seen: LOADING"):
        wait_available(url, "m", good + 1, timeout=0)
    start = time.monotonic()
    with pytest.raises(PublishError, match=r"last seen: END, UNKNOWN: .*saved_model.pb"):
        wait_available(url, "m", good + 1, timeout=60)
    assert time.monotonic() - start < 30  # no use in waiting once the server gave up
    assert compare_answers(url, "m", good, goldens, tolerance=1e-4) == []
    shutil.rmtree(broken)
    time.sleep(0.5)
    assert states(url)[good] == "AVAILABLE"
    code, content = ask(
        f"{url}/v1/models/m:predict", {"instances": np.zeros((1, 32, 32, 3)).tolist()}
    )
    assert code == 200
    assert np.sum(content["predictions"]) == pytest.approx(1, abs=1e-4)
    after = publish(bundle, LocalStore(base), now=good + 2)
    wait_available(url, "m", after, timeout=20)


def test_a_warm_up_that_fails_keeps_a_version_out(
    server: tuple[str, Path], exported: tuple[Path, list[Golden]], tmp_path: Path
) -> None:
    """The server runs the warm-up records before it says AVAILABLE."""
    (url, base), (bundle, _) = server, exported
    shutil.copytree(bundle, tmp_path / "bundle")
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = "serve_bytes"
    images = log.predict_log.request.inputs["image_bytes"]
    images.CopyFrom(tf.make_tensor_proto([b"no image"]))
    with tf.io.TFRecordWriter(str(tmp_path / "bundle" / WARMUP)) as file:
        file.write(log.SerializeToString())
    version = publish(tmp_path / "bundle", LocalStore(base))
    with pytest.raises(PublishError, match="END, UNKNOWN: InvalidArgumentError"):
        wait_available(url, "m", version, timeout=60)
    shutil.rmtree(base / str(version))


def test_a_version_that_is_not_there(server: tuple[str, Path]) -> None:
    """A server that has never heard of a version is told apart from one that is out."""
    with pytest.raises(PublishError, match="Could not find version 99"):
        wait_available(server[0], "m", 99, timeout=1.2)
    with pytest.raises(PublishError, match="of model other"):
        wait_available(server[0], "other", 99, timeout=1.2)


def test_no_server(tmp_path: Path) -> None:
    """Nothing listens, or something else does: try again later; no URL: a mistake."""
    start = time.monotonic()
    with pytest.raises(UnavailableError, match="refused"):
        wait_available(f"http://127.0.0.1:{free_port()}", "m", 1, timeout=1.2)
    assert 0.7 <= time.monotonic() - start < 60  # on a busy machine, too
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    other = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        with pytest.raises(UnavailableError, match="is no TensorFlow Serving: HTTP 404"):
            wait_available(f"http://127.0.0.1:{port}", "m", 1, timeout=0)
    finally:
        other.kill()
        other.wait()
    for url in ("127.0.0.1:8501", "file:///etc", ""):
        with pytest.raises(ConfigError, match="--serving-url"):
            wait_available(url, "m", 1, timeout=1)


def test_a_server_on_a_bucket(
    start: Callable[[str], str], bucket: str, exported: tuple[Path, list[Golden]]
) -> None:
    """Published to gs://, it comes up and answers from there."""
    base = f"gs://{bucket}/models/m"
    url = start(base)
    version = publish(exported[0], open_store(base))
    wait_available(url, "m", version, timeout=60)
    assert compare_answers(url, "m", version, exported[1], tolerance=1e-4) == []


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"signature_name": "none", "instances": [1]}, "not found in signature def"),
        ({"inputs": [1]}, "instances"),
        ({"instances": []}, "instances"),
        ({"instances": [["a"]]}, "float32"),
        ({"signature_name": "serve_bytes", "instances": [{"b64": "?"}]}, "base64"),
        ({"signature_name": "serve_bytes", "instances": [{"wrong": "x"}]}, "image_bytes"),
        ({"signature_name": "serve_bytes", "instances": [1]}, "string"),
    ],
)
def test_the_stand_in_refuses_bad_requests(server: tuple[str, Path], body: Any, error: str) -> None:
    """As TensorFlow Serving does: HTTP 400 and what is wrong as `error`."""
    code, content = ask(f"{server[0]}/v1/models/m:predict", body)
    assert code == 400
    assert error in content["error"]


def test_bare_values_will_do_for_a_single_input(
    server: tuple[str, Path], exported: tuple[Path, list[Golden]]
) -> None:
    """`{"b64": ...}` alone, without the input's name, is the same request."""
    url, goldens = server[0], exported[1]
    bare = [{"b64": base64.b64encode(golden.contents).decode()} for golden in goldens]
    body = {"signature_name": "serve_bytes", "instances": bare}
    code, content = ask(f"{url}/v1/models/m:predict", body)
    assert code == 200
    for golden, row in zip(goldens, content["predictions"], strict=True):
        assert row["prediction"] == pytest.approx(golden.prediction.tolist(), abs=1e-4)
        assert row["classes"][0] == LABELS[int(golden.prediction.argmax())]


@given(st.text(), st.text(), st.dictionaries(st.text(), st.integers(1, 2**63 - 1), min_size=1))
def test_the_configuration_parses(name: str, base_path: str, channels: dict[str, int]) -> None:
    """TensorFlow Serving's own message: the versions of the channels, each channel a label."""
    message = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(models_config(name, base_path, channels), message)
    (config,) = message.model_config_list.config
    assert (config.name, config.base_path) == (name, base_path)
    assert config.model_platform == "tensorflow"
    assert list(config.model_version_policy.specific.versions) == sorted(set(channels.values()))
    assert dict(config.version_labels) == channels


def test_the_configuration_needs_a_channel() -> None:
    """Without any, the server would serve nothing."""
    with pytest.raises(ConfigError, match="no channel"):
        models_config("m", "gs://b/m", {})
