"""What a new version owes to the one in service."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_colours
from modules import write_pooling
from test_publish import make_bundle

from job.backbone import load_backbone
from job.config import RunConfig
from job.errors import PublishError
from job.export import Classifier, export
from job.gate import Comparison
from job.head import Head
from job.images import PREPROCESSING_VERSION, loader
from job.index import build_index
from job.manifest import inputs_digest
from job.publish import publish, read_listing
from job.service import (
    Answered,
    InService,
    arrange_labels,
    compare_with_service,
    read_in_service,
    unchanged_version,
)
from job.sources import folder_rows
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
        places: dict[str, Any] = {
            "data": (str(self.data.root),),
            "models": str(folder / "m"),
            "name": "x",
        }
        self.config = RunConfig(**places)

    def index(self) -> Any:
        """Index the data as it is now."""
        return build_index(folder_rows(self.data), 20, 20)

    def digest(self) -> str:
        """Give the digest that a run over the data as it is now would write."""
        index = self.index()
        sums = {e.name: crc32c(self.data.read(e.name)) for e in index.examples}
        return inputs_digest(self.config, index, sums, "backbone")

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
        version = unchanged_version(self.config, self.data, self.index(), serving, backbone, None)
        return version == serving.version


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


class Served:
    """A version in service on the pooling module, and a new model's answers to its test images."""

    def __init__(self, folder: Path) -> None:
        self.data = LocalStore(write_colours(folder / "data", 20))
        self.models = LocalStore(folder / "m")
        self.config = RunConfig(data=(self.data.uri,), models=str(folder / "m"), name="x")
        self.backbone = load_backbone(str(write_pooling(folder / "module")), cache_dir=folder)
        self.index = build_index(folder_rows(self.data), 20, 20)
        decode = loader(self.backbone.image_size)
        images = [decode(self.data.read(e.name)) for e in self.index.examples]
        self.features = self.backbone.embed(np.stack(images)).numpy()
        # Right about two colours, and blind to the third.
        classes = np.array([example.class_index for example in self.index.examples])
        means = [self.features[classes == c].mean(axis=0) for c in range(3)]
        kernel = (np.stack(means) - self.features.mean(axis=0)).T.astype(np.float32)
        head = Head(kernel, np.array([0, 0, -100], np.float32))
        self.version = self.models.root / "7"
        export(Classifier(self.backbone, head, self.index.labels), self.version)
        self.guesses = head.logits(self.features).argmax(axis=1)
        self.manifest = {
            "labels": list(self.index.labels),
            "configuration": self.config.as_json(),
            "inputs": {
                "digest": "",
                "backbone": {"digest": self.backbone.digest},
                "preprocessing": PREPROCESSING_VERSION,
            },
        }

    def compare(self) -> Comparison | None:
        """Compare with a new model that is always right."""
        (self.version / "manifest.json").write_text(json.dumps(self.manifest))
        serving = read_in_service(self.models, read_listing(self.models))
        right = np.ones(len(self.features), bool)
        tested = Answered(self.index.examples, self.backbone.digest, self.features, right)
        return compare_with_service(
            self.config, self.data, self.models, serving, self.index.labels, tested
        )


def test_a_version_on_the_same_backbone_is_asked_by_its_head(tmp_path: Path) -> None:
    """Its answers are those of its head to the embeddings; neither model nor image is read."""
    served = Served(tmp_path)
    by_model = served.compare()
    (served.version / "saved_model.pb").write_bytes(b"")  # a version all the same
    shutil.rmtree(served.data.root)
    by_head = served.compare()
    assert by_head is not None
    assert by_head == by_model
    truth = np.array([example.class_index for example in served.index.examples])
    wrong = [served.index.examples[row].name for row in np.flatnonzero(served.guesses != truth)]
    assert list(by_head.fixed) == wrong
    assert len(wrong) == 20


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["inputs"]["backbone"].update(digest="another"),
        lambda manifest: manifest["inputs"].update(preprocessing="another"),
        lambda manifest: manifest["inputs"].pop("preprocessing"),
        lambda manifest: manifest["configuration"].update(image_size=64),
        lambda manifest: manifest["configuration"].update(exact_decode=True),
    ],
    ids=["backbone", "preprocessing", "older", "size", "decoding"],
)
def test_a_version_that_sees_otherwise_is_asked_itself(change: Any, tmp_path: Path) -> None:
    """Embeddings that are not its own say nothing of it: the model is loaded and answers."""
    served = Served(tmp_path)
    served.features[:] = -served.features  # its head would be wrong about all of them
    change(served.manifest)
    compared = served.compare()
    assert compared is not None
    truth = np.array([example.class_index for example in served.index.examples])
    assert compared.accuracy_before == (served.guesses == truth).mean()


def test_a_version_without_a_readable_head_is_asked_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged checkpoint is no answer; the model cannot be loaded then, which is logged."""
    served = Served(tmp_path)
    weights = served.version / "variables/variables.data-00000-of-00001"
    contents = bytearray(weights.read_bytes())
    contents[40] ^= 1  # the kernel's
    weights.write_bytes(contents)
    with caplog.at_level("WARNING", logger="regraft"):
        assert served.compare() is None
    assert "no comparison with version 7" in caplog.text
