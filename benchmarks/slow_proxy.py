"""A TCP proxy that holds every request back for a while, as the way to a distant server does.

    python benchmarks/slow_proxy.py --listen PORT --to PORT [--delay 0.04]

What a client sends is passed on after the delay; answers go back at once. A download's request is
one small packet, so it is delayed exactly once, on a new connection and on one that is kept alive.
At SIGTERM the number of packets that clients sent is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

CHUNK = 1 << 16


class Proxy:
    """Passes connections on to a port of this machine."""

    def __init__(self, port: int, delay: float) -> None:
        self.requests = 0
        self._port = port
        self._delay = delay

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on until either side closes it."""
        with contextlib.suppress(ConnectionError):
            theirs, ours = await asyncio.open_connection("127.0.0.1", self._port)
            await asyncio.gather(self._up(reader, ours), self._down(theirs, writer))

    async def _up(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.closing(target), contextlib.suppress(ConnectionError):
            while data := await source.read(CHUNK):
                self.requests += 1
                await asyncio.sleep(self._delay)
                target.write(data)
                await target.drain()

    async def _down(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.closing(target), contextlib.suppress(ConnectionError):
            while data := await source.read(CHUNK):
                target.write(data)
                await target.drain()


async def run(listen: int, to: int, delay: float) -> None:
    """Serve until SIGTERM."""
    proxy = Proxy(to, delay)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await asyncio.start_server(proxy.serve, "127.0.0.1", listen)
    print("ready", flush=True)
    await stop.wait()
    print(proxy.requests, flush=True)


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.04, help="seconds")
    options = parser.parse_args()
    asyncio.run(run(options.listen, options.to, options.delay))


if __name__ == "__main__":
    main()
