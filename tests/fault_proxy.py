"""A reverse proxy before fake-gcs-server that does to a share of requests what networks do.

    python tests/fault_proxy.py --upstream URL --port N [--rate 0.1] [--faults NAMES] [--seed N]

Faults by name (`all` of them unless told otherwise):

    408, 429, 500, 502, 503, 504   that answer, and the server never hears of the request
    reset-before     the connection is reset, and the server never hears of the request
    reset-after      the server carries the request out, then the connection is reset
    stall            no answer, and no end of the connection
    stall-body       half of the answer's body, then silence
    truncate         half of the body, then the connection ends
    shorten          half of a download, with a Content-Length that says so
    corrupt          one bit of a download is flipped, the headers as they were
    corrupt-upload   one bit of an upload's content is flipped on its way to the server
    401, 403         refusals for good, which `all` does not contain

JSON has no checksum, so flipped bits in it would go unnoticed by any client; TLS guards it in
earnest, so it is only ever cut. fake-gcs-server takes an upload whose checksum is wrong, where GCS
answers 400: 'corrupt-upload' tries the client's own check of what was stored, and `checksum-400`
is GCS's answer.

`GET /__faults` gives what was done as JSON; `?rate=1&faults=503&seed=2&verbs=read,write&limit=1&
skip=20&row=2` changes it from now on. Verbs are list, read, write, copy, delete, other; `skip`
leaves the next so many requests of these verbs in peace, and `reads=50` all until as many objects
were read; `limit` is how many requests are hit at most, `row` how often the same one in succession.

What fake-gcs-server does not do and GCS does: a copy with ifGenerationMatch=0 to where something is
gets 412 here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from gcs_server import free_port
from yarl import URL

STATUSES = ("408", "429", "500", "502", "503", "504")
BODY = ("stall-body", "truncate")
DOWNLOAD = ("shorten", "corrupt")
UPLOAD = ("corrupt-upload", "checksum-400")
FAULTS = (*STATUSES, "reset-before", "reset-after", "stall", *BODY, *DOWNLOAD, *UPLOAD)
REFUSALS = ("401", "403")
COPY = re.compile(r"/storage/v1/b/[^/]+/o/[^/]+/(?:copyTo|rewriteTo)(/b/[^/]+/o/[^/]+)")
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass(slots=True)
class Plan:
    """What is done to which requests."""

    rate: float = 0.0
    faults: tuple[str, ...] = FAULTS
    verbs: tuple[str, ...] = ()
    skip: int = 0
    reads: int = 0
    limit: int = sys.maxsize
    row: int = sys.maxsize

    def update(self, options: dict[str, str]) -> None:
        """Take new settings; those that are not named go back to what they are by default."""
        self.rate = float(options.get("rate", 0))
        self.faults = faults_of(options.get("faults", "all"))
        self.verbs = tuple(filter(None, options.get("verbs", "").split(",")))
        self.skip = int(options.get("skip", 0))
        self.reads = int(options.get("reads", 0))
        self.limit = int(options.get("limit", sys.maxsize))
        self.row = int(options.get("row", sys.maxsize))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def faults_of(names: str) -> tuple[str, ...]:
    """Read a list of faults; an unknown one is an error."""
    faults = FAULTS if names == "all" else tuple(names.split(","))
    if unknown := set(faults) - {*FAULTS, *REFUSALS}:
        raise ValueError(f"no such fault: {unknown}; there are {FAULTS + REFUSALS}")
    return faults


def verb_of(method: str, path: str) -> str:
    """Give what a request to the JSON API is for."""
    if path.startswith("/upload/"):
        return "write"
    if method == "GET":
        if path.startswith("/download/"):
            return "read"
        return "list" if path.endswith("/o") else "other"
    if method == "DELETE":
        return "delete"
    return "copy" if COPY.fullmatch(path) else "other"


class FaultProxy:
    """Passes requests on, or does not."""

    def __init__(self, upstream: str, plan: Plan, seed: int) -> None:
        self.upstream = upstream
        self.plan = plan
        self.random = random.Random(seed)  # noqa: S311  (no secret)
        self.requests: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()

    async def run(self, port: int) -> None:
        """Serve for good."""
        app = web.Application(client_max_size=2**32)
        app.router.add_get("/__faults", self.control)
        app.router.add_route("*", "/{path:.*}", self.handle)
        connector = TCPConnector(limit=0)
        async with ClientSession(
            auto_decompress=False, connector=connector, timeout=ClientTimeout(total=None)
        ) as self.session:
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            await asyncio.Event().wait()

    async def control(self, request: web.Request) -> web.Response:
        """Change the plan if asked to; give the counts."""
        if request.query:
            self.plan.update(dict(request.query))
            if "seed" in request.query:
                self.random.seed(int(request.query["seed"]))
        return web.json_response({"requests": self.requests, "injected": self.injected})

    def choose(self, verb: str, target: str, upload: bytes) -> str:
        """Give the fault for a request, "" for none."""
        fault = self._choose(verb, upload) if self.rows[target] < self.plan.row else ""
        self.requests[verb] += 1
        self.injected.update([fault] if fault else [])
        self.rows[target] = self.rows[target] + 1 if fault else 0
        return fault

    def _choose(self, verb: str, upload: bytes) -> str:
        plan = self.plan
        if plan.reads:
            plan.reads -= verb == "read"
            return ""
        if plan.verbs and verb not in plan.verbs:
            return ""
        if plan.skip:
            plan.skip -= 1
            return ""
        unfit = () if verb == "read" else DOWNLOAD
        # What has no content has no bit to flip, and deletions have an empty answer.
        unfit += () if verb == "write" and upload else UPLOAD
        unfit += BODY if verb == "delete" else ()
        fit = [fault for fault in plan.faults if fault not in unfit]
        if not fit or not plan.limit or self.random.random() >= plan.rate:
            return ""
        plan.limit -= 1
        return self.random.choice(fit)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on, with or without a fault."""
        path = request.rel_url.raw_path
        verb = verb_of(request.method, path)
        body = await request.read()
        content = content_of(request, body)
        fault = self.choose(verb, f"{request.method} {request.raw_path}", body[content])
        if fault.isdigit():
            return refusal(int(fault), "injected")
        if fault == "checksum-400":
            return refusal(400, 'Provided CRC32C "a" doesn\'t match calculated CRC32C "b".')
        if fault == "reset-before":
            return reset(request)
        if fault == "stall":
            return await silence(request)
        if fault == "corrupt-upload":
            body = flipped(body, self.random.randrange(content.start, content.stop))
        if verb == "copy" and await self.is_taken(request):
            return refusal(412, "conditionNotMet")
        answer = await self.forward(request, body)
        if fault == "reset-after":
            return reset(request)
        return await self.give(request, answer, fault)

    async def forward(self, request: web.Request, body: bytes) -> Answer:
        """Have the server carry a request out."""
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP]
        url = URL(self.upstream + request.raw_path, encoded=True)
        async with self.session.request(
            request.method, url, data=body, headers=headers, allow_redirects=False
        ) as answer:
            kept = [(k, v) for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP]
            # A resumable upload goes on at the address of this header.
            ours = f"http://{request.host}"
            kept = [
                (k, v.replace(self.upstream, ours) if k.lower() == "location" else v)
                for k, v in kept
            ]
            return Answer(answer.status, kept, await answer.read())

    async def is_taken(self, request: web.Request) -> bool:
        """Tell whether a copy asks for an empty place and there is something."""
        target = COPY.fullmatch(request.rel_url.raw_path)
        if target is None or request.query.get("ifGenerationMatch") != "0":
            return False
        url = URL(f"{self.upstream}/storage/v1{target[1]}", encoded=True)
        async with self.session.get(url) as answer:
            return answer.status == 200

    async def give(self, request: web.Request, answer: Answer, fault: str) -> web.StreamResponse:
        """Send an answer, its body mistreated."""
        body = answer.body
        half = body[: len(body) // 2]
        if fault == "corrupt" and body:
            body = flipped(body, self.random.randrange(len(body)))
        if fault == "shorten":
            body = half
        response = web.StreamResponse(status=answer.status)
        response.headers.extend(answer.headers)
        response.content_length = len(body)
        await response.prepare(request)
        if fault not in BODY:
            await response.write(body)
            return response
        await response.write(half)
        if fault == "stall-body":
            return await silence(request, response)
        if request.transport:
            request.transport.close()
        return response


def content_of(request: web.Request, body: bytes) -> slice:
    """Give where the object's bytes are in the body of an upload, simple or resumable."""
    kind = request.headers.get("Content-Type", "")
    if not kind.startswith("multipart/related"):
        # What begins a resumable upload is a POST without content; PUTs bring it.
        return slice(0, len(body) if request.method == "PUT" else 0)
    boundary = b"--" + kind.partition('boundary="')[2].partition('"')[0].encode()
    end = body.rindex(b"\r\n" + boundary + b"--")
    start = body.index(boundary, len(boundary))
    return slice(body.index(b"\r\n\r\n", start) + 4, end)


def flipped(body: bytes, place: int) -> bytes:
    """Flip a bit."""
    return body[:place] + bytes([body[place] ^ 0x10]) + body[place + 1 :]


def refusal(status: int, message: str) -> web.Response:
    """Give an error as the JSON API words it."""
    return web.json_response({"error": {"code": status, "message": message}}, status=status)


def reset(request: web.Request) -> web.Response:
    """End the connection with RST rather than FIN."""
    if request.transport:
        request.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        request.transport.abort()
    return web.Response()


async def silence(
    request: web.Request, response: web.StreamResponse | None = None
) -> web.StreamResponse:
    """Say nothing until the client has gone."""
    while request.transport and not request.transport.is_closing():
        await asyncio.sleep(0.05)
    return response or web.Response()


@dataclass(frozen=True, slots=True)
class Faults:
    """A running proxy, for tests: `url` is what a client talks to."""

    url: str

    def set(self, **options: Any) -> None:
        """Change what is done from now on; see the top of this file."""
        self._ask("&".join(f"{key}={value}" for key, value in options.items()))

    def injected(self) -> Counter[str]:
        """Give how often each fault was injected so far."""
        return Counter(self._ask("")["injected"])

    def requests(self) -> Counter[str]:
        """Give how many requests there were, by verb."""
        return Counter(self._ask("")["requests"])

    def _ask(self, query: str) -> dict[str, dict[str, int]]:
        with urllib.request.urlopen(f"{self.url}/__faults?{query}", timeout=30) as answer:
            found: dict[str, dict[str, int]] = json.load(answer)
            return found


@contextlib.contextmanager
def fault_proxy(upstream: str, log: Path, *, seed: int = 1) -> Iterator[Faults]:
    """Keep a proxy alive that does no harm until told; STORAGE_EMULATOR_HOST points to it."""
    port = free_port()
    command = [sys.executable, __file__, "--upstream", upstream, "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--seed", str(seed)], stdout=file, stderr=file)
    before = os.environ.get("STORAGE_EMULATOR_HOST")
    proxy = Faults(f"http://127.0.0.1:{port}")
    try:
        _wait_for(proxy.requests, log)
        os.environ["STORAGE_EMULATOR_HOST"] = proxy.url
        yield proxy
    finally:
        os.environ.pop("STORAGE_EMULATOR_HOST", None)
        if before is not None:
            os.environ["STORAGE_EMULATOR_HOST"] = before
        process.kill()
        process.wait()


def _wait_for(answer: Callable[[], object], log: Path) -> None:
    for _ in range(400):
        with contextlib.suppress(OSError):
            answer()
            return
        time.sleep(0.05)
    raise RuntimeError(f"the proxy did not start: {log.read_text()}")


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--faults", type=faults_of, default=FAULTS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    plan = Plan(options.rate, options.faults)
    asyncio.run(FaultProxy(options.upstream, plan, options.seed).run(options.port))


if __name__ == "__main__":
    main()
