"""Steps whose figures are rates, measured inside a process that is warm already."""

from __future__ import annotations

import json
from typing import Any

from measure import ROOT, Bench
from scenarios import published_graph


def lines(text: str) -> list[Any]:
    """Parse a process's JSON objects, one a line."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def limit(bench: Bench) -> dict[str, Any]:
    """Time decoding alone, the forward pass alone, and the job's stream that does both."""
    output = bench.script(
        "limit",
        "limit.py",
        "--data", bench.photos,
        "--module", bench.module,
        # Short rounds and more of them: a rate is compared with the others of its round.
        "--rounds", str(2 * bench.rounds),
        "--batches", "5" if bench.quick else "40",
    )  # fmt: skip
    return {"rounds": lines(output.text)}


def openvino(bench: Bench) -> dict[str, Any]:
    """Time OpenVINO on a published frozen graph, in turn with the job's own forward pass."""
    python = bench.environment("openvino") / "python"
    graph, batch = published_graph(bench), bench.work / "batch.npz"
    count = ["--batches", "5" if bench.quick else "30"]
    rounds = []
    for _ in range(bench.rounds):
        ours = bench.script(
            "forward, Regraft",
            "forward_regraft.py",
            "--data", bench.photos,
            "--module", bench.module,
            "--graph", graph,
            "--out", batch,
            *count,
        )  # fmt: skip
        script = ROOT / "benchmarks/forward_openvino.py"
        theirs = bench.run(
            "forward, OpenVINO", [python, script, "--graph", graph, "--batch", batch, *count]
        )
        rounds.append(ours.last_json() | theirs.last_json())
    version = bench.run(
        "OpenVINO's version", [python, "-c", "import openvino; print(openvino.__version__)"]
    )
    return {"version": version.text.strip(), "rounds": rounds}


def large(bench: Bench) -> dict[str, Any]:
    """Time decoding of 3000x2000 JPEGs, with and without the DCT's own reduction."""
    output = bench.script(
        "large JPEGs",
        "decode_large.py",
        "--data", bench.work / "data/large",
        "--rounds", str(bench.rounds),
    )  # fmt: skip
    return {"rounds": lines(output.text)}
