"""Time one way to download objects with Google's client; STORAGE_EMULATOR_HOST says from where.

    python benchmarks/download_google.py WAY --bucket NAME --objects N

WAY is `loop` (one after the other, as the client's documentation begins), `transfer_manager`
(Google's own parallel one, 32 threads) or `regraft` (the job's store, 32 threads). Objects are
`0` to `<N-1>`. Prints objects, bytes and seconds as JSON; imports are not timed.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage import transfer_manager

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from job.storage import open_store

THREADS = 32


def loop(bucket: str, names: list[str]) -> int:
    """Download one object after the other; gives the bytes that came."""
    source = client_bucket(bucket)
    return sum(len(source.blob(name).download_as_bytes()) for name in names)


def with_transfer_manager(bucket: str, names: list[str]) -> int:
    """Download with threads of the client's own transfer manager; gives the bytes that came."""
    source = client_bucket(bucket)
    pairs = [(source.blob(name), io.BytesIO()) for name in names]
    transfer_manager.download_many(
        pairs,
        worker_type=transfer_manager.THREAD,
        max_workers=THREADS,
        raise_exception=True,
    )
    return sum(len(buffer.getvalue()) for _, buffer in pairs)


def regraft(bucket: str, names: list[str]) -> int:
    """Download with the job's store from as many threads; gives the bytes that came."""
    store = open_store(f"gs://{bucket}", connections=THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(len(data) for data in pool.map(store.read, names))


def client_bucket(name: str) -> storage.Bucket:
    """Give a bucket of a client as it comes."""
    return storage.Client(project="bench", credentials=AnonymousCredentials()).bucket(name)


WAYS = {"loop": loop, "transfer_manager": with_transfer_manager, "regraft": regraft}


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--objects", type=int, required=True)
    options = parser.parse_args()
    names = [str(number) for number in range(options.objects)]
    if options.way == "regraft":
        import job.gcs  # noqa: F401  # what open_store would import while the clock runs
    start = time.perf_counter()
    received = WAYS[options.way](options.bucket, names)
    seconds = time.perf_counter() - start
    print(json.dumps({"objects": len(names), "bytes": received, "seconds": seconds}))


if __name__ == "__main__":
    main()
