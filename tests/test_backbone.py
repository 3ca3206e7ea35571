"""A handle becomes a Backbone: the built-in networks, the two module formats, sizes, exports."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
import tensorflow_hub as hub

from job.backbone import BUILTINS, Backbone, build_builtin, load_backbone, resolve
from job.backbones.efficientnet_lite import VARIANTS
from job.backbones.torch_weights import MAGIC_NUMBER, PROTOCOL_VERSION, read_state_dict
from job.compiled import file_name
from job.errors import ConfigError
from job.graphs import insert
from job.storage import LocalStore
from tests.modules import (
    POOLING_FEATURES,
    POOLING_GAIN,
    POOLING_SIZE,
    Pooling,
    pooled,
    write_lite0_tf1,
    write_pooling,
    write_pooling_signature,
    write_pooling_tf1,
)

Images = npt.NDArray[np.float32]
Write = Callable[[Path], Path]

FORMATS: dict[str, Write] = {
    "tf2": write_pooling,
    "tf2-serving_default": write_pooling_signature,
    "tf2-default": lambda folder: write_pooling_signature(folder, name="default"),
    "tf1": write_pooling_tf1,
}

# The ImageNet classifier's answer to `waves`, as class index and the logits of every 125th class.
# Recorded when all three networks called scikit-image's `chelsea` class 285 (Egyptian cat) and
# `coffee` class 967 (espresso), cropped to the centre square.
GOLDEN = {
    "efficientnet-lite0": (
        807,
        [0.13673, 0.81947, -2.13, -1.64744, -1.78272, -1.43172, -1.03447, -2.80966],
    ),
    "efficientnet-lite1": (
        783,
        [0.21139, 1.77534, -0.73146, -2.56284, -0.93045, -0.44825, -0.38616, -1.19637],
    ),
    "efficientnet-lite2": (
        584,
        [-0.11389, -0.10527, -0.64686, -3.42725, -2.23066, -1.72253, -0.09021, -1.44433],
    ),
}


def waves(size: int) -> Images:
    """Give one image of waves that differ by channel: float32 [1,size,size,3] in [0,1]."""
    y, x, channel = np.meshgrid(np.arange(size), np.arange(size), np.arange(3), indexing="ij")
    phase = (y * (channel + 1) + x * (3 - channel)) * (6.0 * np.pi / size)
    return (0.5 + 0.5 * np.sin(phase)).astype(np.float32)[np.newaxis]


def noise(count: int, size: int) -> Images:
    """Give `count` images of noise: float32 [count,size,size,3] in [0,1]."""
    return np.random.default_rng(7).random((count, size, size, 3), np.float32)


def signature(backbone: Backbone) -> Any:
    """Trace `embed` as an export does, for a batch of any size."""
    spec = tf.TensorSpec([None, *backbone.image_size, 3], tf.float32)
    return tf.function(backbone.embed, input_signature=[spec])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the file, so that each network is built once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def lite0(cache: Path) -> Backbone:
    """The default backbone."""
    return load_backbone("builtin:efficientnet-lite0", cache_dir=cache)


# --- the built-in networks ------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_builtin_networks_classify_as_recorded(name: str, cache: Path) -> None:
    """With the ImageNet layer of its weights file, a network gives the recorded logits."""
    backbone = load_backbone(f"builtin:{name}", cache_dir=cache)
    variant = VARIANTS[name]
    assert backbone.image_size == (variant.image_size, variant.image_size)
    assert backbone.feature_dim == 1280
    weights = variant.weights()
    features = backbone.embed(waves(variant.image_size))
    assert features.dtype == tf.float32
    logits = features.numpy()[0] @ weights["_fc.weight"].T + weights["_fc.bias"]
    winner, golden = GOLDEN[name]
    assert int(logits.argmax()) == winner
    np.testing.assert_allclose(logits[::125], golden, rtol=0, atol=1e-4)


def test_builtin_module_is_reusable_and_trainable(tmp_path: Path) -> None:
    """A built folder has the reusable SavedModel's parts, and all but statistics get gradients."""
    build_builtin("builtin:efficientnet-lite0", tmp_path / "module")
    module = hub.load(str(tmp_path / "module"))
    images = tf.constant(noise(1, 224))
    before = [variable.numpy() for variable in module.variables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(module(images, training=True) ** 2)
    gradients = tape.gradient(loss, list(module.trainable_variables))
    assert len(module.variables) == 5 * 49
    assert len(module.trainable_variables) == 3 * 49
    assert all(gradient is not None and np.any(gradient) for gradient in gradients)
    assert list(module.regularization_losses) == []
    # For a single image oneDNN rounds in one of two ways, by the thread that it happens to be on.
    np.testing.assert_allclose(module(images), module(images, training=False), atol=1e-5)
    np.testing.assert_allclose(module(images, training=True), module(images), atol=1e-5)
    for old, variable in zip(before, module.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_builtin_digest_survives_rebuilding_and_moving(lite0: Backbone, tmp_path: Path) -> None:
    """Two builds of one network have one digest, from a folder too, until a byte is changed."""
    build_builtin("builtin:efficientnet-lite0", tmp_path / "module")
    (tmp_path / "module").rename(tmp_path / "moved")
    moved = load_backbone(str(tmp_path / "moved"), cache_dir=tmp_path)
    assert moved.digest == lite0.digest
    assert moved.image_size == (224, 224)
    (tmp_path / "moved" / "README").write_text("changed")
    assert load_backbone(str(tmp_path / "moved"), cache_dir=tmp_path).digest != lite0.digest


def test_builtin_networks_have_different_digests(lite0: Backbone, cache: Path) -> None:
    """Another network is another digest, and each is the same on every machine."""
    assert load_backbone("builtin:efficientnet-lite1", cache_dir=cache).digest != lite0.digest
    # Of the weights and BUILDER_VERSION: it changes with these and with nothing else.
    assert lite0.digest == "1b6d1034148c0f197656d670772f728551e2c02704bcdb9f6014abf740053c70"


def test_unknown_builtin_lists_the_known_ones(tmp_path: Path) -> None:
    """A misspelt network is answered with the names there are, by loading and by building."""
    for act in (
        lambda: load_backbone("builtin:resnet", cache_dir=tmp_path),
        lambda: build_builtin("builtin:resnet", tmp_path / "module"),
    ):
        with pytest.raises(ConfigError, match="builtin:resnet") as caught:
            act()
        assert all(name in caught.value.hint for name in BUILTINS)


def test_building_never_overwrites(tmp_path: Path) -> None:
    """A folder with something in it is left as it is."""
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "precious").write_text("1")
    with pytest.raises(ConfigError, match="module"):
        build_builtin("builtin:efficientnet-lite0", tmp_path / "module")
    assert [path.name for path in tmp_path.rglob("*")] == ["module", "precious"]


# --- the weights file -----------------------------------------------------------------------------


class _Evil:
    """Pickles to a call of `open`, which the reader must refuse to make."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def digest_of(data: bytes) -> str:
    """Give the sha256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def test_weights_must_be_the_pinned_ones(tmp_path: Path) -> None:
    """A readable weights file with another hash, and a missing one, are refused by name."""
    data = torch_file((2,), (1,), [0, 1])
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(ConfigError, match=rf"w\.pth have sha256 {digest_of(data)}"):
        read_state_dict(tmp_path / "w.pth", sha256=digest_of(b"another"))
    with pytest.raises(ConfigError, match="missing"):
        read_state_dict(tmp_path / "missing.pth", sha256=digest_of(data))


def test_weights_cannot_run_code(tmp_path: Path) -> None:
    """A pickle that calls anything but the tensor's own constructor is refused unrun."""
    header = [MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True}, _Evil(tmp_path / "proof")]
    data = b"".join(pickle.dumps(part, protocol=2) for part in header)
    (tmp_path / "evil.pth").write_bytes(data)
    with pytest.raises(ConfigError, match="not part of a state dict"):
        read_state_dict(tmp_path / "evil.pth", sha256=digest_of(data))
    assert not (tmp_path / "proof").exists()


