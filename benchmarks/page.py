"""Write docs/benchmarks.md and its plots from the raw figures; measures nothing.

    python benchmarks/page.py [--figures docs/benchmarks.json]

Page and plots are written beside the figures, under the same name.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import figures
import plot
from figures import Figures, median

ROOT = Path(__file__).resolve().parent.parent


def write(source: Path) -> None:
    """Write the page and the plots that belong to a file of figures."""
    found = json.loads(source.read_text())
    steps = found["steps"]
    parts = [*head(found), *verdicts(steps), *reasons(steps), *whole_processes(source, steps)]
    if "job" in steps:
        parts += where_time_goes(source, steps)
    parts += in_rates(source, steps)
    source.with_suffix(".md").write_text("\n".join(parts) + "\n")
    print(f"wrote {source.with_suffix('.md')}")


def head(found: Figures) -> Iterator[str]:
    """Say what was measured, where and when."""
    machine, data, steps = found["machine"], found["data"], found["steps"]
    days = sorted({step["started"][:10] for step in steps.values()})
    others = [step["others_percent"] for step in steps.values()]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    yield "# Benchmarks"
    yield ""
    yield (
        f"Measured {' and '.join(days)} on one machine: {machine['cpu']}, {machine['cores']} "
        f"cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}, Python "
        f"{machine['python']}, {packages}. No GPU. While the steps ran, other processes had "
        f"{min(others):.0f} to {max(others):.0f} % of the cores."
    )
    yield ""
    yield (
        f"The images are {data['images']:,} JPEGs of 500x375, {data['mean_kb']:.0f} KB on average: "
        "four variants of every sample drawing with the grain of a photograph "
        "(`benchmarks/make_data.py`). Every tool reads the same files and uses the same backbone, "
        "`builtin:efficientnet-lite0` as a TF2 Hub module."
    )
    yield ""
    if found["quick"]:
        yield "**A quick run that proves the scripts: these figures say nothing.**"
        yield ""
    yield (
        "`make bench` measures all of it again, `python benchmarks/page.py` writes this page again "
        "from [benchmarks.json](benchmarks.json)."
    )
    yield ""


def verdicts(steps: Figures) -> Iterator[str]:
    """Give the requirements and whether they are met."""
    yield "| | found | bar | |"
    yield "|---|---|---|---|"
    for bar in figures.bars(steps):
        sign = "at least" if bar.at_least else "at most"
        verdict = "met" if bar.met else "**not met**"
        yield (
            f"| {bar.what} | {bar.found:.{2 if bar.found < 10 else 1}f}{bar.unit} | "
            f"{sign} {bar.bound:g}{bar.unit} | {verdict} |"
        )
    yield ""


def reasons(steps: Figures) -> Iterator[str]:
    """Say what stands in the way of the ratios to five epochs, where those were measured."""
    cpu = {item.name: item.cpu_seconds for item in figures.processes(steps)}
    foreign = {name: cpu[name] for name in figures.FOREIGN.values() if name in cpu}
    if "job" not in steps or not foreign:
        return
    images = steps["job"]["images"]
    built, warm = cpu[f"Regraft, {figures.BUILT}"], cpu[f"Regraft, {figures.WARM}"]
    passes = " and ".join(
        f"{name} at most {1000 * spent / images / 5:.0f} ms" for name, spent in foreign.items()
    )
    yield (
        f"An image costs {passes} of CPU in each of its five epochs, and "
        f"{1000 * (built - warm) / images:.0f} ms in our one pass, antialiased decoding included: "
        "every tool ends in the same kernels, so five passes against one can give five times at "
        "most, and start-up, export and verification come off that. A warm run has no pass left; "
        f"what it takes is TensorFlow's import ({figures.import_seconds(steps):.1f} s, in two "
        "processes at once), the fit, the export and its verification. The bars were set on a "
        "machine that took 292 s for five epochs over as many images."
    )
    yield ""


def whole_processes(source: Path, steps: Figures) -> Iterator[str]:
    """Give the wall times of processes from start to end."""
    found = figures.processes(steps)
    if not found:
        return
    plot.processes(source.with_suffix(".png"), found)
    yield "## Whole processes"
    yield ""
    yield f"![Seconds of whole processes]({source.stem}.png)"
    yield ""
    yield "| process | seconds (median) | shortest to longest | CPU seconds | peak MB | runs |"
    yield "|---|---|---|---|---|---|"
    for item in found:
        yield (
            f"| {item.name} | {item.seconds:.1f} | {item.low:.1f} to {item.high:.1f} | "
            f"{item.cpu_seconds:.1f} | {item.peak_mb:,.0f} | {item.runs} |"
        )
    yield ""
    yield (
        "From the start of the interpreter to its end, imports included. Regraft: `run --force` "
        "into folders of its own; cold is with an empty cache and the backbone not built; "
        f"{changed(steps)}unchanged is without `--force`. make_image_classifier: tensorflow-hub "
        "0.13.0 on TensorFlow 2.15.1, its defaults (5 epochs). The Keras recipe "
        "(`benchmarks/keras_recipe.py`): 5 epochs, decoded images kept in memory. Both run the "
        "backbone over every image in every epoch."
    )
    yield ""


def changed(steps: Figures) -> str:
    """Say how many files 1 % are."""
    if "job" not in steps:
        return ""
    count = steps["job"]["changed"]
    return f"for 1 % changed {count} files are replaced by other images; "


def where_time_goes(source: Path, steps: Figures) -> Iterator[str]:
    """Give the phases of the job, as bars and as a table."""
    table = figures.phases(steps)
    name = f"{source.stem}-phases.png"
    plot.phases(source.with_name(name), table)
    columns = list(dict.fromkeys(phase for row in table.values() for phase in row))
    yield "## Where the time goes"
    yield ""
    yield f"![Seconds by phase of the job]({name})"
    yield ""
    yield "| seconds | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for scenario, row in table.items():
        cells = (f"{row[column]:.2f}" if column in row else "" for column in columns)
        yield f"| {scenario} | " + " | ".join(cells) + " |"
    yield ""
    yield (
        f"`{figures.OUTSIDE}` is the interpreter, its imports and leaving. "
        f"Importing TensorFlow as the job does it takes {figures.import_seconds(steps):.1f} s, and "
        "`verify` pays for it once more, since it reloads the export in a fresh process. Without "
        f"these two imports, {', '.join(figures.NOT_THE_REST[:-1])} and "
        f"{figures.NOT_THE_REST[-1]}, {figures.rest_of_warm(steps):.1f} s of a warm run are left."
    )
    yield ""


def in_rates(source: Path, steps: Figures) -> Iterator[str]:
    """Give what was measured inside warm processes."""
    panels = {
        title: rows
        for title, rows in (
            ("embedding, images/s", embedding(steps)),
            ("forward pass, batch 32, images/s", runtimes(steps)),
            ("decoding 3000x2000 JPEGs to 224x224, images/s", large(steps)),
            ("downloads, 40 ms away, objects/s", downloads(steps)),
        )
        if rows
    }
    if not panels:
        return
    name = f"{source.stem}-rates.png"
    plot.rates(source.with_name(name), panels)
    yield "## Rates"
    yield ""
    yield f"![Rates beside their limits and alternatives]({name})"
    yield ""
    yield "| | per second |"
    yield "|---|---|"
    for title, rows in panels.items():
        for row, value in rows.items():
            yield f"| {title.rpartition(',')[0]}: {row} | {value:,.1f} |"
    yield ""
    yield from notes(steps)


def embedding(steps: Figures) -> dict[str, float]:
    """Give the limit, what it is computed from, and what the job reaches."""
    if "limit" not in steps:
        return {}
    rounds = steps["limit"]["rounds"]
    rows = {
        "decode alone": median(rounds, "decode"),
        "forward pass alone": median(rounds, "forward"),
        "limit of both": statistics.median(figures.limit_of(found) for found in rounds),
        "Regraft, steady": median(rounds, "embed"),
    }
    if "job" in steps:
        rows["Regraft, embed phase of a job"] = figures.job_rate(steps)
    return rows


def runtimes(steps: Figures) -> dict[str, float]:
    """Give OpenVINO beside the job's own forward pass."""
    if "openvino" not in steps:
        return {}
    rounds = steps["openvino"]["rounds"]
    return {
        "OpenVINO, one request at a time": median(rounds, "latency"),
        "OpenVINO, overlapping requests": median(rounds, "throughput"),
        "Regraft": median(rounds, "regraft"),
    }


