"""What a new version owes to the one in service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_colours
from test_publish import make_bundle

from job.config import RunConfig
from job.dataset import build_index
from job.errors import PublishError
from job.manifest import inputs_digest
from job.publish import publish, read_listing
from job.service import InService, arrange_labels, is_unchanged, read_in_service
from job.storage import LocalStore, crc32c
from job.versions import promote, rollback

SERVING = InService(7, ("cat", "ant"), "digest", {})


def test_labels_in_service_keep_their_indices() -> None:
    """New labels follow, whatever their names; without a version they are sorted as found."""
    found = ("aardvark", "ant", "cat")
    assert arrange_labels(found, SERVING, allow_change=False) == ("cat", "ant", "aardvark")
    assert arrange_labels(found, SERVING, allow_change=True) == found
    assert arrange_labels(found, None, allow_change=False) == found


def test_a_label_that_is_gone_is_refused() -> None:
    """The message names it and the version, the hint the way to mean it."""
    with pytest.raises(PublishError, match=r"7.*'cat'") as caught:
        arrange_labels(("ant", "bee"), SERVING, allow_change=False)
    assert "--allow-label-change" in caught.value.hint
    assert arrange_labels(("ant", "bee"), SERVING, allow_change=True) == ("ant", "bee")


class Story:
    """A data set, and versions published from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = LocalStore(write_colours(folder / "data", 30))
        self.models = LocalStore(folder / "m")
        self.models.root.mkdir()
        places = {"data": str(self.data.root), "models": str(folder / "m"), "name": "x"}
        self.config = RunConfig(**places)

    def index(self) -> Any:
        """Index the data as it is now."""
        return build_index(self.data, 20, 20)

    def digest(self) -> str:
        """Give the digest that a run over the data as it is now would write."""
        index = self.index()
        sums = {e.name: crc32c(self.data.read(e.name)) for e in index.examples}
        return inputs_digest(self.config, index.labels, sums, "backbone")

    def publish(self) -> int:
        """Publish a bundle whose manifest says that it comes from the data as it is now."""
        bundle = make_bundle(self.folder / f"bundle{self.digest()}")
        manifest = {"inputs": {"digest": self.digest()}}
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        return publish(bundle, self.models)

    def unchanged(self, backbone: str = "backbone") -> bool:
        """Ask whether a run would be in vain."""
        serving = read_in_service(self.models, read_listing(self.models))
        assert serving is not None
        return is_unchanged(self.config, self.data, self.index(), serving, backbone)


def test_inputs_are_compared_byte_by_byte(tmp_path: Path) -> None:
    """The same files are unchanged; one other byte, one file less or another backbone are not."""
    story = Story(tmp_path)
    story.publish()
    assert story.unchanged()
    assert not story.unchanged(backbone="another")
    image = story.data.root / "cyan" / "003.jpg"
    contents = image.read_bytes()
    image.write_bytes(contents + b" ")
    assert not story.unchanged()
    image.write_bytes(contents)
    assert story.unchanged()
    image.unlink()
    assert not story.unchanged()


def test_what_a_person_rolled_back_is_not_published_again(tmp_path: Path) -> None:
    """A nightly run must not undo a rollback; new data, or a promotion, lets it go on."""
    story = Story(tmp_path)
    story.publish()
    image = story.data.root / "cyan" / "003.jpg"
    image.write_bytes(image.read_bytes() + b" ")
    second = story.publish()
    rollback(story.models)
    assert story.unchanged()
    image.write_bytes(image.read_bytes() + b" ")
    assert not story.unchanged()
    promote(story.models, second)
    serving = read_in_service(story.models, read_listing(story.models))
    assert serving is not None
    assert serving.version == second
    assert serving.rolled_back == {}


def test_a_version_of_another_tool_has_no_inputs(tmp_path: Path) -> None:
    """Without a manifest of ours nothing counts as unchanged, and the labels are read if there."""
    models = LocalStore(tmp_path)
    assert read_in_service(models, read_listing(models)) is None
    models.write("5/saved_model.pb", b"")
    models.write("5/manifest.json", b"not JSON")
    models.write("5/labels.txt", b"a\nb\n")
    assert read_in_service(models, read_listing(models)) == InService(5, ("a", "b"), "", {})