def torch_file(shape: tuple[int, ...], strides: tuple[int, ...], values: list[float]) -> bytes:
    """Write one tensor "w" as legacy torch does, pickle opcodes by hand."""

    def integers(numbers: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"K%c" % number for number in numbers) + b"t"

    def text(word: str) -> bytes:
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("1") + text("cpu")
    storage += b"K%cNtQ" % len(values)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0"
    tensor += (
        integers(shape) + integers(strides) + b"\x89" + b"ccollections\nOrderedDict\n)R" + b"tR"
    )
    state = b"\x80\2ccollections\nOrderedDict\n)R" + text("w") + tensor + b"s."
    parts = [MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True}]
    head = b"".join(pickle.dumps(part, protocol=2) for part in parts)
    body = struct.pack(f"<q{len(values)}f", len(values), *values)
    return head + state + pickle.dumps(["1"], protocol=2) + body


def test_weights_honour_strides(tmp_path: Path) -> None:
    """A transposed view of a storage is read transposed."""
    data = torch_file((2, 3), (1, 2), [0, 1, 2, 3, 4, 5])
    (tmp_path / "w.pth").write_bytes(data)
    weights = read_state_dict(tmp_path / "w.pth", sha256=digest_of(data))
    np.testing.assert_array_equal(weights["w"], [[0, 2, 4], [1, 3, 5]])


