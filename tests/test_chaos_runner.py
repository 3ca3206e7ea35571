"""What `make chaos` writes down is what the scripts found."""

from __future__ import annotations

import dataclasses

import chaos
from chaos import Outcome, Part, document, fuzzing, joined, machine, run


def test_a_part_that_fails_is_told() -> None:
    """The exit code of a script decides, and the document says how many parts failed."""
    good, bad = Part("Help", "It helps.", "watcher.py", ("--help",)), Part("B", "", "watcher.py")
    outcomes = [run(good, short=False), run(bad, short=True)]  # it has no option --short
    assert [outcome.passed for outcome in outcomes] == [True, False]
    text = document(outcomes)
    assert "**1 of 2 parts failed**" in text
    assert "## Help\n\nIt helps.\n\nusage: watcher.py" in text
    assert machine() in text
    assert "nothing was wrong" in document(outcomes[:1])


def test_what_a_fuzzer_says_becomes_a_table() -> None:
    """A real run's last line is read; one that found something says so."""
    part = dataclasses.replace(next(fuzzing(["channels"])), short=("channels", "--runs", "50"))
    outcome = run(part, short=True)
    assert outcome.passed
    name, inputs, covered, kept = outcome.table.splitlines()[2].strip("| ").split(" | ")
    assert (name, inputs) == ("channels", "50")
    assert int(covered) > 10
    assert int(kept) > 0
    assert "found something" in chaos.fuzz_table("channels", "==1== ERROR: libFuzzer: exited")


def test_the_tables_of_a_fuzzer_become_one() -> None:
    """Each target is a part of its own with a share of the time; their rows share a header."""
    parts = list(fuzzing(["shards", "channels"]))
    share = str(chaos.FUZZ_SECONDS // 2)
    assert [part.long for part in parts] == [
        ("shards", "--seconds", share), ("channels", "--seconds", share),
    ]  # fmt: skip
    header = "| target | executions |\n|---|--:|\n"
    tables = [f"{header}| {part.long[0]} | 9 |" for part in parts]
    assert joined(tables) == f"{header}| shards | 9 |\n| channels | 9 |"
    text = document([Outcome(part, t, True, 60.0) for part, t in zip(parts, tables, strict=True)])
    assert text.count("## Hostile bytes") == text.count("| target |") == 1
    assert "2 minutes" in text
