"""How much memory there is, as the kernel tells it, and what is done with little."""

from __future__ import annotations

from pathlib import Path

import pytest

from job.errors import ConfigError
from job.memory import LEAST, batches_at_once, check_memory, memory_limit

GIB = 2**30


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Write the files of a machine with 16 GiB that tell a process of these cgroups its limits."""
    for name, text in {
        "proc/meminfo": "MemTotal:       16777216 kB\nMemFree:  1 kB\n",
        "proc/self/cgroup": groups,
        **files,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = "0::/pod/job\n"
V1 = "5:cpu:/\n4:hugetlb,memory:/pod/job\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (V2, {}, 16 * GIB),
        (V2, {"sys/fs/cgroup/pod/job/memory.max": "max\n"}, 16 * GIB),
        (V2, {"sys/fs/cgroup/pod/job/memory.max": "4294967296\n"}, 4 * GIB),
        (V2, {"sys/fs/cgroup/memory.max": "4294967296\n"}, 4 * GIB),
        (
            V2,
            {
                "sys/fs/cgroup/pod/job/memory.max": "8589934592\n",
                "sys/fs/cgroup/pod/memory.max": "4294967296\n",
            },
            4 * GIB,
        ),
        (V1, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "4294967296\n"}, 4 * GIB),
        (V1, {"sys/fs/cgroup/memory/pod/job/memory.limit_in_bytes": "2147483648\n"}, 2 * GIB),
        (V1, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 16 * GIB),
    ],
)
def test_the_lowest_limit_of_all_counts(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    """Both versions of cgroups, a container's own view of them and the host's, and none."""
    assert memory_limit(machine(tmp_path, groups, files)) == expected


def test_this_machine_tells_its_limit() -> None:
    """The real files are read: a limit that is above nothing and no more than there is."""
    total = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    assert 0 < memory_limit() <= total


def test_too_little_is_told_before_the_work() -> None:
    """A run that could only be killed says how much there is and how much it takes."""
    check_memory(LEAST)
    with pytest.raises(ConfigError, match="may use 1024 MiB of memory, expected at least 2048"):
        check_memory(GIB)


def test_many_cores_and_little_memory_make_few_batches() -> None:
    """A node's 64 cores do not each get a batch in a pod of 4 GiB; one always goes on."""
    assert batches_at_once(64 * GIB, 8, (224, 224), 32) == 8
    assert 1 < batches_at_once(4 * GIB, 64, (224, 224), 32) < 8
    assert batches_at_once(2 * GIB, 64, (224, 224), 32) == 1
    assert batches_at_once(64 * GIB, 64, (448, 448), 128) < 64
    assert batches_at_once(GIB, 64, (224, 224), 32) == 1
