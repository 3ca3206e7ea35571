"""Which of several processes this one is, by what the environment says of them; no TensorFlow."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from job.errors import ConfigError

# What TensorFlow's own launchers, Kubeflow's among them, tell each process of all of them.
TF_CONFIG = "TF_CONFIG"

CHIEF, WORKER = "chief", "worker"


@dataclass(frozen=True, slots=True)
class Cluster:
    """Processes at `addresses` (`host:port`), of which this one is `index`; 0 is the chief."""

    addresses: tuple[str, ...]
    index: int

    @property
    def count(self) -> int:
        """Give how many processes there are."""
        return len(self.addresses)


def find_cluster() -> Cluster | None:
    """Read `$TF_CONFIG`; None where it is not set, or names this process alone.

    Raises ConfigError for one that is no cluster of a chief and workers with this one in it.
    """
    text = os.environ.get(TF_CONFIG, "")
    if not text.strip():
        return None
    try:
        found = json.loads(text)
        jobs: dict[str, list[str]] = dict(found.get("cluster", {}))
        task = found.get("task", {})
        kind, index = str(task.get("type", WORKER)), int(task.get("index", 0))
        groups = {name: [str(address) for address in jobs[name]] for name in jobs}
    except (ValueError, TypeError, AttributeError) as error:
        raise _refused(f"it is no such object ({error})") from error
    if not groups:
        return None
    if unknown := sorted(set(groups) - {CHIEF, WORKER}):
        raise _refused(f"it has {', '.join(unknown)}, expected {CHIEF} and {WORKER} alone")
    before = 0 if kind == CHIEF else len(groups.get(CHIEF, []))
    if not 0 <= index < len(groups.get(kind, [])):
        raise _refused(f"its task, {kind} {index}, is not in its cluster")
    addresses = (*groups.get(CHIEF, []), *groups.get(WORKER, []))
    return Cluster(addresses, before + index) if len(addresses) > 1 else None


def _refused(what: str) -> ConfigError:
    return ConfigError(
        f"${TF_CONFIG} is of no use: {what}",
        hint='expected {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", '
        '"index": 0}}, with a "chief" if one of them is to be it; unset it to train alone',
    )
