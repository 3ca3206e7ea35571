"""How many requests a run makes to its bucket, by kind.

    python benchmarks/count_requests.py [--images 120 360]

Whole processes of the job against fake-gcs-server, through the proxy of tests/fault_proxy.py, which
counts and does no harm. For each number of images: the first run, the same command again, a run
after one image was added, and one with `--force`. Prints a Markdown table for docs/cost.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import ROOT, jpeg, write_colours
from fault_proxy import Faults, fault_proxy
from gcs_server import fake_gcs_server, new_bucket

from job.storage import open_store

VERBS = ("list", "write", "copy", "read", "delete", "other")


def run(proxy: Faults, bucket: str, work: Path, *options: str) -> list[int]:
    """Run the job once; gives the requests it made, in the order of VERBS."""
    before = proxy.requests()
    command = [sys.executable, "-m", "job", "run", "--log-format", "json", "--work-dir", str(work)]
    command += ["--data", f"gs://{bucket}/images", "--models", f"gs://{bucket}/models"]
    done = subprocess.run(
        [*command, "--name", "colours", *options], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"the job ended with {done.returncode}: {done.stderr[-2000:]}")
    return [proxy.requests()[verb] - before[verb] for verb in VERBS]


def measure(count: int, proxy: Faults, folder: Path) -> None:
    """Print a row for each of the four runs over `count` images, a third of each colour."""
    bucket = new_bucket()
    images = open_store(f"gs://{bucket}/images")
    for path in sorted(write_colours(folder / "images", count // 3).rglob("*.jpg")):
        images.write(path.relative_to(folder / "images").as_posix(), path)

    def row(name: str, *options: str) -> None:
        counts = run(proxy, bucket, folder / "work", *options)
        print(f"| {count} | {name} | {' | '.join(map(str, counts))} |", flush=True)

    row("first")
    row("unchanged")
    images.write("cyan/new.jpg", jpeg((0, 255, 255), seed=99999))
    row("one image more")
    row("all cached, `--force`", "--force")


def main() -> None:
    """Read the options, start the server, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, nargs="+", default=[120, 360])
    options = parser.parse_args()
    print(f"| images | run | {' | '.join(VERBS)} |\n|--:|---|{'--:|' * len(VERBS)}")
    for count in options.images:
        with tempfile.TemporaryDirectory() as name, fake_gcs_server(Path(name)) as url:
            folder = Path(name)
            with fault_proxy(url, folder / "proxy.log") as proxy:
                measure(count, proxy, folder)


if __name__ == "__main__":
    main()
