"""Time obstore downloading objects; runs in obstore's own environment.

    python benchmarks/download_obstore.py --url http://host:port --bucket NAME --objects N

32 requests are under way at once. Objects are `0` to `<N-1>`. Prints objects, bytes and
seconds as JSON. obstore does not compare checksums.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time

import obstore
from obstore.store import GCSStore

UNDER_WAY = 32


async def download(store: GCSStore, names: list[str]) -> int:
    """Fetch all objects and give the bytes that came."""
    free = asyncio.Semaphore(UNDER_WAY)

    async def fetch(name: str) -> int:
        async with free:
            answer = await obstore.get_async(store, name)
            return len(await answer.bytes_async())

    return sum(await asyncio.gather(*map(fetch, names)))


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--url", "--bucket"):
        parser.add_argument(name, required=True)
    parser.add_argument("--objects", type=int, required=True)
    options = parser.parse_args()
    names = [str(number) for number in range(options.objects)]
    start = time.perf_counter()
    store = GCSStore(
        options.bucket,
        config={"base_url": options.url, "skip_signature": True},
        client_options={"allow_http": True},
    )
    received = asyncio.run(download(store, names))
    seconds = time.perf_counter() - start
    print(json.dumps({"objects": len(names), "bytes": received, "seconds": seconds}), flush=True)
    os._exit(0)  # its threads now and then abort an interpreter that ends in the usual way


if __name__ == "__main__":
    main()
