"""Several jobs share the work of embedding: each embeds a part, the cache brings it together.

Nothing but the cache connects them. Job 0 goes on with the whole data set; what the others have
not put into the cache by then it embeds itself, so a job that is late or lost costs time only.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import replace

from job.cache import EmbeddingCache
from job.cluster import TF_CONFIG, find_cluster
from job.config import RunConfig
from job.dataset import Index
from job.errors import ConfigError
from job.progress import log

# What Kubernetes tells the pods of an Indexed Job.
COMPLETION_INDEX = "JOB_COMPLETION_INDEX"

# Seconds between two looks at the cache.
INTERVAL = 2.0


def find_place(config: RunConfig) -> tuple[int, int]:
    """Give which of how many jobs that share the work this is, `(0, 1)` if it is alone.

    $TF_CONFIG tells it as well as `--workers-count` does. Raises ConfigError as `find_cluster` and
    `worker_index` do, and where the two contradict each other.
    """
    cluster = find_cluster()
    if cluster is None:
        return worker_index(config), config.workers_count
    if config.workers_count > 1:
        raise ConfigError(
            f"--workers-count is {config.workers_count}, and ${TF_CONFIG} tells of {cluster.count} "
            "workers",
            hint=f"leave --workers-count out, or unset ${TF_CONFIG}",
        )
    if not config.cache_uri and not trains_together(config):
        raise ConfigError(
            f"--cache is off, and the {cluster.count} workers of ${TF_CONFIG} share their work "
            "through it",
            hint="give them a --cache that all of them can write to",
        )
    return cluster.index, cluster.count


def trains_together(config: RunConfig) -> bool:
    """Tell whether the workers of $TF_CONFIG go on together once the images are embedded."""
    return config.solver == "finetune" and find_cluster() is not None


def worker_index(config: RunConfig) -> int:
    """Give which of `--workers-count` jobs this is.

    Raises ConfigError when the pod's index is no number below the count.
    """
    if config.workers_count == 1:
        return 0
    if config.workers_index is not None:
        return config.workers_index
    found = os.environ.get(COMPLETION_INDEX, "")
    if not found.isdecimal() or int(found) >= config.workers_count:
        raise ConfigError(
            f"{COMPLETION_INDEX} is {found!r}, expected a number below {config.workers_count}",
            hint="run it as an Indexed Job with as many completions, or give --workers-index",
        )
    return int(found)


def share(index: Index, worker: int, count: int) -> Index:
    """Give a worker's part of an index: by a hash of the name, the same in every listing."""
    mine = (
        example
        for example in index.examples
        if zlib.crc32(example.name.encode(errors="surrogateescape")) % count == worker
    )
    return replace(index, examples=tuple(mine))


def wait_for_others(
    cache: EmbeddingCache, index: Index, timeout: float, advance: Callable[[int], None]
) -> None:
    """Wait until the cache knows every example, or nothing new has come for `timeout` seconds.

    `advance` is told of every example that the others have done.
    """
    missing = [example.entry for example in index.examples]
    last = time.monotonic()
    while True:
        cache.refresh()
        left = [entry for entry in missing if cache.known(entry) is None]
        if len(left) < len(missing):
            advance(len(missing) - len(left))
            missing, last = left, time.monotonic()
        if not missing:
            return
        if time.monotonic() - last >= timeout:
            message = f"{len(missing)} embeddings did not come from the other jobs: doing them here"
            log(message, level=logging.WARNING, missing=len(missing))
            return
        time.sleep(INTERVAL)
