"""A handle becomes a local folder with a whole TF Hub module, and the folder a loaded module.

What is not a local folder already (an archive, `gs://`, `https://`, a built network) is kept in a
cache: `<root>/<key>.<random>/module`, with a record of its file sizes beside it. An entry is made
under a temporary name and appears by one rename, so processes that share a cache never see each
other's half-made entries, and one that lost files since does not match its record and is not used.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import io
import json
import os
import shutil
import ssl
import tempfile
import time
import urllib.error
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import Request, url2pathname, urlopen

from job import archives
from job.documents import parse_object
from job.errors import ConfigError, RegraftError, UnavailableError, brief
from job.storage import download, open_store
from job.vetting import vet_module

RECORD = "files.json"
MARKER = "regraft_digest.json"
SAVED_MODEL = "saved_model.pb"
NETWORK_TIMEOUT = 60.0  # seconds without a byte
PARTIAL_LIFETIME = 24 * 3600.0  # seconds; older half-made entries belong to killed processes


def fetch_module(handle: str, cache_dir: Path) -> Path:
    """Give the local folder of the module that a path or URI names, fetching it if need be.

    A local folder is used where it is. An archive is known by its content and `gs://` objects by
    their generation, so a replaced one is fetched again; an `https://` handle is taken to stay
    what it is, as TF Hub's are.

    Raises (whoever knows what the handle is for should name it):
        ConfigError: the handle leads nowhere, or to something that is not a module.
        UnavailableError: the network or the storage is out.
    """
    scheme = _scheme(handle)
    if scheme in ("http", "https"):
        folder = _fetch_http(handle, Path(os.environ.get("TFHUB_CACHE_DIR") or cache_dir / "hub"))
    elif scheme == "gs":
        folder = _fetch_gs(handle, cache_dir / "modules")
    elif scheme in ("", "file"):
        path = Path(url2pathname(urlsplit(handle).path) if scheme else handle)
        if not path.is_file() or not path.name.endswith(archives.SUFFIXES):
            folder = path
        else:
            folder = _fetch_archive(path, cache_dir / "modules")
    else:
        raise ConfigError(
            f"no way to fetch {scheme}://",
            hint="use builtin:NAME, a folder, file://, gs://, https:// or a .tar.gz archive",
        )
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist", hint="check the path")
    if not (folder / SAVED_MODEL).is_file():
        raise ConfigError(
            f"found no {SAVED_MODEL} in it, expected a SavedModel",
            hint="name the folder that holds saved_model.pb; pack archives with tar -C FOLDER .",
        )
    return folder


def load_module(folder: Path) -> Any:
    """Load the module in `folder`, in TF2 SavedModel or TF1 Hub format.

    Raises ConfigError when TensorFlow cannot load it, or when it does more than compute.
    """
    vet_module(folder)
    try:
        return _hub().load(str(folder))
    except Exception as error:  # A damaged file surfaces as almost any type from the loader.
        raise ConfigError(
            f"TensorFlow cannot load {folder}: {brief(error)}",
            hint="the module is damaged or incomplete: fetch or write it again",
        ) from error


def module_digest(folder: Path) -> str:
    """Give the sha256, in hex, of a module's relative paths and contents.

    `fingerprint.pb` differs between two writes of one module and does not count. A module with a
    marker (see `mark_digest`) that is unchanged since has the digest that the marker gives.
    """
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in _sizes(folder)
        if name not in ("fingerprint.pb", MARKER)
    }
    content = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        marker = parse_object((folder / MARKER).read_bytes())
        if marker["content"] == content:
            return str(marker["digest"])
    return content


def mark_digest(folder: Path, digest: str) -> None:
    """Give a freshly written module a digest of what it was made from.

    TensorFlow writes the same model with other bytes each time, so the content cannot tell.
    """
    marker = {"digest": digest, "content": module_digest(folder)}
    (folder / MARKER).write_text(json.dumps(marker))


def cached(root: Path, key: str, fill: Callable[[Path], None]) -> Path:
    """Give the complete cache entry for `key`, made by `fill(new folder)` if there is none.

    Raises ConfigError when the cache cannot be written, and what `fill` raises.
    """
    if entry := _find(root, key):
        return entry
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        with tempfile.TemporaryDirectory(dir=root, prefix=".partial.") as partial:
            made = Path(partial, "entry")
            made.mkdir()
            fill(made / "module")
            (made / RECORD).write_text(json.dumps(_sizes(made / "module")))
            if entry := _find(root, key):  # another process was faster
                return entry
            return made.rename(root / (key + Path(partial).suffix)) / "module"
    except OSError as error:
        raise ConfigError(
            f"cannot write the module cache {root}: {error.strerror or error}",
            hint="give a --work-dir that this user may write to, with room for the module",
        ) from error


def _hub() -> Any:
    """Import TF Hub, which a run whose backbone is compiled already can do without."""
    with warnings.catch_warnings():
        # It imports pkg_resources, which warns of its own end on every start.
        warnings.simplefilter("ignore", UserWarning)
        import tensorflow_hub

        return tensorflow_hub


def _scheme(handle: str) -> str:
    try:
        parts = urlsplit(handle if "://" in handle else "")
        if parts.scheme in ("http", "https") and (parts.hostname is None or parts.port == 0):
            raise ValueError("it names no server")
        return parts.scheme
    except ValueError as error:
        raise ConfigError(str(error), hint="check the spelling of the URL") from error


def _find(root: Path, key: str) -> Path | None:
    for entry in sorted(root.glob(f"{key}.*")):
        with contextlib.suppress(OSError, ValueError):
            if parse_object((entry / RECORD).read_bytes()) == _sizes(entry / "module"):
                return entry / "module"
        # It appeared complete, so it has been damaged since and is of no use to anyone.
        shutil.rmtree(entry, ignore_errors=True)
    return None


def _sweep(root: Path) -> None:
    for partial in root.glob(".partial.*"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > PARTIAL_LIFETIME:
                shutil.rmtree(partial, ignore_errors=True)


def _sizes(folder: Path) -> dict[str, int]:
    """Give the size in bytes of every file below `folder`, by relative path, links followed."""
    walk = os.walk(folder, followlinks=True)
    paths = [Path(base, name) for base, _, names in walk for name in names]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _fetch_archive(path: Path, root: Path) -> Path:
    with path.open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        file.seek(0)
        return cached(root, key, lambda target: archives.unpack(file, target))


def _fetch_gs(handle: str, root: Path) -> Path:
    is_archive = handle.endswith(archives.SUFFIXES)
    uri, _, name = handle.rpartition("/") if is_archive else (handle.rstrip("/"), "", "")
    store = open_store(uri)
    files = (entry for entry in store.list(name) if not entry.name.endswith("/"))
    entries = [entry for entry in files if not is_archive or entry.name == name]
    if not entries:
        raise ConfigError("no such object or folder", hint="check the URI")

    def fill(target: Path) -> None:
        try:
            if is_archive:
                archives.unpack(io.BytesIO(store.read(entries[0].name, entries[0])), target)
            else:
                download(store, entries, target)
        except FileNotFoundError as error:
            raise ConfigError(f"{error} was just deleted") from error

    key = hashlib.sha256(repr((uri, entries)).encode()).hexdigest()[:32]
    return cached(root, key, fill)


def _fetch_http(handle: str, root: Path) -> Path:
    # TF Hub keeps its own downloads under this name; an image may bring some along.
    brought = root / hashlib.sha1(handle.encode(), usedforsecurity=False).hexdigest()
    if brought.exists():
        # There is no record of what it should be, so only loading it tells whether it is whole.
        with contextlib.suppress(ConfigError):
            load_module(brought)
            return brought

    def fill(target: Path) -> None:
        # A cut connection looks like a broken archive, so that verdict takes two downloads.
        with contextlib.suppress(ConfigError):
            return _download(handle, target)
        shutil.rmtree(target, ignore_errors=True)
        return _download(handle, target)

    return cached(root, hashlib.sha256(handle.encode()).hexdigest()[:32], fill)


def _download(handle: str, target: Path) -> None:
    """Download and unpack an archive, asking for it as TF Hub's resolver does.

    That one has no limits of time and size, sends no password, breaks the signature of a signed URL
    and waits ten minutes for the lock of a process that was killed.
    """
    parts = urlsplit(handle)
    login, _, host = parts.netloc.rpartition("@")
    query = parts.query
    if not parts.path.endswith(archives.SUFFIXES):  # so a page of TF Hub
        query = "&".join(filter(None, [query, "tf-hub-format=compressed"]))
    request = Request(parts._replace(netloc=host, query=query, fragment="").geturl())  # noqa: S310
    if login:
        basic = base64.b64encode(unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    with tempfile.TemporaryFile(dir=target.parent) as file:
        try:
            with urlopen(request, timeout=NETWORK_TIMEOUT) as response:  # noqa: S310
                archives.copy(response, file)
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            raise _network_failure(error) from error
        except (ValueError, http.client.HTTPException) as error:
            raise archives.broken_archive(error) from error
        file.seek(0)
        archives.unpack(file, target)


def _network_failure(error: OSError) -> RegraftError:
    message = str(getattr(error, "reason", None) or brief(error))
    if isinstance(error, urllib.error.HTTPError):
        message += f" (HTTP {error.code})"
        if error.code < 500 and error.code not in (408, 429):
            return ConfigError(message, hint="check the URL and that it needs no login")
    elif isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
        return ConfigError(message, hint="set SSL_CERT_FILE to a bundle with your CA")
    return UnavailableError(message, hint="try again when the server answers")
