"""Workers wait for one another, and whoever else calls is none of them."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from team import tf_configs

from job.cluster import Cluster
from job.errors import ConfigError, UnavailableError
from job.rendezvous import HELLO, meet


def clusters(count: int) -> list[Cluster]:
    """Give each worker's own view of so many on this machine."""
    told = [json.loads(text) for text in tf_configs(count)]
    return [Cluster(tuple(each["cluster"]["worker"]), index=each["task"]["index"]) for each in told]


def start(pool: ThreadPoolExecutor, cluster: Cluster, timeout: float = 30) -> Future[None]:
    """Have a worker wait for the others."""
    return pool.submit(meet, cluster, timeout)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_whoever_comes_last_all_meet(order: tuple[int, ...]) -> None:
    """None goes on before the last one is there; then all do, and the chief's port is free."""
    workers = clusters(3)
    with ThreadPoolExecutor() as pool:
        waiting = [start(pool, workers[index]) for index in order[:2]]
        time.sleep(0.5)
        assert not any(future.done() for future in waiting)
        waiting.append(start(pool, workers[order[2]]))
        for future in waiting:
            future.result(timeout=30)
    host, port = workers[0].addresses[0].split(":")
    with socket.create_server((host, int(port))):
        pass


STRANGERS = (b"", b"GET / HTTP/1.1\r\n\r\n", HELLO + b"7\n", HELLO + b"x\n", HELLO + b"1\n")


def call(address: str, said: bytes) -> None:
    """Say something to whoever listens at an address, as soon as it does, and hang up."""
    host, port = address.split(":")
    for _ in range(100):
        try:
            line = socket.create_connection((host, int(port)), timeout=5)
            break
        except OSError:
            time.sleep(0.05)
    with line:
        line.sendall(said)
        time.sleep(0.3)  # it has been heard by now


def test_other_callers_and_lost_workers_do_not_count() -> None:
    """A port scan, a stranger, a worker of no such number, and one that has gone again."""
    workers = clusters(3)
    with ThreadPoolExecutor() as pool:
        chief = start(pool, workers[0])
        for said in STRANGERS:
            call(workers[0].addresses[0], said)
        other = start(pool, workers[2])
        time.sleep(0.5)
        assert not chief.done()
        assert not other.done()
        start(pool, workers[1]).result(timeout=30)
        chief.result(timeout=30)
        other.result(timeout=30)


def test_who_is_missing_is_told() -> None:
    """By the chief all of them, by the others the chief."""
    workers = clusters(3)
    with pytest.raises(UnavailableError) as alone:
        meet(workers[0], 0.3)
    for worker in (1, 2):
        assert f"{worker} ({workers[0].addresses[worker]})" in alone.value.message
    with pytest.raises(UnavailableError, match=f"for worker 0 .{workers[0].addresses[0]}"):
        meet(workers[1], 0.3)


def test_an_address_that_is_none_or_taken_is_refused() -> None:
    """It is the configuration that is wrong, which no retry mends."""
    with pytest.raises(ConfigError, match="no address of a worker"):
        meet(Cluster(("here", "there:1"), 0), 1)
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="cannot listen at its own address"):
            meet(Cluster((address, "127.0.0.1:1"), 0), 1)
