"""The half of the stand-in that watches a base path and loads versions; see serving_standin.py."""

from __future__ import annotations

import re
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import tensorflow as tf

VERSION = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
WARM_UP = "assets.extra/tf_serving_warmup_requests"


class Refused(Exception):
    """A request with a mistake: HTTP 400."""

    http = 400


class Missing(Refused):
    """A version or model that is not there: HTTP 404."""

    http = 404


class Source(Protocol):
    """A base path."""

    def children(self) -> set[str] | None:
        """Give the names of the direct children; None when the base path is not there."""

    def fetch(self, child: str, target: Path) -> Path:
        """Give a local folder with what the child holds now."""


class Folder:
    """A base path on a file system."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def children(self) -> set[str] | None:
        """List the folder."""
        return {p.name for p in self.path.iterdir()} if self.path.exists() else None

    def fetch(self, child: str, target: Path) -> Path:
        """Give the folder itself."""
        return self.path / child


class Bucket:
    """A base path in Cloud Storage, or in the emulator at STORAGE_EMULATOR_HOST."""

    def __init__(self, uri: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        bucket, _, prefix = uri.removeprefix("gs://").partition("/")
        client = storage.Client(project="standin", credentials=AnonymousCredentials())
        self.bucket = client.bucket(bucket)
        self.base = prefix.rstrip("/") + "/"

    def children(self) -> set[str] | None:
        """List all that is below the base path; a folder is there while an object is in it."""
        names = [blob.name for blob in self.bucket.list_blobs(prefix=self.base)]
        return {name.removeprefix(self.base).partition("/")[0] for name in names} or None

    def fetch(self, child: str, target: Path) -> Path:
        """Download what is there at this moment."""
        prefix = f"{self.base}{child}/"
        target = Path(tempfile.mkdtemp(dir=target))  # nothing of an earlier try
        for blob in self.bucket.list_blobs(prefix=prefix):
            path = target / blob.name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            blob.download_to_filename(str(path))
        return target


@dataclass(slots=True)
class Servable:
    """A version under management; `error` is why it could not be loaded."""

    version: int
    child: str
    aspired: bool = True
    state: str = "START"
    error: str = ""
    model: Any = None
    folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    def unload(self) -> None:
        """Let go of the model."""
        self.model, self.state = None, "END"
        self.folder.cleanup()

    def describe(self) -> dict[str, Any]:
        """Give a ModelVersionStatus as JSON; what failed in a try does not show before END."""
        error = self.error if self.state == "END" else ""
        status = {"error_code": "UNKNOWN" if error else "OK", "error_message": error}
        return {"version": str(self.version), "state": self.state, "status": status}


class Manager:
    """Polls the base path and moves servables through their states."""

    def __init__(self, source: Source, name: str, retries: int, retry_seconds: float) -> None:
        self.source = source
        self.name = name
        self.retries = retries
        self.retry_seconds = retry_seconds
        self.lock = threading.Lock()
        self.managed: dict[int, Servable] = {}
        self.seen: dict[int, Servable] = {}  # the last of each version, for the status
        self.request: dict[int, str] | None = None  # aspired versions not yet acted upon

    def poll(self) -> None:
        """Aspire the largest integer among the base path's children."""
        children = self.source.children()
        if children is None:
            return
        versions = {int(c): c for c in sorted(children) if VERSION.fullmatch(c)}
        newest = max(versions, default=0)
        with self.lock:
            self.request = {newest: versions[newest]} if versions else {}

    def manage(self) -> None:
        """Take the next step."""
        with self.lock:
            if self.request is not None and not self._aspires_again(self.request):
                self._aspire(self.request)
                self.request = None
            for servable in list(self.managed.values()):
                if not servable.aspired and servable.state in ("START", "END"):
                    del self.managed[servable.version]
            aspired = [s for s in self.managed.values() if s.aspired]
            idle = [s for s in self.managed.values() if not s.aspired and s.state == "AVAILABLE"]
            ready = any(s.state == "AVAILABLE" for s in aspired)
            if idle and (not aspired or ready or len(idle) > 1):
                min(idle, key=lambda s: s.version).unload()
                return
            for servable in aspired:
                if servable.state == "START":
                    servable.state = "LOADING"
                    threading.Thread(target=self._load, args=[servable], daemon=True).start()

    def _aspires_again(self, request: dict[int, str]) -> bool:
        return any(v in request and not s.aspired for v, s in self.managed.items())

    def _aspire(self, request: dict[int, str]) -> None:
        for version, servable in self.managed.items():
            servable.aspired = version in request
        for version in request.keys() - self.managed.keys():
            servable = Servable(version, request[version])
            self.managed[version] = self.seen[version] = servable

    def _load(self, servable: Servable) -> None:
        for attempt in range(1 + self.retries):
            if attempt and servable.aspired:
                time.sleep(self.retry_seconds)
            if attempt and not servable.aspired:
                break
            try:
                folder = self.source.fetch(servable.child, Path(servable.folder.name))
                model = tf.saved_model.load(str(folder))
                warm_up(model, folder)
            except Exception as error:  # whatever a broken version brings up, the server lives on
                traceback.print_exc()
                servable.error = f"{type(error).__name__}: {error}"
                continue
            servable.model, servable.error, servable.state = model, "", "AVAILABLE"
            return
        servable.state = "END"

    def status(self, name: str, version: int | None) -> dict[str, Any]:
        """Give what GetModelStatusResponse says as JSON."""
        with self.lock:
            servables = [self.seen[v] for v in sorted(self.seen) if version in (None, v)]
        if name != self.name or not servables:
            wanted = "any versions" if version is None else f"version {version}"
            raise Missing(f"Could not find {wanted} of model {name}")
        return {"model_version_status": [s.describe() for s in servables]}

    def servable(self, name: str, version: int | None) -> Any:
        """Give the model of a version, or of the largest that is available."""
        with self.lock:
            ready = {v: s for v, s in self.managed.items() if s.state == "AVAILABLE"}
            wanted = max(ready, default=None) if version is None else version
            if name != self.name or wanted not in ready:
                what = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise Missing(f"Servable not found for request: {what}")
            return ready[wanted].model


def warm_up(model: Any, folder: Path) -> None:
    """Run the warm-up records; one that fails makes the load fail."""
    path = folder / WARM_UP
    if not path.exists():
        return
    from tensorflow_serving.apis import prediction_log_pb2

    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        signature = model.signatures[request.model_spec.signature_name or "serving_default"]
        signature(**{k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()})
