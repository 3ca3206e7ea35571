"""No secret leaves the job: by form, by property, and by looking through all that a job leaves."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import ROOT
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from modules import pack, write_pooling

from job.redact import redact

SECRET = "hUnTeR2hUnTeR2hUnTeR2hUnTeR2"  # noqa: S105 - a made-up one, to be looked for
PEM = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n{SECRET}=\n-----END PRIVATE KEY-----\n"

FORMS = (
    "https://user:{}@host:8501/m.tar.gz",
    "https://{}@host/m.tar.gz",
    "https://user:a@{}@host/m",
    "nonnumeric port: 'user:{}@host'",
    "https://host/o?X-Goog-Algorithm=GOOG4&X-Goog-Credential={}&X-Goog-Signature={}&n=1",
    "https://host/o?x=1&amp;X-Amz-Security-Token={}",
    "https://host/?next=https%3A%2F%2Fh%3Fx%3D1%26X-Amz-Signature%3D{}",
    "https://host/?sig={}&se=1",
    "https://host/?a=1&token={}",
    "https://host/?a=1&KEY={}",
    "https://host/upload/b/o?uploadType=resumable&upload_id={}",
    "grant_type=refresh&client_secret={}&refresh_token={}",
    "Authorization: Bearer {}",
    "authorization: Basic {}",
    "{{'Authorization': 'Bearer {}', 'accept': '*/*'}}",
    "{{'Authorization': b'Token {}'}}",
    "(b'authorization', b'Bearer {}')",
    "got Bearer {} instead",
    "ya29.{}",
    "1//{}{}",
    "GOCSPX-{}",
    "eyJhbGciOiJSUzI1NiJ9.{}.{}-_",
    '{{"client_secret": "{}", "token_uri": "https://host/t"}}',
    "{{'refresh_token': '{}'}}",
    '{{"message": "{{\\"access_token\\": \\"{}\\"}}"}}',
    "password={}",
)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_secret_is_taken_out(form: str) -> None:
    """The secret is gone, what stands around it is not, and a second time changes nothing."""
    text = f"storage is out: {form.replace('{}', SECRET).replace('{{', '{').replace('}}', '}')} end"
    redacted = redact(text)
    assert SECRET not in redacted
    assert "[redacted]" in redacted
    assert redacted.startswith("storage is out: ")
    assert redacted.endswith(" end")
    assert redact(redacted) == redacted
    assert SECRET not in redact(text[: text.index(SECRET) + len(SECRET)]) or "@" in form


def test_private_keys_are_taken_out_of_text_and_of_json() -> None:
    """PEM blocks go, whole or cut, and JSON that they were in is still JSON."""
    account = {"type": "service_account", "private_key_id": SECRET, "private_key": PEM, "n": 1}
    for text in (PEM, PEM[:60], PEM.replace("PRIVATE", "RSA PRIVATE"), repr(account)):
        assert SECRET[:8] not in redact(f"a {text} b")
    for layers in (json.dumps(account), json.dumps({"message": json.dumps(account)})):
        redacted = redact(layers)
        assert SECRET not in redacted
        json.loads(redacted)
    assert json.loads(redact(json.dumps(account)))["n"] == 1


ORDINARY = (
    "gs://bucket/some/na@me/IMG_1@2x.jpg",
    "http://127.0.0.1:8501/v1/models/squares:predict",
    "https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5?tf-hub-format=compressed",
    "file:///data/key=value/token/secret/authorization.jpg",
    "/data/model-key.json: Permission denied",
    "rows = sorted(rows, key=lambda row: row.token)",
    "basic authentication and bearer tokens need authorization",
    "weights have sha256 " + "0123456789abcdef" * 4,
    "--backbone user@host, --serving-url http://h:1, mail me@example.org",
    '{"token_uri": "https://oauth2.example/token", "labels": ["key", "secret"]}',
    "CRC32C 1//0g== of eyJ.jpg and ya29 in 'AIza'",
)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_unchanged(text: str) -> None:
    """URIs, digests, names and prose with the same words in them stay."""
    assert redact(text) == text


NAME = st.text(
    st.characters(codec="utf-8", exclude_characters="?&=:\"'\\", exclude_categories=["C"])
)


@given(st.sampled_from(["gs://bucket/", "/data/", "file:///", "", "http://h:1/"]), st.lists(NAME))
def test_paths_of_any_names_are_unchanged(start: str, names: list[str]) -> None:
    """Whatever an object or a folder is called, its URI is shown as it is."""
    uri = start + "/".join(name.replace("/", "_") for name in names)
    if not start.endswith("/") and "://" in uri:
        return
    assert redact(uri) == uri


@given(st.text(), st.text())
def test_redacted_json_is_json_and_redacting_is_done_once(key: str, value: str) -> None:
    """Any text is taken; redacting again changes nothing, and a log line stays one."""
    line = json.dumps({key: value, "url": f"https://{value}", "password": value})
    assert isinstance(json.loads(redact(line)), dict)
    assert redact(redact(line)) == redact(line)
    assert redact(redact(value)) == redact(value)


PIECES = (
    "a", "://", "@", "-", " ", "\\", '"', "?key=", "&", "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN ", "eyJ", "-eyJ", "eyJaaaaaa.", "authorization: ", "Bearer ", "X-Amz-", "ya29.",
    "1//", "AIza",
    '"token": "', "password=", "nonnumeric port: '", "\n",
)  # fmt: skip


@pytest.mark.timeout(120)
@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=3))
def test_time_is_linear(pieces: list[str]) -> None:
    """Text that is made to lead the patterns astray takes no more than a second in 100 kB."""
    unit = "".join(pieces)
    start = time.process_time()
    redact(unit * (10**5 // len(unit)))
    assert time.process_time() - start < 1


def test_a_megabyte_takes_seconds() -> None:
    """The worst units of all, a megabyte of each."""
    for piece in PIECES:
        start = time.process_time()
        redact(piece * (10**6 // len(piece)))
        assert time.process_time() - start < 5, piece


# --- a whole job ----------------------------------------------------------------------------------


@contextmanager
def server(answers: dict[str, tuple[int, bytes]]) -> Iterator[str]:
    """Keep a web server alive that answers by the beginning of the path; gives host:port.

    What it was sent is in its answers to what it does not know: errors that quote the request.
    """

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            sent = self.rfile.read(length).decode(errors="replace")
            quoted = f"400 at {self.path} for {self.headers['Authorization']}: {sent}"
            status, body = 400, quoted.encode()
            for path, (known, content) in answers.items():
                if self.path.startswith(path):
                    status, body = known, content
            self.send_response(status, quoted.replace("\r", " ").replace("\n", " ")[:500])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - the names are http.server's

        def log_message(self, *_: Any) -> None:
            """Keep the test's output to itself."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def service_account(folder: Path, host: str) -> Path:
    """Write a service account's file with a real key of nobody's; `host` gives its tokens."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account", "project_id": "p", "private_key_id": SECRET,
        "private_key": key.decode(), "client_email": "nobody@example.org", "client_id": "1",
        "token_uri": f"http://{host}/token?client_secret={SECRET}",
    }  # fmt: skip
    path = folder / "account.json"
    path.write_text(json.dumps(account))
    return path


def left_behind(folder: Path, flags: list[str], environment: dict[str, str]) -> tuple[int, bytes]:
    """Run `python -m job run`: its exit code, and every byte that it wrote anywhere."""
    folder.mkdir()
    ended = subprocess.run(
        [sys.executable, "-m", "job", "run", "--name", "s", "--result-file", str(folder / "result"),
         *flags],
        cwd=ROOT, capture_output=True, timeout=240,
        env={k: v for k, v in os.environ.items() if k != "STORAGE_EMULATOR_HOST"} | environment,
    )  # fmt: skip
    written = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
    return ended.returncode, b"\n".join([ended.stdout, ended.stderr, *written])


def assert_no_secret(everything: bytes, *more: str) -> None:
    """Check that the secret, or a form of it, is nowhere; and that something was redacted."""
    for secret in (SECRET, base64.b64encode(f"user:{SECRET}".encode()).decode(), *more):
        place = everything.find(secret.encode())
        assert place < 0, everything[max(place - 300, 0) : place + 100]
    assert b"[redacted]" in everything


def test_nothing_that_a_good_run_leaves_has_a_secret(colours: Path, tmp_path: Path) -> None:
    """Logs, result, manifest and report of a version whose backbone's URL has a login and a key."""
    module = pack(write_pooling(tmp_path / "module"), tmp_path / "m.tar.gz").read_bytes()
    with server({"/m.tar.gz": (200, module)}) as host:
        url = f"http://user:{SECRET}@{host}/m.tar.gz?X-Goog-Signature={SECRET}&sig={SECRET}"
        out = tmp_path / "out"
        flags = ["--data", str(colours), "--models", str(out / "models"), "--backbone", url]
        code, everything = left_behind(out, flags, {})
    assert code == 0, everything[-3000:]
    assert list(out.rglob("saved_model.pb"))
    assert_no_secret(everything)


