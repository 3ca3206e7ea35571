"""What the tests share: a real object store, and small real data sets."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gcs_server import fake_gcs_server, new_bucket
from kube_api import kube_api
from kube_objects import KubeApi
from PIL import Image

# Children inherit this, and this process does as the job: the other Keras takes seconds to import.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# Where a shell has put the tests into the background, the jobs that they start would be deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
COLOURS = {"cyan": (0, 255, 255), "magenta": (255, 0, 255), "yellow": (255, 255, 0)}


def jpeg(colour: tuple[int, int, int], seed: int, size: int = 48) -> bytes:
    """Give a square of a colour with a little noise, so that no two files are the same."""
    noise = np.random.default_rng(seed).integers(-12, 13, (size, size, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_colours(folder: Path, count: int = 40) -> Path:
    """Write `count` squares of each colour as DATA/<colour>/<number>.jpg."""
    for number, (label, colour) in enumerate(COLOURS.items()):
        (folder / label).mkdir(parents=True)
        for item in range(count):
            path = folder / label / f"{item:03}.jpg"
            path.write_bytes(jpeg(colour, seed=1000 * number + item))
    return folder


def pytest_xdist_auto_num_workers() -> int:
    """Give the processes of `-n auto`: two at least, as tests wait for others half of their time.

    Each takes a gigabyte, and so do the jobs that it starts.
    """
    return min(max(2, len(os.sched_getaffinity(0))), 8)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cyan, magenta and yellow squares, 40 each; read only."""
    return write_colours(tmp_path_factory.mktemp("colours") / "data")


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a live fake-gcs-server; STORAGE_EMULATOR_HOST points to it."""
    with fake_gcs_server(tmp_path_factory.mktemp("gcs")) as url:
        yield url


@pytest.fixture
def bucket(gcs_server: str) -> str:
    """The name of a new, empty bucket."""
    return new_bucket()


@pytest.fixture
def upload(bucket: str) -> Callable[[Path, str], str]:
    """A function that puts a local folder's files under a prefix of the bucket: gives its URI."""

    def put(folder: Path, prefix: str) -> str:
        from job.storage import open_store

        store = open_store(f"gs://{bucket}/{prefix}")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                store.write(path.relative_to(folder).as_posix(), path)
        return f"gs://{bucket}/{prefix}"

    return put


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeApi]:
    """A live stand-in for a Kubernetes cluster; KUBECONFIG reaches it."""
    folder = tmp_path / "kube"
    folder.mkdir()
    monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
    with kube_api(folder) as api:
        yield api


@pytest.fixture(autouse=True)
def _no_options_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("REGRAFT_")]:
        monkeypatch.delenv(name)
