"""What a cluster leaves on the machine, and how it is removed: containers, mounts, settings."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What a kubelet writes when it starts (setupKernelTunables in its container manager).
SETTINGS = (
    *("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"),
)
# The namespace of the tests: part of the names of the logs that a kubelet keeps in /var/log, and
# the name of the cgroup that all pods are in.
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


def kernel_settings() -> dict[Path, str]:
    """Give the settings that a kubelet is going to change."""
    paths = (Path("/proc/sys") / name for name in SETTINGS)
    return {path: path.read_text() for path in paths if path.exists()}


def restore(settings: dict[Path, str]) -> None:
    """Write back what `kernel_settings` gave."""
    for path, value in settings.items():
        if path.read_text() != value:
            path.write_text(value)


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
    """Unmount and remove all below `run`, the pods' cgroups, and their logs in /var/log."""
    for point in mounts(run):
        subprocess.run(["umount", "--lazy", point], check=True)  # noqa: S607
    shutil.rmtree(run, ignore_errors=True)
    for cgroup in cgroups():
        for folder in sorted(cgroup.rglob("*"), reverse=True):
            if folder.is_dir():
                remove_cgroup(folder)
        remove_cgroup(cgroup)
    for log in Path("/var/log/pods").glob(f"{NAMESPACE}_*"):
        shutil.rmtree(log)
    for log in Path("/var/log/containers").glob(f"*_{NAMESPACE}_*"):
        log.unlink()


def cgroups() -> list[Path]:
    """Give the pods' cgroup, once a controller where the machine has the first version."""
    root = Path("/sys/fs/cgroup")
    return [path for path in (*root.glob(f"*/{NAMESPACE}"), root / NAMESPACE) if path.is_dir()]


def remove_cgroup(folder: Path) -> None:
    """Remove an empty cgroup; the kernel may need a moment after its last process ended."""
    for _ in range(50):
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.1)


def remains(run: Path) -> list[str]:
    """Name what is left of a cluster: mounts, folders, cgroups and processes that name `run`."""
    found = [f"mount {point}" for point in mounts(run)]
    found += [f"folder {run}"] if run.exists() else []
    found += [f"cgroup {path}" for path in cgroups()]
    for commands in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = commands.read_bytes().decode(errors="replace").split("\0")
            if any(word.startswith(f"{run}/") or f"={run}/" in word for word in words):
                found.append(f"process {' '.join(words[:2])}")
    return found
