"""A graph that was written on the way is the one that an export would write, and no version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from modules import write_pooling

from job.backbone import load_backbone
from job.export import Classifier, export
from job.head import Head
from job.intermediate import write_intermediate
from job.publish import clean, publish, read_listing
from job.storage import Store, open_store

LABELS = ("cyan", "magenta", "yellow")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A classifier with a random head on the pooling module."""
    folder = tmp_path_factory.mktemp("intermediate")
    backbone = load_backbone(str(write_pooling(folder / "module")), cache_dir=folder / "cache")
    kernel = np.random.default_rng(0).normal(size=(backbone.feature_dim, 3)).astype(np.float32)
    return Classifier(backbone, Head(kernel, np.zeros(3, np.float32)), LABELS)


@pytest.fixture(params=["local", "gcs"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A model's store of each kind."""
    if request.param == "gcs":
        return open_store(f"gs://{request.getfixturevalue('bucket')}/models/squares")
    (tmp_path / "models" / "squares").mkdir(parents=True)
    return open_store(str(tmp_path / "models" / "squares"))


def test_it_is_the_graph_of_an_export(
    classifier: Classifier, models: Store, tmp_path: Path
) -> None:
    """Byte by byte, below the store under the names of the run and the step."""
    uri = write_intermediate(models, "1795421320-ab12cd", 200, classifier)
    assert uri == f"{models.uri}/.intermediate/1795421320-ab12cd/200.pb"
    export(classifier, tmp_path / "bundle")
    written = models.read(".intermediate/1795421320-ab12cd/200.pb")
    assert written == (tmp_path / "bundle" / "frozen_graph.pb").read_bytes()


def test_a_resumed_run_writes_its_step_again(classifier: Classifier, models: Store) -> None:
    """The later graph of one step is the one that stays."""
    write_intermediate(models, "run", 200, classifier)
    before = models.read(".intermediate/run/200.pb")
    moved = Head(classifier.head.kernel + 1, classifier.head.bias)
    write_intermediate(models, "run", 200, Classifier(classifier.backbone, moved, LABELS))
    assert [entry.name for entry in models.list(".intermediate/")] == [".intermediate/run/200.pb"]
    assert models.read(".intermediate/run/200.pb") != before


def test_it_is_no_version(classifier: Classifier, models: Store, tmp_path: Path) -> None:
    """Listing and publishing do not take it for one, and tidying up does not take it away."""
    write_intermediate(models, "1795421320", 200, classifier)
    listing = read_listing(models)
    assert listing.newest == 0
    assert (listing.versions, listing.partial, listing.withdrawn, listing.claims) == ((),) * 4
    assert clean(models, stale_after=-1.0) == []
    export(classifier, tmp_path / "bundle")
    version = publish(tmp_path / "bundle", models)
    assert read_listing(models).versions == (version,)
    assert models.read(".intermediate/1795421320/200.pb")
