"""Measure the job beside what it replaces, and beside the limits of the machine.

    python benchmarks/bench.py [--only STEP ...] [--quick] [--work build/bench] [--figures FILE]

Steps run one after the other in the order of `STEPS`; their figures go to docs/benchmarks.json, and
`page.py` writes docs/benchmarks.md and its plots from that. `--only` replaces the figures of some
steps and keeps the others, each with its own date. `--quick` proves in a few minutes that the
scripts work, with a few dozen images; its figures stay in the work folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import download
import make_data
import page
import rates
import scenarios
from measure import ROOT, Bench, Clock, machine

STEPS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "job": scenarios.job,
    "limit": rates.limit,
    "openvino": rates.openvino,
    "large": rates.large,
    "download": download.download,
    "keras": scenarios.keras_recipe,
    "make_image_classifier": scenarios.make_image_classifier,
}
ROUNDS = 3


def main() -> None:
    """Run the steps and write figures, page and plots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--figures", type=Path, help="docs/benchmarks.json by default")
    options = parser.parse_args()
    quick = options.quick
    work = (options.work / "quick" if quick else options.work).absolute()
    figures = options.figures or (work if quick else ROOT / "docs") / "benchmarks.json"
    bench = Bench(work, quick, 1 if quick else ROUNDS)
    work.mkdir(parents=True, exist_ok=True)
    make_data.make(work / "data", quick)
    scenarios.build_module(bench)
    found = json.loads(figures.read_text()) if figures.exists() else {"steps": {}}
    for name in [name for name in STEPS if name in options.only]:
        print(f"{name}:", flush=True)
        started, start = datetime.now(UTC).isoformat(timespec="seconds"), Clock.now()
        step = STEPS[name](bench)
        others = round(Clock.now().others_since(start), 1)
        print(f"  others had {others} % of the cores", flush=True)
        found["steps"][name] = {"started": started, "others_percent": others, **step}
        found |= {"machine": machine(), "quick": quick, "data": describe(bench.photos)}
        # After every step: an hour's figures must survive a failure in the last one.
        figures.write_text(json.dumps(found, indent=1) + "\n")
    page.write(figures)


def describe(photos: Path) -> dict[str, Any]:
    """Give what the page says of the images."""
    sizes = [path.stat().st_size for path in photos.rglob("*.jpg")]
    return {"images": len(sizes), "mean_kb": round(sum(sizes) / len(sizes) / 1e3, 1)}


if __name__ == "__main__":
    main()
