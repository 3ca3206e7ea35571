"""What came of the scenarios, as docs/cluster.md."""

from __future__ import annotations

import datetime
import platform
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import machine
from tests.cluster.lab import ROOT

DOCUMENT = ROOT / "docs/cluster.md"

INTRO = """\
# On a real Kubernetes

`make cluster-test` does what is told here and writes this file (`tests/cluster/`). It builds
kube-apiserver, kube-controller-manager, kube-scheduler and kubelet from Debian's source package,
runs them with Debian's etcd and containerd on loopback, and sends Jobs of the built image there
with `python -m job submit`. The buckets are a fake-gcs-server. The overlay is
`tests/cluster/overlay`, on `k8s/base`; each scenario changes of it what its transcript says.
It wants root on Debian 12 and 15 GB in `build/`; Kubernetes and the image are built once, in a
quarter of an hour on two cores, and kept there. Nothing of the machine's own containerd, network
or settings is changed, and nothing stays: no process, mount, container or cgroup.

`submit` speaks to the cluster as a user who has the Role in `docs/submit.md` and nothing else.

Kubernetes 1.20 has no `podFailurePolicy`, no Indexed Jobs and no `DisruptionTarget`. So a failure
that no retry will mend ends a Job here through `backoffLimit: 0`; what newer releases do is checked
by their schemas (`tests/test_k8s.py`), and by a stand-in API server that real HTTP clients talk to
(`tests/test_submit_*.py`). Pods use the node's own network, so no network policy is shown, and no
node has a GPU.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A scenario: what was asked and seen, how long it took, and each line of its record."""

    name: str
    asked: str
    seen: str
    passed: bool
    seconds: float
    record: tuple[str, ...]


def document(outcomes: list[Outcome], left: list[str], seconds: float) -> str:
    """Write Markdown: the machine, a table, and the transcript of each scenario."""
    today = datetime.datetime.now(datetime.UTC).date()
    failed = sum(not outcome.passed for outcome in outcomes)
    summary = (
        f"{today}, {machine()}, Linux {platform.release().split('-')[0]}; {versions()}: "
        f"{seconds / 60:.0f} minutes with everything built, "
        + (f"**{failed} of {len(outcomes)} failed**" if failed else f"all {len(outcomes)} passed")
        + f". Left on the machine: {', '.join(left) or 'nothing'}."
    )
    parts = [INTRO, summary, "", table(outcomes), "", "## Transcript"]
    for outcome in outcomes:
        parts += [f"\n### {outcome.name}\n", outcome.asked, "", "```text"]
        parts += [*map(anonymous, outcome.record), "```"]
    return "\n".join(parts) + "\n"


def table(outcomes: list[Outcome]) -> str:
    """Give a row a scenario."""
    rows = ["| scenario | asked | seen | passed | seconds |", "|---|---|---|---|--:|"]
    for outcome in outcomes:
        passed = "yes" if outcome.passed else "**no**"
        seen = anonymous(outcome.seen).replace("\n", " ")
        cells = (outcome.name, outcome.asked, seen, passed, f"{outcome.seconds:.0f}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def versions() -> str:
    """Tell the versions of what ran."""
    kubernetes = (ROOT / "build/cluster/kubernetes/version").read_text().strip()
    found = [f"Kubernetes {kubernetes}"]
    for command in ("etcd --version", "containerd --version", "runc --version"):
        done = subprocess.run(command.split(), capture_output=True, text=True, check=True)
        number = re.search(r"\d+\.\d+\.\d+", done.stdout)
        found.append(f"{command.split()[0]} {number[0] if number else '?'}")
    return ", ".join(found)


def anonymous(line: str) -> str:
    """Take out of a line what belongs to this machine alone: folders and its name."""
    line = (
        re.sub(r"\btest-[0-9a-f]{32}\b", "bucket", line)
        .replace(f"{ROOT}/", "")
        .replace(str(Path(sys.prefix).resolve()), ".venv")
    )
    return line.replace(socket.gethostname(), "this-machine")