def test_weights_stay_inside_their_storage(tmp_path: Path) -> None:
    """A view that reaches past its storage, and a storage that is cut short, are refused."""
    data = torch_file((2, 3), (3, 2), [0, 1, 2, 3, 4, 5])
    for content in (data, torch_file((2, 3), (1, 2), [0, 1, 2, 3, 4, 5])[:-1]):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(ConfigError, match=r"w\.pth"):
            read_state_dict(tmp_path / "w.pth", sha256=digest_of(content))


# --- module formats and exports -------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_embeds(name: str, tmp_path: Path) -> None:
    """A module of each format gives its features, eagerly and traced, with its own image size."""
    backbone = load_backbone(str(FORMATS[name](tmp_path / "module")), cache_dir=tmp_path)
    assert backbone.image_size == (POOLING_SIZE, POOLING_SIZE)
    assert backbone.feature_dim == POOLING_FEATURES
    images = noise(3, POOLING_SIZE)
    expected = pooled(images) * POOLING_GAIN
    np.testing.assert_allclose(backbone.embed(images), expected, atol=1e-6)
    np.testing.assert_allclose(signature(backbone)(images), expected, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_exports_of_every_format_embed_alike(name: str, tmp_path: Path) -> None:
    """An export of the backbone, and its graph put into another, give the same embeddings."""
    backbone = load_backbone(str(FORMATS[name](tmp_path / "module")), cache_dir=tmp_path)
    check_exports(backbone, noise(3, POOLING_SIZE), tmp_path / "export")


def check_exports(backbone: Backbone, images: Images, folder: Path) -> None:
    """Export and freeze the backbone as `job.export` does, reload, and compare."""
    expected = backbone.embed(images).numpy()
    assert np.abs(expected).max() > 0.1
    holder = tf.Module()
    holder.embed = signature(backbone)
    traced = holder.embed.get_concrete_function()
    tf.saved_model.save(holder, str(folder), signatures={"serving_default": traced})
    reloaded = tf.saved_model.load(str(folder))
    np.testing.assert_allclose(reloaded.embed(images), expected, rtol=1e-5, atol=1e-5)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        source = tf.compat.v1.placeholder(tf.float32, backbone.image_spec().shape)
        features = session.run(insert(backbone.graph, source, "x"), {source: images})
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)


def test_tf1_and_tf2_modules_of_one_network_agree(lite0: Backbone, tmp_path: Path) -> None:
    """EfficientNet-Lite0 as a TF1 Hub module, with batch normalisation unfolded, embeds alike."""
    tf1 = load_backbone(str(write_lite0_tf1(tmp_path / "module")), cache_dir=tmp_path)
    assert tf1.image_size == (224, 224)
    images = np.concatenate([noise(1, 224), waves(224)])
    expected = lite0.embed(images)
    np.testing.assert_allclose(tf1.embed(images), expected, rtol=1e-5, atol=1e-5)
    check_exports(tf1, images, tmp_path / "tf1-export")
    check_exports(lite0, images, tmp_path / "tf2-export")


def test_pooled_feature_maps_of_one_pixel_are_squeezed(tmp_path: Path) -> None:
    """A module that gives [n,1,1,d], as some do, embeds to [n,d]."""
    shape = lambda features: features[:, tf.newaxis, tf.newaxis]  # noqa: E731
    module = write_pooling(tmp_path / "module", shape_output=shape)
    backbone = load_backbone(str(module), cache_dir=tmp_path)
    assert backbone.embed(noise(3, POOLING_SIZE)).shape == (3, POOLING_FEATURES)


