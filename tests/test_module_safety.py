"""Modules, archives and weights from strangers: what they would do beyond computing is refused."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import os
import pickle
import re
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.client import pywrap_tf_session

from job import archives
from job.backbone import load_backbone
from job.backbones import torch_weights
from job.backbones.torch_weights import read_state_dict
from job.errors import ConfigError
from job.modules import fetch_module, load_module
from job.vetting import _Program, vet_module
from tests.modules import pack, pooled, write_pooling, write_pooling_tf1

Reach = Callable[[Path], Any]  # builds operations that leave a trace in a folder


def write(folder: Path) -> Any:
    """Write a file."""
    return tf.raw_ops.WriteFile(filename=str(folder / "trace"), contents="x")


def save(folder: Path) -> Any:
    """Write a checkpoint, as the saver does, from somewhere else."""
    where = str(folder / "trace")
    return tf.raw_ops.SaveV2(
        prefix=where, tensor_names=["a"], shape_and_slices=[""], tensors=[tf.ones([1])]
    )


def restore(folder: Path) -> Any:
    """Read a checkpoint."""
    return tf.raw_ops.RestoreV2(
        prefix=str(folder / "x"), tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32]
    )


def read(folder: Path) -> Any:
    """Read a file."""
    return tf.io.read_file(str(folder / "secret"))


def match(folder: Path) -> Any:
    """List a folder."""
    return tf.io.matching_files(f"{folder}/*")


def python(folder: Path) -> Any:
    """Run Python."""
    return tf.py_function(lambda: (folder / "trace").write_text("x"), [], tf.int32)


def print_to_file(folder: Path) -> Any:
    """Print to a file."""
    return tf.print("x", output_stream=f"file://{folder}/trace")


def read_lines(folder: Path) -> Any:
    """Read a file through a data set."""
    data = tf.data.TextLineDataset(str(folder / "secret"))
    return data.reduce(tf.constant(""), lambda old, new: new)


def descriptor(folder: Path) -> Any:
    """Read a file whose path is an attribute."""
    return tf.io.decode_proto(b"", "M", ["a"], [tf.int32], str(folder / "secret")).values[0]


def in_a_branch(folder: Path) -> Any:
    """Write a file from a function that a function calls."""
    return tf.cond(tf.random.uniform([]) >= 0, lambda: _then(write(folder)), lambda: tf.ones([]))


def _then(operation: Any) -> tf.Tensor:
    with tf.control_dependencies([operation]):
        return tf.ones([])


REACHES: dict[str, Reach] = {
    "WriteFile": write, "SaveV2": save, "RestoreV2": restore, "ReadFile": read,
    "MatchingFiles": match, "EagerPyFunc": python, "PrintV2": print_to_file,
    "(TextLine|TensorSlice)Dataset": read_lines, "DecodeProtoV2": descriptor,
}  # fmt: skip


def write_reaching(folder: Path, reach: Reach, trace: Path) -> Path:
    """Write the pooling module in TF2 format, which reaches out when it is called."""

    def features(value: tf.Tensor) -> tf.Tensor:
        operation = reach(trace)
        with tf.control_dependencies([operation] if operation is not None else []):
            return tf.identity(value)

    return write_pooling(folder, shape_output=features)


class Starter(tf.saved_model.experimental.TrackableResource):
    """Writes a file when it is initialised, which is when the module is loaded."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.resource_handle  # noqa: B018 - makes the resource

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64)

    def _initialize(self) -> None:
        write(self.folder)


def write_starting(folder: Path, trace: Path) -> Path:
    """Write the pooling module in TF2 format, which writes a file as it is loaded."""
    from tests.modules import CallablePooling

    module = CallablePooling()
    module.starter = Starter(trace)
    tf.saved_model.save(module, str(folder))
    return folder


