"""How a request to Google Cloud Storage is tried, and what its failures are called here.

The SDK's own backoff runs around whole tries, each a fresh one with the SDK's inner retries off. So
what the SDK's policy leaves out (a damaged body, an error of urllib3) is tried again as well, and
no try resumes a damaged one.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import google.auth.exceptions
import requests
import urllib3
from google.api_core import exceptions as api
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from job.errors import ConfigError, UnavailableError, brief
from job.guard import beat

T = TypeVar("T")

# Seconds without a sign of life that end a single try, at most; a tenth of the deadline if shorter.
SILENCE = 60.0

# The IAM role that grants what each of our verbs needs, for the message of a 403.
ROLES = {
    "list": "roles/storage.objectViewer",
    "read": "roles/storage.objectViewer",
    "write": "roles/storage.objectUser",
    "copy": "roles/storage.objectUser",
    "delete": "roles/storage.objectUser",
}

# What the next try may mend, beside what the SDK's policy takes for that.
PASSING = (
    api.ServerError,
    DataCorruption,
    google.auth.exceptions.TransportError,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
    requests.exceptions.JSONDecodeError,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)

# Servers that a request was given up on and that have not answered since: what a job does on its
# way out (save, clean up) must not wait for a whole deadline each time.
_out: set[str] = set()


@dataclass(frozen=True, slots=True)
class Try:
    """One try of a request: its number, from 1 on, and its (connect, read) time-outs in seconds."""

    number: int
    timeout: tuple[float, float]


def send(request: Callable[[Try], T], *, uri: str, verb: str, server: str, deadline: float) -> T:
    """Try a request until it succeeds, fails for good, or has been tried for `deadline` seconds.

    `uri` and `verb` (a key of `ROLES`) are for the messages; `server` is where it goes to.

    Raises UnavailableError when the time is up; see `translated` for what no retry mends.
    """
    deadline = deadline / 10 if server in _out else deadline
    start = time.monotonic()
    tries = 0

    def once() -> T:
        nonlocal tries
        tries += 1
        left = start + deadline - time.monotonic()
        seconds = max(0.1, min(left, deadline / 10, SILENCE))
        return request(Try(tries, (seconds, seconds)))

    # The policy gives up before a pause that would end too late, so pauses are to be short beside
    # the deadline.
    policy = DEFAULT_RETRY.with_predicate(_may_pass).with_timeout(deadline)
    policy = policy.with_delay(initial=min(1.0, deadline / 10), maximum=min(60.0, deadline / 10))
    with translated(uri, verb):
        try:
            answer: T = _aside(policy(once))
        except api.RetryError as error:
            _out.add(server)
            tried = f"{tries} tries in {time.monotonic() - start:.0f} s"
            raise _unavailable(uri, f"{brief(error.cause or error)} ({tried})") from error.cause
    _out.discard(server)
    beat()
    return answer


def _aside(request: Callable[[], T]) -> T:
    """Do what the main thread asks for in another one.

    A signal's exception in the main thread may arrive right after a lock of the connection pool was
    taken, which would then never be given back. A wait for another thread can be left.
    """
    if threading.current_thread() is not threading.main_thread():
        return request()
    # A thread for each: one that is stuck keeps no later request, and a forked process has none.
    pool = ThreadPoolExecutor(1, thread_name_prefix="storage")
    answer = pool.submit(request)
    pool.shutdown(wait=False)
    return answer.result()


def _may_pass(error: Exception) -> bool:
    """Tell whether the next try may succeed where this one failed."""
    if isinstance(error, google.auth.exceptions.RefreshError):
        # The metadata server's silence arrives as the cause of this one.
        return error.retryable or isinstance(error.__cause__, google.auth.exceptions.TransportError)
    if isinstance(error, api.BadRequest):  # how GCS refuses what was damaged on its way there
        return "doesn't match calculated" in str(error)
    return isinstance(error, PASSING) or bool(DEFAULT_RETRY._predicate(error))


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
    except google.auth.exceptions.RefreshError as error:
        raise ConfigError(
            f"{uri}: the credentials were refused: {brief(error)}",
            hint="check that the service account and its key are there and enabled",
        ) from error
    except api.ClientError as error:
        raise ConfigError(f"{uri}: storage refused to {verb} it: {error.message}") from error
    except (
        api.GoogleAPIError,
        google.auth.exceptions.GoogleAuthError,
        requests.RequestException,
    ) as error:
        raise _unavailable(uri, brief(error)) from error


def _unavailable(uri: str, what: str) -> UnavailableError:
    return UnavailableError(
        f"{uri}: storage is out: {what}", hint="the same command may work later"
    )
