"""The README says what is there."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

from conftest import ROOT

from job.config import RunConfig

README = (ROOT / "README.md").read_text()


def test_the_table_of_options_is_that_of_the_code() -> None:
    """Each option has its row, with its default and its help, in the order of --help."""
    rows = re.findall(r"^\| `--([a-z0-9-]+)` \| (.*?) \| (.*?) \|$", README, re.M)
    assert rows == [
        (
            spec.name.replace("_", "-"),
            "required" if spec.default is MISSING else f"{spec.default or ''}",
            spec.metadata["help"],
        )
        for spec in sorted(fields(RunConfig), key=lambda spec: spec.default is not MISSING)
    ]


def test_links_and_commands_lead_somewhere() -> None:
    """Relative links exist, and so does every `make` target that is named."""
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`|^    make ([a-z-]+)", README, re.M):
        assert re.search(rf"^{''.join(target)}:", makefile, re.M), target
