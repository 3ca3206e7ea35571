"""Decode and resize large JPEGs at full size, and at the DCT's own reduction.

    python benchmarks/decode_large.py --data FOLDER [--rounds 3] [--limit N]

Both are the job's decoder, to 224x224, with a thread for each core, in turn. Prints images per
second, one JSON object a round.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from limit import decode_rate

from job.images import loader

SIZE = (224, 224)


def main() -> None:
    """Print the rates of every round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    files = [path.read_bytes() for path in sorted(options.data.rglob("*.jpg"))]
    decoders = {"reduced": loader(SIZE), "exact": loader(SIZE, exact=True)}
    for decode in decoders.values():
        decode(files[0])
    for _ in range(options.rounds):
        print(
            json.dumps({name: decode_rate(decode, files) for name, decode in decoders.items()}),
            flush=True,
        )


if __name__ == "__main__":
    main()