def write_tf1(folder: Path, trace: Path, *, at_load: bool) -> Path:
    """Write the pooling module in TF1 Hub format, which writes a file when loaded or called."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, [None, 32, 32, 3], "images")
        operation = write(trace)
        with tf.control_dependencies([] if at_load else [operation]):
            features = pooled(images) * tf.compat.v1.get_variable("one", initializer=1.0)
        signature = tf.compat.v1.saved_model.predict_signature_def(
            {"images": images}, {"default": features}
        )
        session.run(tf.compat.v1.global_variables_initializer())
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session, [], {"default": signature}, main_op=operation if at_load else None
        )
        builder.save()
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return folder


def assert_refused(module: Path, operation: str, trace: Path) -> None:
    """Check that a module is refused for an operation, and that nothing of it has run."""
    for name in ("trace", "trace.index"):
        (trace / name).unlink(missing_ok=True)  # tracing and saving may have left it
    with pytest.raises(ConfigError, match=rf"{module}.*operation {operation} \(") as caught:
        load_backbone(str(module), cache_dir=trace / "cache")
    assert caught.value.hint
    assert list(trace.glob("trace*")) == []


# --- modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", REACHES)
def test_a_module_that_reaches_out_is_refused(operation: str, tmp_path: Path) -> None:
    """Files, Python and data sets in a module's call are refused by the name of the operation."""
    (tmp_path / "secret").write_text("secret")
    module = write_reaching(tmp_path / "module", REACHES[operation], tmp_path)
    assert_refused(module, operation, tmp_path)


def test_what_is_refused_would_have_happened(tmp_path: Path) -> None:
    """TensorFlow itself writes the file: at a call, and with an initialiser at once."""
    called = tf.saved_model.load(str(write_reaching(tmp_path / "call", write, tmp_path)))
    (tmp_path / "trace").unlink(missing_ok=True)
    called(tf.zeros([1, 32, 32, 3]))
    assert (tmp_path / "trace").exists()
    starting = write_starting(tmp_path / "start", tmp_path)
    for module in (starting, write_tf1(tmp_path / "tf1", tmp_path, at_load=True)):
        (tmp_path / "trace").unlink(missing_ok=True)
        tf.saved_model.load(str(module))
        assert (tmp_path / "trace").exists()


def test_a_module_that_reaches_out_as_it_is_loaded_is_refused(tmp_path: Path) -> None:
    """An initialiser's operations count, in both formats."""
    assert_refused(write_starting(tmp_path / "tf2", tmp_path), "WriteFile", tmp_path)
    assert_refused(write_tf1(tmp_path / "tf1", tmp_path, at_load=True), "WriteFile", tmp_path)


def test_a_tf1_module_and_nested_functions_are_read_too(tmp_path: Path) -> None:
    """The main graph of a TF1 module counts, and a function that a function calls."""
    assert_refused(write_tf1(tmp_path / "tf1", tmp_path, at_load=False), "WriteFile", tmp_path)
    nested = write_reaching(tmp_path / "nested", in_a_branch, tmp_path)
    assert_refused(nested, "WriteFile", tmp_path)


def test_an_operation_that_tensorflow_does_not_know_is_refused(tmp_path: Path) -> None:
    """A custom operation is refused by name; so is a saver's that something else runs too."""
    module = write_pooling_tf1(tmp_path / "module")
    original = saved_model_pb2.SavedModel.FromString((module / "saved_model.pb").read_bytes())
    graph = original.meta_graphs[0].graph_def
    (mean,) = (node for node in graph.node if node.op == "Mean")
    mean.op = "CustomMean"
    (module / "saved_model.pb").write_bytes(original.SerializeToString())
    with pytest.raises(ConfigError, match="CustomMean"):
        load_module(module)
    mean.op = "Mean"
    (module / "saved_model.pb").write_bytes(original.SerializeToString())
    load_module(module)
    (saver,) = (node for node in graph.node if node.op == "SaveV2")
    mean.input.append(f"^{saver.name}")
    (module / "saved_model.pb").write_bytes(original.SerializeToString())
    with pytest.raises(ConfigError, match="SaveV2"):
        load_module(module)


def test_a_text_module_is_refused(tmp_path: Path) -> None:
    """saved_model.pbtxt alone is not taken, so it cannot pass by what reads saved_model.pb."""
    module = write_pooling(tmp_path / "module")
    saved = saved_model_pb2.SavedModel.FromString((module / "saved_model.pb").read_bytes())
    (module / "saved_model.pbtxt").write_text(str(saved))
    (module / "saved_model.pb").unlink()
    with pytest.raises(ConfigError, match=r"saved_model\.pb"):
        load_backbone(str(module), cache_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"saved_model\.pb"):
        load_module(module)


