"""Google Cloud Storage behind the `Store` seam.

Each request goes through `tries.send`, so all calls of the SDK have `retry=None`.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import google.auth
import requests
from google.api_core import exceptions as api
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from requests.adapters import HTTPAdapter

from job.storage import Entry, crc32c
from job.tries import Try, send, translated

T = TypeVar("T")

# A bundle has a dozen files; more threads than that wait for nothing.
UPLOADS = 8


class _Adapter(HTTPAdapter):
    """Sends what is large in blocks, because a socket's time-out is for all of one `sendall`."""

    def send(self, request: Any, *args: Any, **options: Any) -> requests.Response:
        if isinstance(request.body, bytes) and len(request.body) > 2**20:
            request.body = io.BytesIO(request.body)
        return super().send(request, *args, **options)


@dataclass(frozen=True, slots=True)
class _Page:
    """A page of a listing, and the token of the next one."""

    entries: list[Entry]
    next: str | None


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
        client._http.mount("https://", _Adapter(pool_maxsize=connections))
        client._http.mount("http://", _Adapter(pool_maxsize=connections))
        return client.bucket(name)


class GcsStore:
    """A prefix of a bucket as a store; each request is tried for `deadline` seconds.

    Every method raises UnavailableError when the deadline has passed, and ConfigError at once when
    the bucket does not exist or the job may not do what it wants to.
    """

    def __init__(self, bucket: Any, prefix: str, deadline: float = 300.0) -> None:
        self.uri = f"gs://{bucket.name}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._base = f"{prefix}/" if prefix else ""
        self._deadline = deadline

    def _send(self, name: str, verb: str, request: Callable[[Try], T]) -> T:
        uri = f"{self.uri}/{name}" if name else self.uri
        server = self._bucket.client._connection.API_BASE_URL
        return send(request, uri=uri, verb=verb, server=server, deadline=self._deadline)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Give every object below the prefix, in the order of the listing (by name)."""
        token: str | None = None
        while True:
            page = self._send("", "list", partial(self._list_page, prefix, token))
            yield from page.entries
            if not (token := page.next):
                return

    def _list_page(self, prefix: str, token: str | None, this: Try) -> _Page:
        found = self._bucket.list_blobs(
            prefix=self._base + prefix,
            fields="items(name,size,generation,crc32c,updated),nextPageToken",
            page_token=token,
            timeout=this.timeout,
            retry=None,
        )
        entries = []
        for blob in next(found.pages):
            name = blob.name[len(self._base) :]
            if name:  # the placeholder of the root itself has none
                modified = blob.updated.timestamp() if blob.updated else 0.0
                crc = blob.crc32c or ""
                entries.append(Entry(name, blob.size, int(blob.generation), crc, modified))
        return _Page(entries, found.next_page_token)

    def read(self, name: str, entry: Entry | None = None) -> bytes:
        """Download one object, its CRC32C checked by the client and against `entry`."""

        def download(this: Try) -> bytes:
            generation = entry.generation if entry else None
            blob = self._bucket.blob(self._base + name, generation=generation)
            # Raw: an object stored gzipped keeps the bytes that its checksum is of.
            data: bytes = blob.download_as_bytes(
                raw_download=True, checksum="crc32c", timeout=this.timeout, retry=None
            )
            if entry and entry.crc32c and crc32c(data) != entry.crc32c:
                raise DataCorruption(None, "the bytes that arrived are not those of the listing")
            return data

        return self._send(name, "read", download)

    def write(self, name: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        """Upload one object, its CRC32C checked by the server and in its answer."""
        self._upload(name, data, 0 if if_absent else None)

    def replace(self, name: str, data: bytes, entry: Entry | None) -> None:
        """Upload with the generation that was read as the precondition, 0 being none."""
        self._upload(name, data, entry.generation if entry else 0)

    def _upload(self, name: str, data: bytes | Path, generation: int | None) -> None:
        contents = data.read_bytes() if isinstance(data, Path) else data
        checksum = crc32c(contents)

        def upload(this: Try) -> None:
            nonlocal generation
            blob = self._bucket.blob(self._base + name)
            with self._ours_is_fine(name, len(contents), checksum, this):
                blob.upload_from_string(
                    contents,
                    "application/json" if name.endswith(".json") else "application/octet-stream",
                    checksum="crc32c",
                    crc32c_checksum_value=checksum,
                    if_generation_match=generation,
                    timeout=this.timeout,
                    retry=None,
                )
                if blob.crc32c and blob.crc32c != checksum:
                    # GCS itself refuses such an upload. What an emulator has stored instead is
                    # ours, so the next try may replace it, and nothing else.
                    generation = generation if generation is None else blob.generation
                    raise DataCorruption(None, "what was stored is not what was sent")

        self._send(name, "write", upload)

    @contextlib.contextmanager
    def _ours_is_fine(self, name: str, size: int, checksum: str, this: Try) -> Iterator[None]:
        """Take a failed precondition for success where an earlier try has stored that content.

        The server may have carried out a try whose answer was lost. The first try has none before
        it, so there it is a conflict. Later, equal content is as good as ours: what two jobs must
        not both believe to have made (a claim) has the id of its run in it.
        """
        try:
            yield
        except api.PreconditionFailed:
            if this.number == 1:
                raise
            found = self._bucket.get_blob(self._base + name, timeout=this.timeout, retry=None)
            if found is None or (found.size, found.crc32c) != (size, checksum):
                raise

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
            self._send(name, "copy", partial(self._copy, entry, name))
        if entries:  # what made it whole goes first, so that no half of it looks like all of it
            self.delete_tree(source, first=entries[-1].name.removeprefix(prefix))

    def _copy(self, entry: Entry, name: str, this: Try) -> None:
        with self._ours_is_fine(name, entry.size, entry.crc32c, this):
            self._bucket.copy_blob(
                self._bucket.blob(self._base + entry.name),
                self._bucket,
                self._base + name,
                if_generation_match=0,
                if_source_generation_match=entry.generation,
                timeout=this.timeout,
                retry=None,
            )

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

        def remove(this: Try) -> None:
            self._bucket.blob(self._base + name).delete(timeout=this.timeout, retry=None)

        with contextlib.suppress(FileNotFoundError):
            self._send(name, "delete", remove)

    def child(self, name: str) -> GcsStore:
        """Give the store rooted at the prefix `name` below this one."""
        return GcsStore(self._bucket, self._base + name, self._deadline)