BAD_OUTPUTS: dict[str, tuple[Callable[[tf.Tensor], Any], str]] = {
    "a feature map": (lambda f: tf.reshape(f, [-1, 2, 2, 3]), r"\[2, 2, 2, 3\]"),
    "a scalar": (tf.reduce_sum, r"\[\]"),
    "a number per image": (lambda f: f[:, 0], r"\[2\]"),
    "one vector for all": (lambda f: f[:1], r"\[1, 12\]"),
    "another dtype": (lambda f: tf.cast(f, tf.float16), "float16"),
    "a pair": (lambda f: (f, f), "expected float32"),
    "two names": (lambda f: {"a": f, "b": f}, "'a', 'b'"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_other_outputs_are_refused(case: str, tmp_path: Path) -> None:
    """What is not float32 [n,d] is refused with the handle and the shape."""
    shape_output, found = BAD_OUTPUTS[case]
    module = write_pooling(tmp_path / "module", shape_output=shape_output)
    with pytest.raises(ConfigError, match=rf"{module}.*{found}"):
        load_backbone(str(module), cache_dir=tmp_path)


def test_module_without_a_way_in_is_refused(tmp_path: Path) -> None:
    """A SavedModel that is not callable and has another signature only is refused with its name."""
    module = write_pooling_signature(tmp_path / "module", name="classify")
    with pytest.raises(ConfigError, match=r"module.*classify"):
        load_backbone(str(module), cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("options", "found"), [({"channels": 4}, "4"), ({"dtype": tf.uint8}, "uint8")]
)
def test_other_inputs_are_refused(options: dict[str, Any], found: str, tmp_path: Path) -> None:
    """A module for other than float32 RGB images is refused with what it takes."""
    module = write_pooling(tmp_path / "module", **options)
    with pytest.raises(ConfigError, match=f"it takes .*{found}"):
        load_backbone(str(module), cache_dir=tmp_path)


def test_signature_with_two_inputs_is_refused(tmp_path: Path) -> None:
    """A signature that wants more than images is refused with its inputs."""
    module = Pooling()
    both = tf.function(lambda images, scale: {"features": pooled(images) * scale})
    signature = both.get_concrete_function(module.spec, tf.TensorSpec([], tf.float32, "scale"))
    tf.saved_model.save(module, str(tmp_path / "module"), signatures=signature)
    with pytest.raises(ConfigError, match="'images', 'scale'"):
        load_backbone(str(tmp_path / "module"), cache_dir=tmp_path)


# --- the image size -------------------------------------------------------------------------------


def test_image_size_must_not_contradict_the_module(tmp_path: Path) -> None:
    """A fixed size may be repeated, not changed."""
    module = str(write_pooling(tmp_path / "module"))
    assert load_backbone(module, cache_dir=tmp_path, image_size=32).image_size == (32, 32)
    with pytest.raises(ConfigError, match=r"module.*32x32.*64"):
        load_backbone(module, cache_dir=tmp_path, image_size=64)


@pytest.mark.parametrize("write", [write_pooling, write_pooling_signature, write_pooling_tf1])
def test_module_of_any_size_needs_one(write: Any, tmp_path: Path) -> None:
    """A module that takes any size is loaded with the one asked for, and not without."""
    module = str(write(tmp_path / "module", size=None))
    with pytest.raises(ConfigError, match="module") as caught:
        load_backbone(module, cache_dir=tmp_path)
    assert "--image-size" in caught.value.hint
    backbone = load_backbone(module, cache_dir=tmp_path, image_size=64)
    assert backbone.image_size == (64, 64)
    assert backbone.embed(noise(1, 64)).shape == (1, POOLING_FEATURES)


def test_size_that_the_module_cannot_take_is_refused(tmp_path: Path) -> None:
    """A size that the graph itself fails on is refused at once, not at the first batch."""
    module = str(write_pooling(tmp_path / "module", size=None))
    with pytest.raises(ConfigError, match=r"module.*\[2, 33, 33, 3\]"):
        load_backbone(module, cache_dir=tmp_path, image_size=33)


def test_tf1_module_may_carry_its_size(tmp_path: Path) -> None:
    """`image_module_info` gives the size where the signature leaves it open; asking wins."""
    module = str(write_pooling_tf1(tmp_path / "module", size=None, attached=(300, 64)))
    assert load_backbone(module, cache_dir=tmp_path).image_size == (300, 64)
    assert load_backbone(module, cache_dir=tmp_path, image_size=96).image_size == (96, 96)


# --- resolved and compiled ------------------------------------------------------------------------


def test_a_handle_is_resolved_without_loading_anything(lite0: Backbone, tmp_path: Path) -> None:
    """The digest is known at once: a built-in network is not built for it, a module not loaded."""
    assert resolve("builtin:efficientnet-lite0", cache_dir=tmp_path).digest == lite0.digest
    assert list(tmp_path.iterdir()) == []
    module = write_pooling(tmp_path / "module")
    whole = resolve(str(module), cache_dir=tmp_path)
    assert whole.digest == load_backbone(str(module), cache_dir=tmp_path).digest
    contents = (module / "saved_model.pb").read_bytes()
    (module / "saved_model.pb").write_bytes(contents[:-9])  # nothing that could be loaded
    assert resolve(str(module), cache_dir=tmp_path).digest != whole.digest
    with pytest.raises(ConfigError, match=r"backbone /nope: /nope does not exist"):
        resolve("/nope", cache_dir=tmp_path)


def test_a_compiled_backbone_needs_no_module(lite0: Backbone, cache: Path, tmp_path: Path) -> None:
    """What one job compiled another takes from the shelf as it is, and builds nothing."""
    shelf = LocalStore(cache / "compiled")
    found = load_backbone("builtin:efficientnet-lite0", cache_dir=tmp_path, shelf=shelf)
    assert list(tmp_path.iterdir()) == []
    assert found.graph == lite0.graph
    assert (found.image_size, found.feature_dim) == (lite0.image_size, lite0.feature_dim)
    np.testing.assert_array_equal(found.embed(noise(2, 224)), lite0.embed(noise(2, 224)))


def test_a_compiled_backbone_holds_no_variables(lite0: Backbone) -> None:
    """Normalisation is folded into the kernels: two constants a layer, and nothing is read."""
    kinds = [node.op for node in lite0.graph.node]
    assert not {"VarHandleOp", "ReadVariableOp", "Placeholder", "Rsqrt", "PartitionedCall"} & {
        *kinds
    }
    assert kinds.count("Conv2D") + kinds.count("DepthwiseConv2dNative") == 49
    assert kinds.count("Const") < 2 * 49 + 10


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_damaged_compiled_backbone_is_not_used(place: int, tmp_path: Path) -> None:
    """One other byte, in the seal, the sizes or the graph: it is compiled again, and kept."""
    module = str(write_pooling(tmp_path / "module"))
    sound = load_backbone(module, cache_dir=tmp_path)
    (kept,) = (tmp_path / "compiled").iterdir()
    before = bytearray(kept.read_bytes())
    damaged = before.copy()
    damaged[place] ^= 1
    kept.write_bytes(damaged)
    again = load_backbone(module, cache_dir=tmp_path)
    np.testing.assert_array_equal(again.embed(noise(2, 32)), sound.embed(noise(2, 32)))
    assert kept.read_bytes() == before


def test_another_module_or_size_is_compiled_by_itself(tmp_path: Path) -> None:
    """What is kept is known by the module's content and the image size that was asked for."""
    module = write_pooling(tmp_path / "module", size=None)
    for size in (32, 64):
        assert (
            load_backbone(str(module), cache_dir=tmp_path, image_size=size).image_size
            == (size,) * 2
        )
    (module / "README").write_text("changed")
    load_backbone(str(module), cache_dir=tmp_path, image_size=64)
    assert len(list((tmp_path / "compiled").iterdir())) == 3
    with pytest.raises(ConfigError, match="any size"):
        load_backbone(str(module), cache_dir=tmp_path)


def test_a_shelf_that_cannot_be_written_only_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The backbone is there all the same."""
    (tmp_path / "file").write_bytes(b"")
    shelf = LocalStore(tmp_path / "file" / "shelf")
    module = str(write_pooling(tmp_path / "module"))
    with caplog.at_level("WARNING", logger="regraft"):
        assert load_backbone(module, cache_dir=tmp_path, shelf=shelf).feature_dim == 12
    assert "is not kept" in caplog.text


def test_a_builtin_module_that_was_changed_is_refused(tmp_path: Path) -> None:
    """What lies in the cache under a network's name must be that network."""
    resolved = resolve("builtin:efficientnet-lite0", cache_dir=tmp_path)
    load_backbone(resolved, cache_dir=tmp_path)
    LocalStore(tmp_path / "compiled").delete(file_name(resolved.digest, None))
    (graph,) = (tmp_path / "modules").rglob("saved_model.pb")
    contents = bytearray(graph.read_bytes())
    contents[-1] ^= 1
    graph.write_bytes(contents)
    with pytest.raises(ConfigError, match="was changed after it was built") as caught:
        load_backbone(resolved, cache_dir=tmp_path)
    assert caught.value.hint == "remove that folder"
