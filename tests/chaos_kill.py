"""Whole jobs that are killed at random moments, and started again with only the store left.

    python tests/chaos_kill.py [--short] [--seed N] [--kills N] [--stores NAME ...]

A job is a process, `python -m job run`, on the local store or on fake-gcs-server. It gets SIGKILL,
all of its processes at once, as a pod does that loses its node: half of the times at a moment of
the time that a run takes, half at a moment after the start line of one of its phases. The next one
starts with an empty work folder and an empty TMPDIR. After one to three kills a job may run to its
end. `watcher.py` polls the model all the time. Prints a Markdown table; exit code 1 when anything
was wrong.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import chaos_publish
from attempts import (
    MOMENTS,
    NAME,
    PHASES,
    Attempt,
    Inputs,
    saved_embeddings,
    small_steps,
    upload,
    write_inputs,
)
from chaos_publish import unfinished, watching
from gcs_server import fake_gcs_server, new_bucket
from watcher import Bucket, Folder, Watcher

from job.publish import clean, read_channels, read_listing
from job.shards import NAME as SHARD
from job.shards import list_shards
from job.storage import Store, open_store

STORES = ("local", "fake-gcs-server")


@dataclass(slots=True)
class Tally(chaos_publish.Tally):
    """What happened on one store; `publishers` are processes, `struck` kills.

    `saved` are the embeddings found in whole shards at the kills, `twice` those that were embedded
    again all the same, `halves` the objects of shards that were being written at a kill.
    """

    moments: Counter[str] = field(default_factory=Counter)
    published: int = 0
    unchanged: int = 0
    wrong: int = 0
    saved: int = 0
    twice: int = 0
    others: int = 0
    halves: int = 0


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A run that nobody killed: its outputs' digests by name, and its times in seconds."""

    digests: dict[str, str]
    total: float
    phases: dict[str, float]


def version_digests(models: Store, version: int) -> dict[str, str]:
    """Give the SHA-256 of what a version has learnt: its variables and its labels."""
    names = [entry.name for entry in models.list(f"{version}/variables/variables.data")]
    return {
        name.partition("/")[2]: hashlib.sha256(models.read(name)).hexdigest()
        for name in [*names, f"{version}/labels.txt"]
    }


def undisturbed(inputs: Inputs, models: str, room: Path) -> Undisturbed:
    """Run a job to its end and remember what it made."""
    start = time.monotonic()
    attempt = Attempt(inputs, models, room, *small_steps(inputs))
    if attempt.wait() != 0:
        attempt.kill()
        raise RuntimeError(f"not even an undisturbed run ends well: {attempt.last_words()}")
    total, result = time.monotonic() - start, attempt.result()
    store = open_store(f"{models}/{NAME}")
    return Undisturbed(version_digests(store, result["version"]), total, result["seconds"])


def find_problems(models: str, usual: Undisturbed) -> Iterator[str]:
    """Give a sentence for all that is wrong with what a trial has left in its models folder."""
    store = open_store(f"{models}/{NAME}")
    clean(store, 0.0)
    if left := {name for name in unfinished(store) if not name.startswith(".claims/")}:
        yield f"{models}: {sorted(left)} was not cleaned"
    versions = read_listing(store).versions
    if len(versions) != 1:
        yield f"{models}: versions {list(versions)}, expected one"
    for version in versions:
        if version_digests(store, version) != usual.digests:
            yield f"{models}: version {version} has learnt other values than an undisturbed run's"
    if read_channels(store).get("stable") not in versions:
        yield f"{models}: stable is {read_channels(store).get('stable')}, not of {list(versions)}"
    place = (Bucket if models.startswith("gs://") else Folder)(f"{models}/{NAME}")
    watcher = Watcher(place)
    watcher.poll()
    yield from (f"{models}: {violation}" for violation in watcher.report.violations)
    if strays := [e.name for e in open_store(models).list() if not is_ours(e.name, versions)]:
        yield f"{models}: {strays[:5]} belongs to nothing"
    twice = [digest for digest, times in saved_embeddings(models).items() if times > 1]
    if twice:
        yield f"{models}: {len(twice)} embeddings are stored twice"


def is_ours(name: str, versions: tuple[int, ...]) -> bool:
    """Tell whether an object may stand in a models folder once all jobs have ended."""
    if name.startswith(".embeddings/"):
        rest = name.removeprefix(".embeddings/")
        return bool(SHARD.fullmatch(rest) or re.fullmatch(r"backbones/[^./][^/]*\.graph", rest))
    rest = name.removeprefix(f"{NAME}/")
    kept = (*(f"{version}/" for version in versions), ".claims/")
    # These two folders stay, empty.
    others = ("channels.json", ".staging/", ".checkpoints/")
    return name != rest and (rest in others or rest.startswith(kept))


def strike(attempt: Attempt, usual: Undisturbed, rng: random.Random) -> None:
    """Kill a job at a random moment, unless it ends before."""
    if rng.random() < 0.5:
        attempt.wait(rng.uniform(0, usual.total))
    else:
        phase = rng.choice(PHASES)
        attempt.wait_for(phase)
        attempt.wait(rng.uniform(0, usual.phases[phase]))
    if attempt.process.poll() is None:
        attempt.kill()


@dataclass(frozen=True, slots=True)
class Lane:
    """A store, and what the trials on it have in common."""

    inputs: Inputs
    root: str
    folder: Path
    usual: Undisturbed
    tally: Tally


