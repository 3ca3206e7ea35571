"""What the scenarios share: buckets, overlays, `submit` as a process, and pods to look at."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.leftovers import NAMESPACE
from tests.cluster.servers import CI, DIES_WITH_US, Cluster
from tests.gcs_server import new_bucket

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples/clipart"
OVERLAY = ROOT / "tests/cluster/overlay"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
# A scenario takes a minute or two; a machine that is busy with other work, ten times that.
TIMEOUT = 900

Patch = dict[str, Any]


class Wrong(Exception):
    """What was seen is not what was expected."""


def expect(holds: object, words: str) -> None:
    """Raise Wrong with `words` where something does not hold."""
    if not holds:
        raise Wrong(words)


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended: its exit code, its result on stdout, and what it said."""

    code: int
    result: dict[str, Any]
    said: str

    def expect(self, code: int, *words: str) -> None:
        """Raise Wrong unless it ended with `code` and said each of `words`."""
        expect(self.code == code, f"exit code {self.code}, expected {code}")
        for word in words:
            expect(word in self.said, f"not a word of {word!r}")


class Lab:
    """A cluster, a bucket with pictures, and a record of what was done with them."""

    def __init__(self, cluster: Cluster, gcs: str, gcs_folder: Path) -> None:
        """Make the namespace, a bucket in the server at `gcs`, and put the samples into it."""
        self.cluster, self._gcs, self._gcs_folder = cluster, gcs, gcs_folder
        self.bucket = new_bucket()
        self.record: list[str] = []
        self._overlays = 0
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        cluster.ask("/api/v1/namespaces", "POST", space)
        roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}"
        role = documented_role()
        cluster.ask(f"{roles}/roles", "POST", role)
        cluster.ask(f"{roles}/rolebindings", "POST", binding(role["metadata"]["name"]))
        self.upload({path: path.relative_to(SAMPLES.parent) for path in SAMPLES.rglob("*.*")})

    def upload(self, files: dict[Path, Path]) -> None:
        """Put files into the bucket under the names given."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        client = storage.Client(project="test", credentials=AnonymousCredentials())
        bucket = client.bucket(self.bucket)
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(
                lambda pair: bucket.blob(str(pair[1])).upload_from_filename(pair[0]), files.items()
            ):
                pass

    def stored(self, pattern: str) -> list[str]:
        """Name the objects of the bucket that match a pattern."""
        bucket = self._gcs_folder / "data" / self.bucket
        found = (path for path in bucket.glob(pattern) if path.is_file())
        return sorted(str(path.relative_to(bucket)) for path in found)

    def overlay(self, settings: dict[str, str], *patches: Patch) -> Path:
        """Make an overlay on tests/cluster/overlay with variables and JSON patches of the Job."""
        self._overlays += 1
        folder = self.cluster.run / f"overlays/{self._overlays}"
        folder.mkdir(parents=True)
        variables = {
            "REGRAFT_DATA": f"gs://{self.bucket}/clipart",
            "STORAGE_EMULATOR_HOST": self._gcs,
            **settings,
        }
        described = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(OVERLAY, folder.resolve())],
            "configMapGenerator": [
                {
                    "name": "regraft",
                    "namespace": NAMESPACE,
                    "behavior": "merge",
                    "literals": [f"{name}={value}" for name, value in variables.items()],
                }
            ],
            "patches": [{"target": {"kind": "Job"}, "patch": json.dumps(patches)}]
            if patches
            else [],
        }
        (folder / "kustomization.yaml").write_text(json.dumps(described, indent=2))
        if patches:
            self.note(*(f"# patch of the Job: {json.dumps(patch)}" for patch in patches))
        return folder

    def note(self, *lines: str) -> None:
        """Add lines to the record, and show them."""
        for line in lines:
            self.record.append(line)
            sys.stderr.write(f"{line}\n")

    def begin(self, *arguments: str | Path) -> Running:
        """Start `python -m job` with arguments, which go to the record."""
        shown = (os.path.relpath(a, ROOT) if isinstance(a, Path) else a for a in arguments)
        self.note(f"$ python -m job {' '.join(shown)}")
        return Running(self, *map(str, arguments))

    def submit(self, overlay: Path, name: str, *options: str) -> Running:
        """Start `python -m job submit` as a user with the Role of docs/submit.md alone."""
        client = ("--kubeconfig", self.cluster.kubeconfig(CI), "--log-format", "text")
        return self.begin("submit", overlay, "--job-name", name, *client, *options)

    def pods(self, job: str) -> list[dict[str, Any]]:
        """Give the pods of a Job, the oldest first."""
        found: list[dict[str, Any]] = self.cluster.ask(f"{PODS}?labelSelector=job-name={job}")[
            "items"
        ]
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def kill(self, pod: dict[str, Any]) -> None:
        """Send SIGKILL to the first process of a pod's container."""
        (status,) = pod["status"]["containerStatuses"]
        container = status["containerID"].removeprefix("containerd://")
        tasks = [line.split() for line in self.cluster.ctr("tasks", "list").splitlines()[1:]]
        (process,) = (int(task[1]) for task in tasks if task[0] == container)
        self.note(f"# SIGKILL to the process of pod {pod['metadata']['name']}")
        os.kill(process, signal.SIGKILL)

    def delete(self, pod: dict[str, Any]) -> None:
        """Delete a pod as `kubectl delete pod` does: with its own grace period."""
        name = pod["metadata"]["name"]
        self.note(f"# kubectl delete pod {name}")
        self.cluster.ask(f"{PODS}/{name}", "DELETE")