def test_modules_as_keras_writes_them_pass(tmp_path: Path) -> None:
    """A network with augmentation, dropout, an optimizer and its saver is not refused."""
    import tf_keras

    images = tf_keras.Input((16, 16, 3))
    x = tf_keras.layers.RandomRotation(0.1)(tf_keras.layers.RandomFlip()(images))
    x = tf_keras.layers.BatchNormalization()(tf_keras.layers.Conv2D(4, 3)(x))
    x = tf_keras.layers.Dropout(0.1)(tf_keras.layers.GlobalAveragePooling2D()(x))
    model = tf_keras.Model(images, x)
    model.compile("adam", "mse")
    model.fit(tf.zeros([2, 16, 16, 3]), tf.zeros([2, 4]), verbose=0)
    model.save(str(tmp_path / "keras"), save_format="tf")
    vet_module(tmp_path / "keras")


def test_no_operation_with_a_path_or_an_address_passes() -> None:
    """Of all that this TensorFlow registers, none that takes a file, a path or an address does."""
    operations = op_def_pb2.OpList.FromString(
        pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    )
    telling = re.compile(r"file|path|address|url|directory|descriptor_source|memory_region|token$")
    program = _Program(meta_graph_pb2.MetaGraphDef())
    reaching = {
        operation.name
        for operation in operations.op
        for argument in (*operation.input_arg, *operation.attr)
        if telling.search(argument.name) and not operation.name.startswith("TensorScatter")
    }
    assert len(reaching) > 50
    # What it calls paths are those of a search tree.
    assert {name for name in reaching if program._computes(name)} == {"CTCBeamSearchDecoder"}
    assert program._computes("MatMul")


# --- archives -------------------------------------------------------------------------------------


@dataclass
class Site:
    """What a web server answers with, and the paths and logins that it was asked with."""

    url: str = ""
    body: bytes = b""
    elsewhere: str = ""  # where /moved leads
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def site() -> Iterator[Site]:
    """A live web server with one body at every path."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append((self.path, self.headers["Authorization"]))
            moved = self.path.startswith("/moved")
            self.send_response(302 if moved else 200)
            if moved:
                self.send_header("Location", site.elsewhere)
            self.send_header("Content-Length", str(0 if moved else len(site.body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the other side may have had enough
                self.wfile.write(b"" if moved else site.body)

        def log_message(self, *_: Any) -> None:
            """Keep the test's output to itself."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}"
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_hub_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TFHUB_CACHE_DIR", raising=False)