def large(steps: Figures) -> dict[str, float]:
    """Give the decoder with and without the DCT's own reduction."""
    if "large" not in steps:
        return {}
    rounds = steps["large"]["rounds"]
    return {
        "Regraft, with the DCT ratio": median(rounds, "reduced"),
        "Regraft, --exact-decode": median(rounds, "exact"),
    }


def downloads(steps: Figures) -> dict[str, float]:
    """Give the ways to download objects."""
    if "download" not in steps:
        return {}
    rounds = steps["download"]["rounds"]
    names = {
        "loop": "loop over the client",
        "transfer_manager": "transfer_manager, 32 threads",
        "obstore": "obstore, 32 at once",
        "regraft": "Regraft's store, 32 threads",
    }
    return {name: median(rounds, way) for way, name in names.items()}


def notes(steps: Figures) -> Iterator[str]:
    """Say how the rates came about."""
    if "limit" in steps:
        yield (
            "The limit is 1 / (1/decode + 1/forward): both need all cores, so they take turns. "
            "The three rates are measured in turn in one process (`benchmarks/limit.py`); "
            "`steady` leaves out the first and the last images, the embed phase of a whole job "
            "counts everything, compiling and the cache's shards too."
        )
        yield ""
    if "openvino" in steps:
        found = steps["openvino"]
        difference = max(round_["difference"] for round_ in found["rounds"])
        yield (
            f"OpenVINO {found['version']} runs the published `frozen_graph.pb` in float32; its "
            f"predictions differ from TensorFlow's by at most {difference:.1g}."
        )
        yield ""
    if "download" in steps:
        found = steps["download"]
        size = found["bytes"] / found["objects"] / 1e3
        yield (
            f"Downloads are {found['objects']:,} photographs of {size:.0f} KB from "
            "fake-gcs-server. It shares the cores with the client and with the proxy that holds "
            f"each request back for {1000 * found['delay']:.0f} ms. Regraft and Google's client "
            "compare CRC32C, obstore does not."
        )
        yield ""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", type=Path, default=ROOT / "docs/benchmarks.json")
    write(parser.parse_args().figures)


if __name__ == "__main__":
    main()
