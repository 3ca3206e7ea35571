"""Google Cloud Storage behind the `Store` seam; the only module that imports the SDK."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google.auth
import google.auth.exceptions
import requests
from google.api_core import exceptions as api
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import HTTPAdapter

from job.errors import ConfigError, RegraftError, UnavailableError
from job.storage import Entry, crc32c

# A bundle has a dozen files; more threads than that wait for nothing.
UPLOADS = 8

# The IAM role that grants what each of our verbs needs, for the message of a 403.
ROLES = {
    "list": "roles/storage.objectViewer",
    "read": "roles/storage.objectViewer",
    "write": "roles/storage.objectUser",
    "delete": "roles/storage.objectUser",
}


def open_bucket(name: str, connections: int) -> Any:
    """Give the SDK's bucket `name`, on a client with `connections` kept-alive connections.

    With `STORAGE_EMULATOR_HOST` set the client is anonymous, as an emulator wants it.

    Raises ConfigError when there are no credentials.
    """
    with translated(f"gs://{name}", "list"):
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            anonymous: Any = AnonymousCredentials
            client = storage.Client(project="regraft", credentials=anonymous())
        else:
            credentials, project = google.auth.default()
            # Objects need no project; a workload identity often knows none.
            client = storage.Client(project=project or "regraft", credentials=credentials)
        # requests keeps 10 connections by default; every thread above that would open a new one
        # for each object, with its TLS handshake.
        client._http.mount("https://", HTTPAdapter(pool_maxsize=connections))
        client._http.mount("http://", HTTPAdapter(pool_maxsize=connections))
        return client.bucket(name)


class GcsStore:
    """A prefix of a bucket as a store. Retries are the client's own policy."""

    def __init__(self, bucket: Any, prefix: str) -> None:
        self.uri = f"gs://{bucket.name}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._base = f"{prefix}/" if prefix else ""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Give every object below the prefix, in the order of the listing (by name)."""
        fields = "items(name,size,generation,crc32c,updated),nextPageToken"
        with translated(self.uri, "list"):
            for blob in self._bucket.list_blobs(prefix=self._base + prefix, fields=fields):
                name = blob.name[len(self._base) :]
                if name:  # the placeholder of the root itself has none
                    modified = blob.updated.timestamp() if blob.updated else 0.0
                    generation = int(blob.generation)
                    yield Entry(name, blob.size, generation, blob.crc32c or "", modified)

    def read(self, name: str, entry: Entry | None = None) -> bytes:
        """Download one object, its CRC32C checked by the client and against `entry`."""
        generation = entry.generation if entry else None
        blob = self._bucket.blob(self._base + name, generation=generation)
        with translated(f"{self.uri}/{name}", "read"):
            # Raw: an object stored gzipped keeps the bytes that its checksum is of.
            data: bytes = blob.download_as_bytes(raw_download=True, checksum="crc32c")
        if entry and entry.crc32c and crc32c(data) != entry.crc32c:
            raise UnavailableError(
                f"{self.uri}/{name}: the bytes that arrived are not those of the listing",
                hint="run again; if it stays, something between here and the bucket alters data",
            )
        return data

    def write(self, name: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        """Upload one object, its CRC32C checked by the server."""
        blob = self._bucket.blob(self._base + name)
        # Without a precondition a retry cannot tell its own earlier success from somebody else's
        # object, so the client retries only with one unless it is told to.
        options = {"if_generation_match": 0} if if_absent else {"retry": DEFAULT_RETRY}
        with translated(f"{self.uri}/{name}", "write"):
            if isinstance(data, Path):
                blob.upload_from_filename(str(data), checksum="crc32c", **options)
            else:
                blob.upload_from_string(
                    data, "application/octet-stream", checksum="crc32c", **options
                )

    def replace(self, name: str, data: bytes, entry: Entry | None) -> None:
        """Upload with the generation that was read as the precondition, 0 being none."""
        blob = self._bucket.blob(self._base + name)
        generation = entry.generation if entry else 0
        with translated(f"{self.uri}/{name}", "write"):
            blob.upload_from_string(
                data, "application/json", checksum="crc32c", if_generation_match=generation
            )

    def put_tree(self, folder: Path, name: str) -> None:
        """Upload a folder's files, many at once, each only where nothing is."""

        def upload(path: Path) -> None:
            self.write(f"{name}/{path.relative_to(folder).as_posix()}", path, if_absent=True)

        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(upload, files))  # list() so that the first failure is raised

    def move_tree(self, source: str, target: str, *, order: Callable[[str], Any]) -> None:
        """Copy inside the bucket, one after the other, each only where nothing is; then delete."""
        prefix = f"{source}/"
        entries = sorted(self.list(prefix), key=lambda e: order(e.name.removeprefix(prefix)))
        for entry in entries:
            name = f"{target}/{entry.name.removeprefix(prefix)}"
            blob = self._bucket.blob(self._base + entry.name)
            with translated(f"{self.uri}/{name}", "write"):
                self._bucket.copy_blob(
                    blob,
                    self._bucket,
                    self._base + name,
                    if_generation_match=0,
                    if_source_generation_match=entry.generation,
                    retry=DEFAULT_RETRY,
                )
        if entries:  # what made it whole goes first, so that no half of it looks like all of it
            self.delete_tree(source, first=entries[-1].name.removeprefix(prefix))

    def delete_tree(self, name: str, *, first: str = "") -> None:
        """Delete every object below `name`, the object `first` before the others."""
        prefix = f"{name}/"
        names = [entry.name for entry in self.list(prefix)]
        if prefix + first in names:
            self.delete(prefix + first)
        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(self.delete, names))

    def delete(self, name: str) -> None:
        """Delete one object; one that is not there is fine."""
        with (
            contextlib.suppress(FileNotFoundError),
            translated(f"{self.uri}/{name}", "delete"),
        ):
            self._bucket.blob(self._base + name).delete(retry=DEFAULT_RETRY)

    def child(self, name: str) -> GcsStore:
        """Give the store rooted at the prefix `name` below this one."""
        return GcsStore(self._bucket, self._base + name)