def archived(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Give a tar.gz of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """Give an archive member."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def sparse(size: int) -> bytes:
    """Give a small tar.gz with one file that is a single hole of `size` bytes."""
    info = named("GNUSparseFile.0/hole")
    info.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "hole",
        "GNU.sparse.realsize": str(size),
    }  # fmt: skip
    return archived((info, b"1\n%d\n0\n".ljust(512, b"\0") % size))


def both_ways(site: Site, body: bytes, tmp_path: Path) -> list[str]:
    """Give the handles of an archive as a file and from the web."""
    site.body = body
    (tmp_path / "module.tar.gz").write_bytes(body)
    return [str(tmp_path / "module.tar.gz"), f"{site.url}/module.tar.gz", f"{site.url}/module/1"]


@pytest.mark.parametrize(
    "info",
    [
        named("../escaped"),
        named("a/../../escaped"),
        named("link", tarfile.SYMTYPE, "/etc"),
        named("link", tarfile.LNKTYPE, "../escaped"),
        named("device", tarfile.CHRTYPE),
        named("saved_model.pb/escaped"),
        named("."),
    ],
    ids=lambda info: f"{info.name}-{info.linkname}",
)
def test_archive_cannot_escape_whichever_way_it_comes(
    info: tarfile.TarInfo, site: Site, tmp_path: Path
) -> None:
    """Ways out of the folder, links, devices and clashing names are refused and leave nothing."""
    body = archived((named("saved_model.pb"), b""), (info, b""))
    for handle in both_ways(site, body, tmp_path):
        with pytest.raises(ConfigError, match="safe"):
            fetch_module(handle, tmp_path / "cache")
    assert list(tmp_path.rglob("escaped")) == []
    assert [p for p in (tmp_path / "cache").rglob("*") if p.name not in ("modules", "hub")] == []


def test_archive_with_absolute_names_stays_inside(site: Site, tmp_path: Path) -> None:
    """An absolute name is taken as one below the module's folder."""
    body = archived((named("saved_model.pb"), b""), (named(f"{tmp_path}/escaped"), b"x"))
    for handle in both_ways(site, body, tmp_path):
        folder = fetch_module(handle, tmp_path / "cache")
        assert [path.read_bytes() for path in folder.rglob("escaped")] == [b"x"]
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("kind", ["zeros", "zeros after the end", "hole", "many", "long"])
def test_archive_that_would_fill_the_disk_is_stopped(
    kind: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small archive that unpacks to more than the bound is refused, whatever its trick is."""
    limit = 2**22
    if kind == "hole":
        body = sparse(50 * 2**30)  # against the real bound
    else:
        monkeypatch.setattr(archives, "MAX_BYTES", limit)
        body = {
            "zeros": archived((named("zeros"), bytes(2 * limit))),
            "zeros after the end": gzip.compress(gzip.decompress(archived()) + bytes(2 * limit)),
            "many": archived(*[(named(str(i)), b"") for i in range(limit // 4096 + 1)]),
            "long": archived((named("saved_model.pb"), os.urandom(2 * limit))),
        }[kind]
    for handle in both_ways(site, body, tmp_path):
        with pytest.raises(ConfigError, match="GiB come out of it"):
            fetch_module(handle, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob(".partial*"))


def test_login_and_signature_of_a_url_are_used(site: Site, tmp_path: Path) -> None:
    """user:password@ becomes a header, not so after a redirect; a signed URL stays as it is."""
    site.body = pack(write_pooling(tmp_path / "module"), tmp_path / "m.tar.gz").read_bytes()
    site.elsewhere = f"http://localhost:{site.url.rpartition(':')[2]}/there"
    login = "Basic " + base64.b64encode(b"user:p@ss").decode()
    url = site.url.replace("//", "//user:p%40ss@")
    fetch_module(f"{url}/m.tar.gz?X-Goog-Signature=ab%2F", tmp_path / "cache")
    fetch_module(f"{url}/moved.tar.gz", tmp_path / "cache")
    assert site.asked == [
        ("/m.tar.gz?X-Goog-Signature=ab%2F", login),
        ("/moved.tar.gz", login),
        ("/there", None),
    ]


@pytest.mark.parametrize("url", ["http://[::1/m", "http://127.0.0.1:port/m", "http:///m"])
def test_a_url_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    """A misspelt URL is the configuration's fault, and named."""
    with pytest.raises(ConfigError, match=re.escape(url)):
        load_backbone(url, cache_dir=tmp_path)


# --- weights --------------------------------------------------------------------------------------


class Command:
    """Pickles as a call of os.system."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


class Persistent(pickle.Pickler):
    """Pickles every Path as a persistent id, what torch does with storages."""

    def persistent_id(self, obj: Any) -> Any:
        """Give the id of an object; None for one that is pickled as usual."""
        return obj.parts if isinstance(obj, Path) else None


def state_dict(*parts: Any) -> bytes:
    """Give the file of a legacy state dict, from its third pickle on."""
    buffer = io.BytesIO()
    for part in (torch_weights.MAGIC_NUMBER, torch_weights.PROTOCOL_VERSION, *parts):
        Persistent(buffer, 2).dump(part)
    return buffer.getvalue()


def test_weights_that_run_something_are_refused(tmp_path: Path) -> None:
    """Calls of anything, at any depth and in any of the pickles, are refused and do not run."""
    command = Command(tmp_path / "trace")
    assert command.__reduce__()[0] is os.system
    system = {"little_endian": True}
    for parts in (
        [command],
        [system, command],
        [system, OrderedDict(weight=[{"deep": (command,)}])],
        [system, OrderedDict(weight=pickle.dumps(command)), []],
        [system, {}, [command]],
        [system, OrderedDict(weight=Path("storage/x/0/cpu/1"))],
        [system, OrderedDict(weight=Path("module/os/system/cpu/1/view"))],
        [system, [1, 2], []],
        [[], {}],
        [system, OrderedDict(weight=OrderedDict), []],
    ):
        path = tmp_path / "weights.pth"
        path.write_bytes(state_dict(*parts))
        with pytest.raises(ConfigError, match="not a legacy torch state dict"):
            read_state_dict(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert not (tmp_path / "trace").exists()
    pickle.loads(pickle.dumps(command))  # noqa: S301 - it does run where nothing stops it
    assert (tmp_path / "trace").exists()
