"""Names of labels become lines of labels.txt."""

from __future__ import annotations

from job.labels import label_line


def test_a_label_is_one_line() -> None:
    """White space and control characters in a folder's name cannot break labels.txt."""
    assert label_line(" two\nlines\t here ") == "two lines here"
