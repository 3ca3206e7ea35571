"""Looks around inside the image, as the job would: one line a check, `what<TAB>expected<TAB>seen`.

tests/image_test.sh mounts it and runs it with the image's own Python, confined as a pod is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import sys
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

SBOM = Path("/usr/share/sbom")
FOLDERS = ("/", "/app", "/opt/venv", "/etc", "/home", "/run", "/usr", "/work", "/tmp")  # noqa: S108


def writable() -> list[str]:
    """Give those of some folders where this user can make a file."""
    found = []
    for folder in FOLDERS:
        probe = Path(folder, "probe")
        try:
            probe.touch()
            probe.unlink()
            found.append(folder)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
    return found


def not_compiled() -> int:
    """Load what a run loads and count the modules that every start would compile again."""
    import tensorflow  # noqa: F401

    import job.pipeline  # noqa: F401

    return sum(not is_compiled(module) for module in list(sys.modules.values()))


def is_compiled(module: ModuleType) -> bool:
    """Tell whether Python takes a module's compiled form as it lies there; one without has none."""
    source, cached = getattr(module, "__file__", None), getattr(module, "__cached__", None)
    if not source or not cached:
        return True
    with contextlib.suppress(FileNotFoundError):
        # After the magic number and flags: time of change and size of the source.
        written = struct.unpack("<II", Path(cached).read_bytes()[8:16])
        stat = Path(source).stat()
        return written == (int(stat.st_mtime), stat.st_size)
    return False


def normal(name: str) -> str:
    """Give a package's name as PyPI compares them."""
    return name.lower().replace("_", "-").replace(".", "-")


def components(name: str) -> dict[str, str]:
    """Give the packages that one of the bills of materials lists, with their versions."""
    bill = json.loads((SBOM / name).read_text())
    if bill["bomFormat"] != "CycloneDX":
        raise ValueError(f"{name} is {bill['bomFormat']}, expected CycloneDX")
    return {normal(part["name"]): part["version"] for part in bill["components"]}


def main() -> None:
    """Print the checks."""
    listed = components("python.cdx.json")
    installed = {normal(found.name): found.version for found in distributions()}
    missing = " ".join(sorted(name for name, _ in installed.items() - listed.items()))
    debian = components("debian.cdx.json")
    status = Path("/proc/self/status").read_text()
    capabilities = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff")]
    for row in (
        ("user and group", "65532:65532", f"{os.getuid()}:{os.getgid()}"),
        ("capabilities in effect", "0" * 16, capabilities[0]),
        ("folders where it can write", "/work /tmp", " ".join(writable())),
        ("network interfaces", "lo", " ".join(name for _, name in socket.if_nameindex())),
        ("modules to compile at a start", "0", str(not_compiled())),
        ("installed Python packages that the SBOM lacks", "none", missing or "none"),
        ("TensorFlow in the SBOM", "yes", "yes" if any(
            name in listed for name in ("tensorflow", "tensorflow-cpu")) else "no"),
        ("Debian packages in the SBOM", "yes", "yes" if "libc6" in debian else "no"),
    ):  # fmt: skip
        sys.stdout.write("\t".join(row) + "\n")


if __name__ == "__main__":
    main()