def documented_role() -> dict[str, Any]:
    """Give the Role that docs/submit.md has for whoever submits."""
    (role,) = re.findall(
        r"```yaml\n(.*?kind: Role\n.*?)```", (ROOT / "docs/submit.md").read_text(), re.S
    )
    return dict(yaml.safe_load(role))


def binding(role: str) -> dict[str, Any]:
    """Give what lets CI do what a Role says."""
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": role},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": role},
        "subjects": [{"apiGroup": group, "kind": "User", "name": CI}],
    }


class Running:
    """A command at work; what it says goes to the record as it comes."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        """Start `python -m job` with arguments, as if at a terminal but for its stdout."""
        self._lab, self.said = lab, ""
        self._terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*DIES_WITH_US, sys.executable, "-m", "job", *arguments],
            cwd=ROOT,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            start_new_session=True,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        rest, decoder = "", codecs.getincrementaldecoder("utf-8")("replace")
        with contextlib.suppress(OSError):  # EIO: nobody has the other side open any more
            while piece := decoder.decode(os.read(self._terminal, 4096)):
                self.said += piece
                *lines, rest = (rest + piece.replace("\r", "")).split("\n")
                self._lab.note(*lines)
        if rest:
            self._lab.note(rest)

    def type(self, text: str) -> None:
        """Type something at its terminal."""
        os.write(self._terminal, text.encode())

    def until(self, what: str, holds: Callable[[], Any]) -> Any:
        """Wait until something holds while the command runs; gives what `holds` gave."""
        for _ in ticks():
            if self.process.poll() is not None:
                raise Wrong(f"it ended with {self.ended().code} before {what}")
            if found := holds():
                return found
        self.process.kill()
        raise Wrong(f"{what}: not within {TIMEOUT} s")

    def ended(self) -> Ended:
        """Wait for its end and record its result; Wrong when it does not end."""
        try:
            code = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Wrong(f"it has not ended after {TIMEOUT} s") from None
        self._reader.join()
        os.close(self._terminal)
        out = self.process.stdout.read() if self.process.stdout else ""
        self._lab.note(*out.splitlines(), f"exit code {code}")
        last = out.strip().rpartition("\n")[2]
        result = json.loads(last) if last.startswith("{") else {}
        return Ended(code, result, self.said + out)


def ticks() -> Iterator[None]:
    """Tick every tenth of a second until TIMEOUT."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        yield
        time.sleep(0.1)