def test_nothing_that_a_failed_run_leaves_has_a_secret(colours: Path, tmp_path: Path) -> None:
    """Refused downloads, buckets, tokens and servers: their errors quote what they were sent."""
    module = pack(write_pooling(tmp_path / "module"), tmp_path / "m.tar.gz").read_bytes()
    with server({"/m.tar.gz": (200, module), "/broken": (200, b"nothing")}) as host:
        login, signed = f"http://user:{SECRET}@{host}", f"X-Goog-Signature={SECRET}"
        account = service_account(tmp_path, host)
        pem = json.loads(account.read_text())["private_key"].splitlines()[3]
        local = ["--data", str(colours), "--models", str(tmp_path / "models")]
        cases: dict[str, tuple[list[str], dict[str, str]]] = {
            "refused": ([*local, "--backbone", f"{login}/no?{signed}"], {}),
            "broken": ([*local, "--backbone", f"{login}/broken.tar.gz?{signed}"], {}),
            "misspelt": ([*local, "--backbone", f"http://user:{SECRET}@host:port/m?{signed}"], {}),
            "serving": ([*local, "--backbone", f"{login}/m.tar.gz?{signed}", "--serving-url", login,
                         "--serving-timeout", "1"], {}),
            "bucket": (["--data", "gs://bucket/data", "--models", "gs://bucket/models"],
                       {"STORAGE_EMULATOR_HOST": f"{login}/{signed}&upload_id={SECRET}"}),
            "account": (["--data", "gs://bucket/data", "--models", "gs://bucket/models"],
                        {"GOOGLE_APPLICATION_CREDENTIALS": str(account)}),
        }  # fmt: skip
        for name, (flags, environment) in cases.items():
            limits = ["--storage-deadline", "2"]
            code, everything = left_behind(tmp_path / name, flags + limits, environment)
            assert code not in (0, 1), (name, everything[-3000:])
            if name == "account":  # nothing of it is quoted but what the server was sent
                everything += b"[redacted]"
            assert_no_secret(everything, pem)
