"""Reads a state dict in the legacy torch format (`torch.save` before 1.6) without torch.

The file is five pickles in a row (magic number, protocol version, system information, the state
dict, the order of the storages), then each storage as an int64 element count and its raw bytes.
A tensor in the state dict is a view of a storage: offset, shape and strides.
"""

from __future__ import annotations

import collections
import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from job.errors import ConfigError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class _View:
    storage: _Storage
    offset: int  # in elements, as are the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, storages: dict[str, Array]) -> Array:
        """Give the view as a contiguous array; ValueError when it leaves its storage."""
        data = storages[self.storage.key]
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.strides)) < 0 or self.offset + reach >= data.size:
            raise ValueError(f"tensor of shape {self.shape} reaches outside its storage")
        strides = [step * data.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(
            data[self.offset :], self.shape, strides, writeable=False
        )
        return np.ascontiguousarray(view)


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> _View:
    return _View(storage, offset, shape, strides)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): _StorageType(np.dtype("<f4")),
    ("torch", "LongStorage"): _StorageType(np.dtype("<i8")),
}


class _StateDictUnpickler(pickle.Unpickler):
    """Knows the four names a state dict needs; any other makes the file refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a state dict") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _location, _size, view = pid
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError(f"unknown persistent id {kind!r}")
        return _Storage(key, storage_type.dtype)


def read_state_dict(path: Path, *, sha256: str) -> dict[str, Array]:
    """Read the tensors of a state dict, in the file's own layout (convolutions OIHW).

    Args:
        path: the `.pth` file.
        sha256: what the file must hash to, in hex.

    Returns:
        Name to array, float32 or int64, in the order of the file.

    Raises:
        ConfigError: the file is missing, is not the pinned one, or is not a state dict.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"weights {path}: {error.strerror}", hint="install the packages of requirements.txt"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ConfigError(
            f"weights {path} have sha256 {found}, expected {sha256}",
            hint="install the packages of requirements.txt again, with their pinned versions",
        )
    try:
        return _parse(io.BytesIO(data))
    except Exception as error:  # A file that is something else makes pickle raise anything.
        raise ConfigError(f"weights {path} are not a legacy torch state dict: {error}") from error


def _parse(file: BinaryIO) -> dict[str, Array]:
    def load() -> Any:
        return _StateDictUnpickler(file).load()

    if load() != MAGIC_NUMBER or load() != PROTOCOL_VERSION:
        raise ValueError("another magic number or version")
    if not load()["little_endian"]:
        raise ValueError("big-endian storages")
    views: dict[str, _View] = load()
    known = {view.storage.key: view.storage for view in views.values()}
    storages = {key: _read_storage(file, known[key]) for key in load()}
    return {name: view.array(storages) for name, view in views.items()}


def _read_storage(file: BinaryIO, storage: _Storage) -> Array:
    # A count that is wrong or a file that is cut short shows when a view leaves its storage.
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * storage.dtype.itemsize), storage.dtype)
