"""What a cluster leaves on the machine, and how it is removed: containers, mounts, settings."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What a kubelet writes when it starts (setupKernelTunables in its container manager).
SETTINGS = (
    *("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"),
)
# The namespace of the tests: part of the names of the logs that a kubelet keeps in /var/log.
NAMESPACE = "regraft-test"


def ctr(socket: str, *arguments: str) -> str:
    """Ask the containerd behind `socket`; CalledProcessError when it does not do it."""
    command = ["ctr", "--address", socket, "--namespace", "k8s.io", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return done.stdout


def remove_containers(socket: str) -> None:
    """Kill every task and remove every container; each shim then ends by itself."""
    try:
        names = ctr(socket, "containers", "list", "--quiet").split()
    except (OSError, subprocess.SubprocessError):
        return  # containerd never came up
    for name in names:
        for command in (("tasks", "delete", "--force"), ("containers", "delete")):
            with contextlib.suppress(subprocess.SubprocessError):
                ctr(socket, *command, name)


@contextlib.contextmanager
def settings_kept(note: Path) -> Iterator[None]:
    """Put back, at the end, the settings that a kubelet is going to change.

    They are noted in a file: should this process be killed, the next one puts them back.
    """
    if note.exists():
        restore(note)
    paths = (Path("/proc/sys") / name for name in SETTINGS)
    note.write_text(json.dumps({str(p): p.read_text() for p in paths if p.exists()}))
    try:
        yield
    finally:
        restore(note)


def restore(note: Path) -> None:
    """Write back the settings in a note, and remove it."""
    for path, value in json.loads(note.read_text()).items():
        if Path(path).read_text() != value:
            Path(path).write_text(value)
    note.unlink()


def can_mount_overlay(folder: Path) -> bool:
    """Tell whether overlay mounts work below `folder`."""
    parts = {name: folder / "probe" / name for name in ("lower", "upper", "work", "merged")}
    for part in parts.values():
        part.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
    command = ["mount", "-t", "overlay", "probe", str(parts["merged"]), "-o", options]
    if subprocess.run(command, capture_output=True).returncode:
        return False
    subprocess.run(["umount", str(parts["merged"])], check=True)  # noqa: S607
    return True


def mounts(folder: Path) -> list[str]:
    """Give the mount points below a folder, the newest first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1].encode().decode("unicode_escape") for line in lines]
    return [point for point in reversed(points) if point.startswith(f"{folder}/")]


def remove(run: Path) -> None:
    """Remove all of a cluster, one that was killed included, with the pods' logs in /var/log."""
    for process in strays(run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    for container in containers(run):
        for cgroup in cgroups(container):
            remove_cgroup(cgroup)
    for cgroup in cgroups("."):
        with contextlib.suppress(OSError):  # somebody else's
            cgroup.rmdir()
    for point in mounts(run):
        subprocess.run(["umount", "--lazy", point], check=True)  # noqa: S607
    shutil.rmtree(run, ignore_errors=True)
    for log in Path("/var/log/pods").glob(f"{NAMESPACE}_*"):
        shutil.rmtree(log)
    for log in Path("/var/log/containers").glob(f"*_{NAMESPACE}_*"):
        log.unlink()


def containers(run: Path) -> list[str]:
    """Name the containers whose task has not been deleted."""
    return [path.name for path in run.glob("containerd/io.containerd.runtime.v2.task/k8s.io/*")]


def cgroups(container: str) -> list[Path]:
    """Give a container's cgroups, one a controller where the machine has the first version."""
    root = Path("/sys/fs/cgroup")
    found = (*root.glob(f"*/k8s.io/{container}"), root / "k8s.io" / container)
    return [path for path in found if path.is_dir()]


def remove_cgroup(folder: Path) -> None:
    """Remove an empty cgroup; the kernel may need a moment after its last process ended."""
    for _ in range(50):
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.1)


def strays(run: Path) -> dict[int, str]:
    """Give the processes that name `run` or are in one of its containers, with their commands."""
    inside = [f"/k8s.io/{container}" for container in containers(run)]
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            groups = (process / "cgroup").read_text()
            if int(process.name) != os.getpid() and (
                any(word.startswith(f"{run}/") or f"={run}/" in word for word in words)
                or any(group in groups for group in inside)
            ):
                found[int(process.name)] = " ".join(words[:3])
    return found


def remains(run: Path) -> list[str]:
    """Name what is left of a cluster: processes, mounts, folders and cgroups."""
    found = [f"process {command}" for command in strays(run).values()]
    found += [f"mount {point}" for point in mounts(run)]
    found += [f"folder {run}"] if run.exists() else []
    return found + [f"cgroup {path}" for path in cgroups("*")]
