"""Workers meet before TensorFlow is told of one another, whose own wait hears no signal.

The chief listens at its address, every other one connects to it, says which one it is and holds the
line. When all are there the chief sends each of them a word, and lets go of its port.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator

from job.cluster import Cluster
from job.errors import ConfigError, UnavailableError
from job.guard import beat

# Seconds between two tries, and two looks at signals.
TICK = 0.2

HELLO, GO = b"regraft worker ", b"go\n"

HINT = "see whether all were started, and whether a network policy lets them reach one another"


def meet(cluster: Cluster, timeout: float) -> None:
    """Wait until all workers of a cluster are there.

    Raises UnavailableError, with who is missing, when they are not after `timeout` seconds, and
    ConfigError when the chief cannot listen at its own address.
    """
    end = time.monotonic() + timeout
    if cluster.index == 0:
        _gather(cluster, end, timeout)
    else:
        _report(cluster, end, timeout)


def _gather(cluster: Cluster, end: float, timeout: float) -> None:
    lines: dict[int, socket.socket] = {}
    missing = set(range(1, cluster.count))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(cluster.addresses[0]))
        while missing:
            if time.monotonic() > end:
                raise _alone(cluster, missing, timeout)
            for line in _callers(server):
                stack.enter_context(line)
                worker = _who(line, cluster.count)
                if worker is not None:
                    lines[worker] = line
            lines = {worker: line for worker, line in lines.items() if _is_held(line)}
            missing = set(range(1, cluster.count)) - set(lines)
        for line in lines.values():
            with contextlib.suppress(OSError):  # lost right now: TensorFlow's deadline tells
                line.sendall(GO)


def _report(cluster: Cluster, end: float, timeout: float) -> None:
    host, port = _split(cluster.addresses[0])
    while time.monotonic() < end:
        beat()
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, port), timeout=5) as line,
        ):
            line.sendall(HELLO + f"{cluster.index}\n".encode())
            while time.monotonic() < end:
                beat()
                if select.select([line], [], [], TICK)[0]:
                    if line.recv(len(GO)) == GO:
                        return
                    break
        time.sleep(TICK)
    raise _alone(cluster, {0}, timeout)


@contextlib.contextmanager
def _listen(address: str) -> Iterator[socket.socket]:
    try:
        server = socket.create_server(("", _split(address)[1]), backlog=128)
    except OSError as error:
        raise ConfigError(
            f"worker 0 cannot listen at its own address, {address}: {error.strerror}",
            hint="give the workers of $TF_CONFIG ports that nothing else uses",
        ) from error
    with server:
        yield server


def _callers(server: socket.socket) -> list[socket.socket]:
    """Give the lines that somebody has opened within a tick."""
    beat()
    found: list[socket.socket] = []
    while select.select([server], [], [], 0 if found else TICK)[0]:
        with contextlib.suppress(OSError):
            found.append(server.accept()[0])
    return found


def _who(line: socket.socket, count: int) -> int | None:
    """Give which worker is on a line; None for anybody else, a port scan or a health check."""
    line.settimeout(1)
    with contextlib.suppress(OSError, ValueError):
        said = line.recv(64)
        worker = int(said.removeprefix(HELLO)) if said.startswith(HELLO) else 0
        if 0 < worker < count:
            return worker
    line.close()
    return None


def _is_held(line: socket.socket) -> bool:
    """Tell whether the other end is still there: it says nothing more, so anything is the end."""
    return not select.select([line], [], [], 0)[0]


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(
            f"{address!r} in $TF_CONFIG is no address of a worker", hint="give it as host:port"
        )
    return host.strip("[]"), int(port)


def _alone(cluster: Cluster, missing: set[int], timeout: float) -> UnavailableError:
    who = ", ".join(f"{worker} ({cluster.addresses[worker]})" for worker in sorted(missing))
    return UnavailableError(
        f"worker {cluster.index} of {cluster.count} has waited {timeout:g} s (--workers-timeout) "
        f"for worker {who}",
        hint=HINT,
    )
