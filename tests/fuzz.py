"""Feeds the readers of outside bytes with what coverage-guided mutation makes of good files.

    python tests/fuzz.py TARGET [--seconds N] [--runs N] [--seed N]

Only the errors that a reader documents may come out of it; anything else ends the run with exit
code 77 and leaves the input in build/fuzz/. The last line tells executions and coverage.

Coverage is that of our Python modules. TensorFlow's decoders, which `images` leads to, protobuf,
numpy, zlib and the C parts of pickle and json are not instrumented: there the mutations are blind,
and only a crash, a hang of 10 seconds, 3 GiB of memory or a wrong result is seen.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

FOUND = ROOT / "build" / "fuzz"

# Runs one input; raises what its reader does not document.
Run = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Target:
    """A reader, made for a folder that it may write to, and good inputs to begin with."""

    make: Callable[[Path], Run]
    seeds: Callable[[Path], Iterable[bytes]]
    # The first bytes are kept in half of the mutations: those that a format is told by.
    kept: int = 0
    # The share of mutations that begin with a good input, not with what gave new coverage.
    fresh: float = 0.1


def instrumented() -> contextlib.AbstractContextManager[None]:
    """Give the block in which the modules that are read with are to be imported."""
    context: contextlib.AbstractContextManager[None] = atheris.instrument_imports(
        include=["job", "yaml", "tarfile"]
    )
    return context


def index(folder: Path) -> Run:
    """`shards.read_index`, by way of a folder with one shard of this index."""
    with instrumented():
        from job.shards import DamagedShardError, list_shards, read_index
        from job.storage import LocalStore
    store = LocalStore(folder)

    def run(data: bytes) -> None:
        name = f"{'0' * 32}/{hashlib.sha256(data).hexdigest()[:32]}"
        store.write(f"{name}.rows", bytes(8))
        store.write(f"{name}.index", data)
        (listed,) = list_shards(store)
        with contextlib.suppress(DamagedShardError):
            read_index(store, listed)
        store.delete(f"{name}.rows")
        store.delete(f"{name}.index")

    return run


def index_seeds(_: Path) -> list[bytes]:
    """Give indexes with rows, without, and with a reason."""
    import numpy as np

    from job.shards import Record, seal

    row = np.ones(2, np.float32)
    records = [
        Record(bytes(16), bytes(32), 7, "", row),
        Record(bytes(16), b"1" * 32, 8, "no", None),
    ]
    return [seal("0" * 32, "float32", some).index for some in (records[:1], records, [])]


def channels(folder: Path) -> Run:
    """`publish.read_channels`."""
    with instrumented():
        from job.errors import ConfigError
        from job.publish import read_channels
        from job.storage import LocalStore
    store = LocalStore(folder)

    def run(data: bytes) -> None:
        store.write("channels.json", data)
        with contextlib.suppress(ConfigError):
            read_channels(store)

    return run


def channels_seeds(_: Path) -> list[bytes]:
    """Give a good one, and some that JSON knows and nobody writes."""
    return [b'{"stable": 3, "previous": 2}', b'{"a": Infinity}', b"[" * 2000, b'{"a": 1e999}']


def imports(_: Path) -> Run:
    """`importfile.parse_import`, in both formats."""
    with instrumented():
        from job.errors import DataError
        from job.importfile import parse_import

    def run(data: bytes) -> None:
        for uri in ("gs://b/x.csv", "gs://b/x.jsonl"):
            with contextlib.suppress(DataError):
                parse_import(uri, data)

    return run


def imports_seeds(_: Path) -> list[bytes]:
    """Give good rows of both formats."""
    row = b'{"imageGcsUri":"a","classificationAnnotations":[{"displayName":"b"}]}\n'
    return [b"training,gs://b/1.jpg,cat\n", b'"a ""b"".jpg",cat,dog\n\n', row * 2, b"[" * 2000]


def tables(_: Path) -> Run:
    """`ledger.parse_ledger` and `doctor.listing.read_exclusions`."""
    with instrumented():
        from job.doctor.listing import read_exclusions
        from job.errors import ConfigError
        from job.ledger import parse_ledger

    def run(data: bytes) -> None:
        with contextlib.suppress(ValueError):
            parse_ledger(data)
        with contextlib.suppress(ConfigError):
            read_exclusions(data.decode("utf-8", "surrogateescape"))

    return run


def tables_seeds(_: Path) -> list[bytes]:
    """Give a ledger, a listing and a list of names."""
    return [
        b"sha256,split,group,name,note\r\nd1,test,,a.jpg,\r\n",
        b"name,finding,label,suggested,score,with\r\n'=a,copy,cat,,,b\r\n",
        b"cat/1.jpg\ncat/\\udcff.jpg\n",
    ]


def manifest(folder: Path) -> Run:
    """`seal.file_problems`, which raises nothing."""
    with instrumented():
        from job.seal import MANIFEST, file_problems

    def run(data: bytes) -> None:
        (folder / MANIFEST).write_bytes(data)
        file_problems(folder)

    return run


def manifest_seeds(_: Path) -> list[bytes]:
    """Give a sealed manifest, and others that are none."""
    from job.seal import canonical, seal

    good = canonical(seal({"files": {"a": {"size": 1, "sha256": "0"}}, "labels": ["b"]}))
    return [good.encode(), b"{}", b'{"files": []}', b"[" * 2000]


def archive(folder: Path) -> Run:
    """`archives.unpack`, after which nothing is there but its folder."""
    with instrumented():
        from job.archives import unpack
        from job.errors import ConfigError

    def run(data: bytes) -> None:
        inner = folder / "inner"
        inner.mkdir()
        with contextlib.suppress(ConfigError):
            unpack(io.BytesIO(data), inner / "target")
        if [path.name for path in inner.iterdir()] != ["target"] or len(list(folder.iterdir())) > 1:
            raise AssertionError("something was written outside the folder")
        shutil.rmtree(inner)

    return run


def archive_seeds(_: Path) -> list[bytes]:
    """Give archives of each compression that try to lead outside, and a good one."""
    import tarfile

    found = []
    for mode in ("w", "w:gz"):
        for name in ("a/b", "../b", "/b", "a/../../b", "a"):
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode=mode) as tar:
                member = tarfile.TarInfo(name)
                member.size = 3
                tar.addfile(member, io.BytesIO(b"abc"))
                link = tarfile.TarInfo("link")
                link.type, link.linkname = tarfile.SYMTYPE, "../.."
                if name == "a":
                    tar.addfile(link)
            found.append(out.getvalue())
    return found


def weights(folder: Path) -> Run:
    """`torch_weights.read_state_dict`, whose digest is right every time.

    Python's pickle takes gigabytes for a few bytes that ask for them, which is an error here only
    once they are refused. A file whose digest is not the pinned one never gets that far.
    """
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    with instrumented():
        from job.backbones.torch_weights import read_state_dict
        from job.errors import ConfigError

    def run(data: bytes) -> None:
        path = folder / "weights.pth"
        path.write_bytes(data)
        with contextlib.suppress(ConfigError):
            read_state_dict(path, sha256=hashlib.sha256(data).hexdigest())

    return run


def weights_seeds(_: Path) -> list[bytes]:
    """Give a state dict without a tensor, and one with, put together by hand."""
    from job.backbones.torch_weights import MAGIC_NUMBER, PROTOCOL_VERSION

    parts = (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True})
    start = b"".join(pickle.dumps(part, 2) for part in parts)
    # {"w": _rebuild_tensor_v2(<storage "0" of 2 floats>, 0, (2,), (1,), False, OrderedDict())}
    view = (
        b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n"
        b"((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x02NtQK\x00K\x02\x85K\x01\x85\x89"
        b"ccollections\nOrderedDict\n)RtRs."
    )
    storage = (2).to_bytes(8, "little") + bytes(8)
    return [
        start + pickle.dumps({}, 2) + pickle.dumps([], 2),
        start + view + pickle.dumps(["0"], 2) + storage,
    ]


def module(folder: Path) -> Run:
    """`vetting.vet_module`."""
    with instrumented():
        from job.errors import ConfigError
        from job.vetting import vet_module

    def run(data: bytes) -> None:
        (folder / "saved_model.pb").write_bytes(data)
        with contextlib.suppress(ConfigError):
            vet_module(folder)

    return run


def module_seeds(folder: Path) -> list[bytes]:
    """Give the graph of the tiny pooling module."""
    from modules import write_pooling

    return [(write_pooling(folder / "pooling") / "saved_model.pb").read_bytes(), b""]


def options(folder: Path) -> Run:
    """`config.read_options`."""
    with instrumented():
        from job.config import read_options
        from job.errors import ConfigError

    def run(data: bytes) -> None:
        path = folder / "options.yaml"
        path.write_bytes(data)
        with contextlib.suppress(ConfigError):
            read_options(path, {"data", "l2"}, {"data"})

    return run


def options_seeds(_: Path) -> list[bytes]:
    """Give good lines, and what YAML offers besides."""
    return [
        b"data: gs://bucket/x\nl2: 0.1\n", b"a: &a [*a]", b"l2: 2026-01-31", b"? [a]\n: b",
        b"l2: 0x1f", b"l2: 1:30:00", b"l2: 2026-02-30", b"[" * 2000,
        b"!!python/object:os.system []", b"l2: !!binary YQ==",
    ]  # fmt: skip


def images(_: Path) -> Run:
    """`images.loader`: finite pixels in [0,1], or UnreadableImage with a reason."""
    with instrumented():
        import numpy as np

        from job.images import UnreadableImage, loader
    load = loader((16, 16))

    def run(data: bytes) -> None:
        try:
            pixels = load(data)
        except UnreadableImage as error:
            if not error.reason:
                raise AssertionError("refused without a reason") from error
            return
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise AssertionError("pixels outside [0,1]")

    return run


def images_seeds(_: Path) -> list[bytes]:
    """Give the malformed files and the samples that are not large."""
    from malformed import cases

    files = [case.contents for case in cases()]
    files += [path.read_bytes() for path in sorted((ROOT / "samples").rglob("*.jpg"))[::8]]
    return [contents for contents in files if len(contents) < 2**16]


TARGETS = {
    "index": Target(index, index_seeds, kept=4),
    "channels": Target(channels, channels_seeds),
    "manifest": Target(manifest, manifest_seeds),
    "imports": Target(imports, imports_seeds),
    "tables": Target(tables, tables_seeds),
    "archive": Target(archive, archive_seeds, kept=10),
    "weights": Target(weights, weights_seeds, kept=40),
    "module": Target(module, module_seeds),
    "options": Target(options, options_seeds),
    "images": Target(images, images_seeds, kept=30, fresh=0.9),
}


def mutator(seeds: list[bytes], target: Target) -> Callable[[bytes, int, int], bytes]:
    """Give libFuzzer a mutation: one of its own, of its input or of a good one."""

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)  # noqa: S311 - nothing is kept secret with it
        if rng.random() < target.fresh:
            data = rng.choice(seeds)
        changed: bytes = atheris.Mutate(data, most)
        for _ in range(rng.randrange(4)):
            changed = atheris.Mutate(changed, most)
        if rng.random() < 0.5:
            changed = data[: target.kept] + changed[target.kept :]
        return changed[:most]

    return mutate


def main() -> None:
    """Fuzz one target; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    target = TARGETS[flags.target]
    FOUND.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        corpus, work = Path(made, "corpus"), Path(made, "work")
        corpus.mkdir()
        work.mkdir()
        run = target.make(work)
        seeds = list(target.seeds(Path(made)))
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        arguments = [
            sys.argv[0], str(corpus), f"-runs={flags.runs}", f"-max_total_time={flags.seconds}",
            f"-seed={flags.seed}", f"-max_len={max(map(len, seeds)) + 64}", "-timeout=10",
            "-rss_limit_mb=3072", f"-artifact_prefix={FOUND}/{flags.target}-",
        ]  # fmt: skip
        atheris.Setup(arguments, run, custom_mutator=mutator(seeds, target))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
