"""Runs the scenarios on a real Kubernetes and writes docs/cluster.md: `tests/cluster/run.sh`.

Exit code 1 when a scenario did not end as it should, or when anything was left on the machine.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence

from tests.cluster.lab import ROOT, Lab, Wrong
from tests.cluster.leftovers import remains, remove
from tests.cluster.report import DOCUMENT, Outcome, document, table
from tests.cluster.scenarios import SCENARIOS, Scenario
from tests.cluster.servers import Cluster, cluster
from tests.gcs_server import fake_gcs_server

FOLDER = ROOT / "build/cluster"


def import_images(there: Cluster) -> None:
    """Give containerd the images of image.sh, unless it has them."""
    there.ctr("images", "import", str(FOLDER / "pause.tar"))
    mark, wanted = FOLDER / "containerd/imported.id", (FOLDER / "image.id").read_text()
    if not mark.exists() or mark.read_text() != wanted:
        archive = FOLDER / "regraft.tar"
        there.ctr("images", "import", str(archive))
        mark.write_text(wanted)
        archive.unlink()


def play(lab: Lab, scenario: Scenario) -> Outcome:
    """Run a scenario and note what came of it."""
    name, asked = scenario.__name__.replace("_", " "), scenario.__doc__ or ""
    lab.record.clear()
    sys.stderr.write(f"\n--- {name}: {asked}\n")
    start = time.monotonic()
    try:
        seen, passed = scenario(lab), True
    except Wrong as wrong:
        seen, passed = f"**{wrong}**", False
    seconds = time.monotonic() - start
    sys.stderr.write(f"{'passed' if passed else 'FAILED'} in {seconds:.0f} s: {seen}\n")
    return Outcome(name, asked, seen, passed, seconds, tuple(lab.record))


def play_all(scenarios: Sequence[Scenario]) -> list[Outcome]:
    """Start a cluster and run scenarios on it, one after the other."""
    with cluster(FOLDER) as there:
        # Below the run's folder: a server that outlives a killed run is found by that name.
        store = there.run / "store"
        store.mkdir()
        with fake_gcs_server(store) as gcs:
            import_images(there)
            lab = Lab(there, gcs, store)
            return [play(lab, scenario) for scenario in scenarios]


def main() -> int:
    """Run what is asked for; gives the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    # A shell ignores it for what it runs in the background, and what is started here would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names = sys.argv[1:]
    known = {scenario.__name__: scenario for scenario in SCENARIOS}
    if unknown := set(names) - known.keys():
        sys.stderr.write(f"no scenario: {', '.join(unknown)}; there are {', '.join(known)}\n")
        return 2
    remove(FOLDER / "run")
    others, start = remains(FOLDER / "run"), time.monotonic()
    outcomes = play_all([known[name] for name in names] or SCENARIOS)
    left = [one for one in remains(FOLDER / "run") if one not in others]
    sys.stdout.write(f"{table(outcomes)}\nleft on the machine: {', '.join(left) or 'nothing'}\n")
    if not names:
        DOCUMENT.write_text(document(outcomes, left, time.monotonic() - start), "utf-8")
    return 0 if all(outcome.passed for outcome in outcomes) and not left else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
