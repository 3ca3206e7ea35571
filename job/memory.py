"""How much memory this process may use: what its cgroups allow, or what the machine has."""

from __future__ import annotations

from pathlib import Path

from job.errors import ConfigError

# The least with which a run with the default backbone ends (docs/operations.md): TensorFlow, its
# graphs, a batch, and beside it the process that verifies the export.
LEAST = 2 * 2**30

# What TensorFlow and its graphs take before the first batch, and what each batch under way takes,
# 32 images of 224 x 224 pixels, as measured with the default backbone.
BASE = 1280 * 2**20
PER_BATCH = 600 * 2**20


def memory_limit(root: Path = Path("/")) -> int:
    """Give the bytes that this process may use: the lowest limit of its cgroups, v1 or v2.

    Where there is none it is the machine's memory. `root` is where `proc` and `sys` are.
    """
    limits = [_machine(root)]
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's, and its own limit at the top.
        group = base / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                limits += _limit(folder / name)
    return min(limits)


def check_memory(limit: int) -> None:
    """Raise ConfigError where a run could only be killed: when the limit is below `LEAST`."""
    if limit < LEAST:
        raise ConfigError(
            f"this process may use {limit / 2**20:.0f} MiB of memory, "
            f"expected at least {LEAST / 2**20:.0f} MiB",
            hint="raise resources.limits.memory; 4Gi serves every built-in backbone",
        )


def batches_at_once(limit: int, cores: int, image_size: tuple[int, int], batch_size: int) -> int:
    """Give how many batches may be under way: one a core, and no more than memory has room for."""
    pixels = batch_size * image_size[0] * image_size[1]
    each = PER_BATCH * pixels / (32 * 224 * 224)
    return max(1, min(cores, int((limit - BASE) / each)))


def _machine(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no MemTotal in /proc/meminfo")


def _limit(file: Path) -> list[int]:
    try:
        found = file.read_text().strip()
    except OSError:
        return []
    return [int(found)] if found.isdigit() else []  # v2 writes `max` for none
