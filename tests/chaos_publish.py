"""Publishers that are killed, and publishers that meet, under the eyes of `watcher.py`.

    python tests/chaos_publish.py [--short] [--seed N]

Two scenarios on the local store and on fake-gcs-server: a publisher that publishes in a loop gets
SIGKILL at random moments, and eight publish under one name at once. A bundle carries a token in
every file, so that a mix shows. Prints a Markdown table; exit code 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gcs_server import fake_gcs_server, new_bucket

# Imported before the forks, so that no publisher spends its life on it.
import job.gcs  # noqa: F401
from job.errors import PublishError, RegraftError
from job.publish import publish, read_channels, read_listing
from job.storage import Store, check_writable, open_store

WATCHER = Path(__file__).with_name("watcher.py")
FILES = (
    "saved_model.pb",
    "fingerprint.pb",
    "frozen_graph.pb",
    "labels.txt",
    "examples.csv",
    "variables/variables.index",
    "variables/variables.data-00000-of-00001",
    "assets/labels.txt",
    "assets.extra/tf_serving_warmup_requests",
    "report/index.html",
    "report/metrics.json",
)
PUBLISHERS = 8
# Versions are seconds, and no more than a minute ahead: a name takes that many kills or rounds.
KILLS_PER_NAME, ROUNDS_PER_NAME = 15, 5


@dataclass(slots=True)
class Tally:
    """What happened in one scenario on one store."""

    store: str
    scenario: str
    publishers: int = 0
    struck: int = 0
    conflicts: int = 0
    versions: int = 0
    polls: int = 0
    looks: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def write_bundle(folder: Path, token: str) -> Path:
    """Write files as an export has them, each with the token; the variables are 300 kB."""
    described = {}
    for name in FILES:
        content = f"<token:{token}>{name}\n".encode()
        content *= 300_000 // len(content) if "data" in name else 20
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        described[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {"token": f"<token:{token}>", "files": described}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def publish_one(models: Store, acks: Path, work: Path, **options: float) -> tuple[int, str]:
    """Publish a new bundle, and say so in the file `acks` once it is done."""
    token = uuid.uuid4().hex
    bundle = write_bundle(work / token, token)
    version = publish(bundle, models, **options)
    shutil.rmtree(bundle)
    with acks.open("a") as file:
        file.write(f"{version} {token}\n")
    return version, token


def spawn(do: Callable[[], None]) -> int:
    """Run a function in a new process, which ends with the exit code of the job."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        do()
        code = 0
    except RegraftError as error:
        code = error.exit_code
        if not isinstance(error, PublishError):
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@contextlib.contextmanager
def watching(uri: str, tally: Tally, acks: Path) -> Iterator[None]:
    """Keep a watcher alive, then compare what it saw with what the publishers said."""
    process = subprocess.Popen(
        [sys.executable, str(WATCHER), uri], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        yield
    finally:
        process.terminate()
        report, _ = process.communicate(timeout=120)
    seen: dict[str, Any] = json.loads(report)
    whole = {int(version): token for version, token in seen["whole"].items()}
    tally.polls += seen["polls"]
    tally.looks += seen["looks"]
    tally.versions += len(whole)
    tally.problems += seen["violations"]
    for line in acks.read_text().splitlines():
        version, token = line.split()
        if whole.get(int(version)) != token:
            tally.problems.append(f"version {version} of {uri} is not what its publisher sent")
    if not seen["polls"] or not whole:
        tally.problems.append(f"the watcher of {uri} saw nothing")


def kill_publishers(uri: str, tally: Tally, work: Path, count: int, rng: random.Random) -> None:
    """Kill a publisher `count` times, then publish in peace and see that nothing is left over."""
    work.mkdir()
    models = open_store(uri)
    check_writable(models)  # as the job does first; makes the folder of a local store
    acks = work / "acks"
    usual = time_publishing(models, acks, work)
    with watching(uri, tally, acks):
        for _ in range(count):
            before = unfinished(models)
            ready, begin = os.pipe()
            child = spawn(lambda begin=begin: publish_for_ever(uri, acks, work, begin))
            os.close(begin)
            os.read(ready, 1)
            os.close(ready)
            time.sleep(rng.uniform(0, 2 * usual))
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code != -signal.SIGKILL:
                tally.problems.append(f"{uri}: a publisher ended by itself with {code}")
            tally.publishers += 1
            tally.struck += unfinished(models) != before
        time.sleep(0.5)  # a request that outlived its sender may still be carried out
        version, _ = publish_one(models, acks, work, stale_after=0.0)
    if left := {name for name in unfinished(models) if not name.startswith(".claims/")}:
        tally.problems.append(f"{uri}: {sorted(left)} was not cleaned")
    if read_channels(models)["stable"] != version:
        tally.problems.append(f"{uri}: stable is not version {version}, the last")


def publish_for_ever(uri: str, acks: Path, work: Path, begin: int) -> None:
    """Publish until killed."""
    models = open_store(uri)
    os.write(begin, b".")
    while True:
        publish_one(models, acks, work)


def time_publishing(models: Store, acks: Path, work: Path) -> float:
    """Give the seconds that a publication takes."""
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        publish_one(models, acks, work)
        seconds.append(time.monotonic() - start)
    return statistics.median(seconds)


def unfinished(models: Store) -> set[str]:
    """Give what publications that never ended have left: staging, half versions, bare claims."""
    listing = read_listing(models)
    staged = {"/".join(e.name.split("/")[:2]) for e in models.list(".staging/")} - {".staging/"}
    bare = set(listing.claims) - set(listing.versions) - set(listing.partial)
    return staged | {str(v) for v in listing.partial} | {f".claims/{v}" for v in bare}


def publish_at_once(uri: str, tally: Tally, work: Path, rounds: int) -> None:
    """Let eight publishers start at one moment, again and again under the same name."""
    work.mkdir()
    models = open_store(uri)
    check_writable(models)  # as the job does first; makes the folder of a local store
    acks = work / "acks"
    publish_one(models, acks, work)
    with watching(uri, tally, acks):
        for _ in range(rounds):
            gate, open_gate = os.pipe()
            children = [
                spawn(lambda gate=gate, mine=open_gate: publish_when(gate, mine, uri, acks, work))
                for _ in range(PUBLISHERS)
            ]
            os.close(open_gate)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            os.close(gate)
            tally.publishers += len(codes)
            tally.conflicts += codes.count(PublishError.exit_code)
            if wrong := set(codes) - {0, PublishError.exit_code}:
                tally.problems.append(f"{uri}: publishers ended with {sorted(wrong)}")
            if 0 not in codes:
                tally.problems.append(f"{uri}: none of {PUBLISHERS} publishers got through")
    newest = max(int(line.split()[0]) for line in acks.read_text().splitlines())
    if read_channels(models)["stable"] < newest:
        tally.problems.append(f"{uri}: stable is older than {newest}, which was published")


def publish_when(gate: int, mine: int, uri: str, acks: Path, work: Path) -> None:
    """Publish once, as soon as the other end of the pipe is closed."""
    os.close(mine)
    models = open_store(uri)
    os.read(gate, 1)
    publish_one(models, acks, work)


def run(root: str, store: str, work: Path, options: argparse.Namespace) -> list[Tally]:
    """Run both scenarios on one store, each name taking a part of it."""
    rng = random.Random(options.seed)  # noqa: S311  (no secret)
    killed, met = Tally(store, "SIGKILL"), Tally(store, f"{PUBLISHERS} at once")
    start = time.monotonic()
    for number, first in enumerate(range(0, options.kills, KILLS_PER_NAME)):
        count = min(KILLS_PER_NAME, options.kills - first)
        kill_publishers(f"{root}/killed{number}", killed, work / f"killed{number}", count, rng)
    killed.seconds = time.monotonic() - start
    start = time.monotonic()
    for number, first in enumerate(range(0, options.rounds, ROUNDS_PER_NAME)):
        rounds = min(ROUNDS_PER_NAME, options.rounds - first)
        publish_at_once(f"{root}/met{number}", met, work / f"met{number}", rounds)
    met.seconds = time.monotonic() - start
    return [killed, met]


def table(tallies: list[Tally], options: argparse.Namespace) -> str:
    """Write the outcome as Markdown."""
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"{options.kills} kills and {options.rounds} rounds a store, seed {options.seed}, {today}.",
        "",
        "| store | scenario | publishers | struck in mid-publication | conflicts (exit 5) "
        "| versions seen, each whole | watcher: polls | violations | seconds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {t.store} | {t.scenario} | {t.publishers} | {t.struck} | {t.conflicts} | {t.versions} "
        f"| {t.polls} | {len(t.problems)} | {t.seconds:.0f} |"
        for t in tallies
    ]
    return "\n".join(lines)


def main() -> int:
    """Run everything; gives the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="15 kills and 3 rounds a store")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.kills, options.rounds = (15, 3) if options.short else (200, 20)
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = Path(temporary)
        for name in ("local", "gcs", "server"):
            (folder / name).mkdir()
        tallies = run(str(folder / "local/models"), "local", folder / "local", options)
        with fake_gcs_server(folder / "server"):
            tallies += run(
                f"gs://{new_bucket()}/models", "fake-gcs-server", folder / "gcs", options
            )
    sys.stdout.write(table(tallies, options) + "\n")
    problems = [problem for tally in tallies for problem in tally.problems]
    sys.stderr.writelines(f"- {problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