def run_trial(lane: Lane, number: int, kills: int, rng: random.Random) -> None:
    """Start jobs until one comes to its end, killing the first ones, in a new models folder."""
    tally, models = lane.tally, f"{lane.root}/{number}"
    watched = chaos_publish.Tally(tally.store, "")
    (acks := lane.folder / f"acks{number}").touch()
    with watching(f"{models}/{NAME}", watched, acks):
        for start in range(kills + 1):
            before = saved_embeddings(models)
            room = lane.folder / f"room{number}.{start}"
            attempt = Attempt(lane.inputs, models, room, *small_steps(lane.inputs))
            tally.publishers += 1
            if start < kills:
                strike(attempt, lane.usual, rng)
            code = attempt.wait()
            attempt.kill()  # whatever it has started, or itself where it hangs
            if code != -signal.SIGKILL:
                break
            tally.struck += 1
            tally.moments[attempt.moment()] += 1
        tally.problems += take_result(tally, attempt, code, before)
        acks.write_text(f"{attempt.result().get('version')} none\n")
        time.sleep(0.2)  # for a last look
    tally.wrong += len(watched.problems)
    tally.polls += watched.polls
    tally.versions += watched.versions
    problems = [*watched.problems, *find_problems(models, lane.usual)]
    tally.others += sum("other values" in problem for problem in problems)
    tally.halves += sum(not s.is_whole for s in list_shards(open_store(f"{models}/.embeddings")))
    tally.problems += problems
    for room in lane.folder.glob(f"room{number}.*"):
        shutil.rmtree(room)


def take_result(
    tally: Tally, attempt: Attempt, code: int | None, before: Counter[str]
) -> Iterator[str]:
    """Count how a job ended that was not killed; gives what is wrong with that.

    `before` are the embeddings that were saved when it began.
    """
    result = attempt.result()
    status, cache = result.get("status"), result.get("cache", {})
    if code != 0 or status not in ("published", "unchanged"):
        yield f"{tally.store}: a job ended with {code}, {status}: {attempt.last_words()}"
        return
    tally.published += status == "published"
    tally.unchanged += status == "unchanged"
    if status == "published":
        again = max(0, len(before) - cache["hits"])
        tally.saved += len(before)
        tally.twice += again
        if again or cache["hits"] + cache["misses"] != result["images"]["total"]:
            yield f"{tally.store}: {len(before)} embeddings were saved, but {cache} tells otherwise"


def run(store: str, root: str, inputs: Inputs, folder: Path, options: argparse.Namespace) -> Tally:
    """Run trials on one store until so many jobs were killed there."""
    start = time.monotonic()
    tally = Tally(store, "SIGKILL")
    usual = undisturbed(inputs, f"{root}/undisturbed", folder / "undisturbed")
    lane = Lane(inputs, root, folder, usual, tally)
    rng = random.Random(f"{options.seed} {store}")  # noqa: S311  (no secret)
    wanted = options.kills // 2
    for number in range(10 * wanted):
        if tally.struck >= wanted:
            break
        # To run to its end takes longer than to be killed, so the short form does that once.
        kills = wanted if options.short else rng.randint(1, 3)
        run_trial(lane, number, min(kills, wanted - tally.struck), rng)
        if len(tally.problems) > 20:
            break  # it is broken, and each trial takes its time
    if tally.struck < wanted or not (tally.saved or options.short):
        tally.problems.append(f"{store}: {tally.struck} kills, {tally.saved} embeddings recalled")
    tally.seconds = time.monotonic() - start
    return tally


def table(tallies: list[Tally], options: argparse.Namespace) -> str:
    """Write the outcome as Markdown."""
    today = datetime.datetime.now(datetime.UTC).date()
    columns = [
        "jobs killed", *(f"in {moment}" for moment in MOMENTS), "jobs finished: published",
        "unchanged", "versions seen", "watcher: polls", "wrong versions", "other digests",
        "embeddings saved before", "embedded again", "half shards left", "problems", "seconds",
    ]  # fmt: skip
    rows = [
        [t.struck, *(t.moments[moment] for moment in MOMENTS), t.published, t.unchanged,
         t.versions, t.polls, t.wrong, t.others, t.saved, t.twice, t.halves, len(t.problems),
         round(t.seconds)]
        for t in tallies
    ]  # fmt: skip
    # On its side: a line for each figure, a column for each store.
    lines = [f"| | {' | '.join(t.store for t in tallies)} |", f"|---|{'--:|' * len(tallies)}"]
    lines += [
        f"| {column} | {' | '.join(str(row[place]) for row in rows)} |"
        for place, column in enumerate(columns)
    ]
    return "\n".join([f"{options.kills} kills, seed {options.seed}, {today}.", "", *lines])


def main() -> int:
    """Run both stores side by side; gives the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="4 kills a store")
    parser.add_argument("--kills", type=int, default=300, help="of both stores together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES)
    options = parser.parse_args()
    options.kills = 8 if options.short else options.kills
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary, ThreadPoolExecutor(2) as lanes:
        folder = Path(temporary)
        for name in ("local", "gcs", "server"):
            (folder / name).mkdir()
        inputs = write_inputs(folder)
        with fake_gcs_server(folder / "server"):
            bucket = f"gs://{new_bucket()}"
            uploaded = Inputs(upload(Path(inputs.data), bucket), inputs.backbone)
            places = [
                (STORES[0], str(folder / "local/models"), inputs, folder / "local"),
                (STORES[1], f"{bucket}/models", uploaded, folder / "gcs"),
            ]
            asked = [place for place in places if place[0] in options.stores]
            tallies = list(lanes.map(lambda place: run(*place, options), asked))
    sys.stdout.write(table(tallies, options) + "\n")
    problems = [problem for tally in tallies for problem in tally.problems]
    sys.stderr.writelines(f"- {problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
