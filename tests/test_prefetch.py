"""Backbones that come with the image: real servers, real modules, and nobody to ask at run time."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from job import baked
from job.backbone import load_backbone, module_folder, resolve
from job.cli import cli
from job.errors import ConfigError, UnavailableError
from job.prefetch import prefetch
from tests.modules import POOLING_SIZE, pack, write_pooling

BUILTIN = "builtin:efficientnet-lite0"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The image's folder and two handles; the server they came from is gone. Read only."""
    root = tmp_path_factory.mktemp("image")
    pack(write_pooling(root / "fixed"), root / "fixed.tar.gz")
    pack(write_pooling(root / "any", size=None), root / "any.tar.gz")
    handler = partial(SimpleHTTPRequestHandler, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site = f"http://127.0.0.1:{server.server_port}"
        handles = f"{site}/fixed.tar.gz", f"{site}/any.tar.gz"
        folder = root / "app/backbones"
        prefetch([BUILTIN, *handles], folder)
        server.shutdown()
    return folder, *handles


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Give name, size and time of change of all that is in a folder."""
    found = {str(path): path.stat() for path in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def test_a_run_finds_what_the_image_has(
    image: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built-in and fetched ones are used as they lie there: nothing is built, asked, written."""
    folder, fixed, _ = image
    with pytest.raises(UnavailableError):
        resolve(fixed, cache_dir=tmp_path / "without")
    before = contents(folder)
    monkeypatch.setattr(baked, "FOLDER", folder)
    pixels = np.linspace(0, 1, POOLING_SIZE**2 * 3, dtype=np.float32)
    images = pixels.reshape(1, POOLING_SIZE, POOLING_SIZE, 3)
    for handle, size in ((BUILTIN, 224), (fixed, POOLING_SIZE)):
        found = load_backbone(handle, cache_dir=tmp_path / "work")
        assert found.image_size == (size, size)
        module = module_folder(resolve(handle, cache_dir=tmp_path / "work"), tmp_path / "work")
        assert module.is_relative_to(folder)
    assert not (tmp_path / "work").exists()
    assert contents(folder) == before

    monkeypatch.undo()
    own = load_backbone(str(folder.parent.parent / "fixed"), cache_dir=tmp_path / "own")
    assert own.digest == found.digest
    np.testing.assert_array_equal(found.embed(images), own.embed(images))


def test_a_module_of_any_size_is_compiled_for_the_one_that_a_run_asks_for(
    image: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefetched without its graph, it still needs no network, and --image-size as ever."""
    folder, _, handle = image
    monkeypatch.setattr(baked, "FOLDER", folder)
    assert load_backbone(handle, cache_dir=tmp_path, image_size=64).image_size == (64, 64)
    with pytest.raises(ConfigError, match="it takes images of any size and names none"):
        load_backbone(handle, cache_dir=tmp_path)


def test_a_changed_module_is_refused(
    image: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has another digest than it was recorded with is told of, with what to do."""
    folder, handle, _ = image
    record = json.loads((folder / baked.RECORD).read_text())
    entry = record[handle] | {"folder": str(folder / record[handle]["folder"]), "digest": "0" * 64}
    (tmp_path / baked.RECORD).write_text(json.dumps({handle: entry}))
    monkeypatch.setattr(baked, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=f"has the digest [0-9a-f]+, expected {'0' * 64}") as info:
        resolve(handle, cache_dir=tmp_path)
    assert "build the image again" in info.value.hint


@pytest.mark.parametrize(
    ("handle", "found"),
    [
        ("gs://bucket/module", "backbone gs://bucket/module cannot be prefetched"),
        ("/modules/flowers", "backbone /modules/flowers cannot be prefetched"),
        ("builtin:resnet", "no such network is built in"),
    ],
)
def test_what_a_build_cannot_fetch_is_refused(handle: str, found: str, tmp_path: Path) -> None:
    """The build of an image ends at a handle that it cannot bring along, and leaves no record."""
    done = CliRunner().invoke(cli, ["backbone", "prefetch", str(tmp_path), handle])
    assert isinstance(done.exception, ConfigError)
    assert found in done.exception.message
    assert not (tmp_path / baked.RECORD).exists()