@contextlib.contextmanager
def translated(uri: str, verb: str) -> Iterator[None]:
    """Turn what the SDK, its transport and its credentials raise into the job's own errors."""
    try:
        yield
    except api.NotFound as error:
        if verb in ("list", "write") or "bucket does not exist" in str(error):
            raise ConfigError(
                f"{uri}: the bucket does not exist",
                hint="check the spelling, or create the bucket",
            ) from error
        raise FileNotFoundError(uri) from error
    except api.PreconditionFailed as error:
        raise FileExistsError(uri) from error
    except (api.Forbidden, api.Unauthorized) as error:
        raise ConfigError(
            f"{uri}: no permission to {verb} ({error.code})",
            hint=f"grant {ROLES[verb]} on the bucket to the service account of this job",
        ) from error
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise ConfigError(
            f"{uri}: no valid Google credentials were found",
            hint="use workload identity, set GOOGLE_APPLICATION_CREDENTIALS, or run "
            "`gcloud auth application-default login`",
        ) from error
    except (
        api.RetryError,
        api.ServerError,
        api.TooManyRequests,
        DataCorruption,
        google.auth.exceptions.GoogleAuthError,
        requests.RequestException,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise UnavailableError(
            f"{uri}: storage is out: {error}", hint="the same command may work later"
        ) from error
    except api.ClientError as error:
        raise _refused(uri, verb, error) from error


def _refused(uri: str, verb: str, error: api.ClientError) -> RegraftError:
    if error.code == 408:  # a request time-out is a fault of the moment, the rest of 4xx are ours
        return UnavailableError(f"{uri}: storage timed out", hint="the same command may work later")
    return ConfigError(f"{uri}: storage refused to {verb} it: {error.message}")
