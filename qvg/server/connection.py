"""HTTP with a ComfyUI server, with the standard library alone, and with patience."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from ..errors import ServerError, shown
from ..json_text import read_json
from . import http_limits
from .address import is_on_this_machine
from .http_limits import ElsewhereError, SlowError, opener
from .login import EXAMPLE, VARIABLE

T = TypeVar("T")
RETRY_SECONDS = 0.5
CHUNK_BYTES = 1 << 20
# What is said of a run, of a queue with others' workflows, or of a class of nodes.
MOST_JSON_BYTES = 32 << 20
# Slower is silence: of an answer that is waited for, and of a file.
JSON_BYTES_PER_SECOND, FILE_BYTES_PER_SECOND = 16 << 10, 1 << 10
GATEWAY_ERRORS = (502, 503, 504)  # what a proxy says for a server that is not there
LOGIN_ERRORS = (401, 407)


class SilenceError(Exception):
    """Nobody answered, this once."""


class NotGivenError(Exception):
    """The server does not give a file out; its argument is the HTTP status."""


class Server:
    """A ComfyUI at `url`. Every question is asked again for up to `patience_seconds` while nobody answers; then ServerError.

    `say` is told when the server falls silent and when it is back; `silences` counts how often that happened. `headers` go with
    every request, and to no other server.
    """

    def __init__(self, url: str, patience_seconds: float, say: Callable[[str], None], headers: Mapping[str, str] | None = None):
        self.url, self.patience_seconds, self.say = url, patience_seconds, say
        self.headers = dict(headers or {})
        self.silences = 0
        proxies = not is_on_this_machine(url)
        self._openers = [opener(url, proxies, rate) for rate in (JSON_BYTES_PER_SECOND, FILE_BYTES_PER_SECOND)]
        for each in self._openers:
            each.addheaders = [("User-Agent", "qvg"), *self.headers.items()]

    def identify(self) -> str:
        """ComfyUI's version. Asked once: a server that is not there at the beginning is not waited for."""
        try:
            answer = self.ask("/system_stats")
        except SilenceError as silence:
            hint = "start ComfyUI there, or name another --server"
            raise ServerError(f"no server answers at {self.url} ({silence}); {hint}") from None
        system = answer.get("system") if isinstance(answer, dict) else None
        if not isinstance(system, dict) or "comfyui_version" not in system:
            raise self.stranger("no JSON of ComfyUI's")
        return shown(system["comfyui_version"], 40)

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`, waited for. ServerError."""
        return self.patiently(lambda: self.ask(path))

    def ask(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`, asked for once. SilenceError; ServerError where no ComfyUI answers."""
        try:
            with self._open(self.url + path) as answer:
                body = self._read_json(answer)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 403:
                    raise self._login(403) from None
                raise self.stranger(f"HTTP {error.code} to {path}") from None
        try:
            found = read_json(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self.stranger("no JSON of ComfyUI's")
        return found

    def post(self, path: str, data: Any) -> tuple[int, Any]:
        """(status code, JSON of the answer or None). Asked once: what changes something may have been heard. SilenceError."""
        request = urllib.request.Request(self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"})
        try:
            with self._open(request) as answer:
                return int(answer.status), _parsed(self._read_json(answer))
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _parsed(self._read_json(error))

    def upload(self, name: str, content: bytes) -> str:
        """Put a picture among the server's inputs, over one of the same name. -> what Load Image calls it there. ServerError."""
        return self.patiently(lambda: self._upload(name, content))

    def download(self, query: dict[str, str], target: Path) -> None:
        """What /view has under `query`, written to `target`. NotGivenError, ServerError; OSError where it cannot be written."""
        self.patiently(lambda: self._download(f"/view?{urlencode(query, errors='replace')}", target))

    def patiently(self, call: Callable[[], T]) -> T:
        """`call()`, again and again while it meets SilenceError."""
        try:
            return call()
        except SilenceError as silence:
            reason = silence
        self.silences += 1
        self.say(f"{self.url} does not answer ({reason}); waiting up to {self.patience_seconds:g} s for it, Ctrl-C ends that")
        deadline = time.monotonic() + self.patience_seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(RETRY_SECONDS, left))
            try:
                result = call()
            except SilenceError as silence:
                reason = silence
                continue
            self.say(f"{self.url} answers again")
            return result
        way_out = "check the server, or raise --timeout; a run that it was given may still go on there"
        raise ServerError(f"{self.url} has given no whole answer for {self.patience_seconds:g} s ({reason}); {way_out}")

    def stranger(self, what: str) -> ServerError:
        """The error for a server that is no ComfyUI."""
        return ServerError(f"{self.url} answers, but not as ComfyUI does ({what}); check host and port of --server")

    def _login(self, code: int) -> ServerError:
        refused = "does not take the login that it was given" if self.headers else "asks for a login"
        return ServerError(f"{self.url} {refused} (HTTP {code}); give one with --header {EXAMPLE}, or in the variable {VARIABLE}")

    def _open(self, request: urllib.request.Request | str, file: bool = False) -> Any:
        """The answer. SilenceError, ServerError; HTTPError, which is an answer too, but for a proxy's word for silence."""
        try:
            return self._openers[file].open(request, timeout=http_limits.ANSWER_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code in GATEWAY_ERRORS:
                raise SilenceError(f"HTTP {error.code}") from None
            if error.code in LOGIN_ERRORS:
                raise self._login(error.code) from None
            raise
        except ElsewhereError:
            raise
        except OSError as error:
            raise SilenceError(_reason(error)) from None
        except (http.client.HTTPException, ValueError):
            raise self.stranger("not even HTTP") from None

    def _read_json(self, answer: Any) -> bytes:
        """All of an answer. SilenceError; ServerError where it does not end."""
        body = _read(answer, MOST_JSON_BYTES + 1)
        if len(body) > MOST_JSON_BYTES:
            raise self.stranger(f"more than {MOST_JSON_BYTES >> 20} MiB of JSON")
        expected = _length(answer)
        if expected is not None and len(body) < expected:
            raise SilenceError("the answer broke off")
        return body

    def _upload(self, name: str, content: bytes) -> str:
        mark = hashlib.sha256(content).hexdigest()
        parts = [
            f'--{mark}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n',
            f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n",
        ]
        body = "".join(parts).encode() + content + f"\r\n--{mark}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        try:
            with self._open(urllib.request.Request(self.url + "/upload/image", body, kind)) as answer:
                found = _parsed(self._read_json(answer))
        except urllib.error.HTTPError as error:
            with error:
                raise self.stranger(f"HTTP {error.code} to /upload/image") from None
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            raise self.stranger("no name of what was uploaded")
        folder = found.get("subfolder")
        return f"{folder}/{found['name']}" if folder else found["name"]

    def _download(self, path: str, target: Path) -> None:
        try:
            with self._open(self.url + path, file=True) as answer, target.open("wb") as file:
                expected, written = _length(answer), 0
                if expected is None and "Content-Length" in answer.headers:
                    raise self.stranger(f"a file of {shown(answer.headers['Content-Length'], 20)!r} bytes")
                while chunk := _read(answer, CHUNK_BYTES):
                    written += file.write(chunk)
        except urllib.error.HTTPError as error:
            with error:
                raise NotGivenError(error.code) from None
        if expected is not None and written != expected:  # a connection that breaks off looks like the end of the file
            raise SilenceError(f"{written} of {expected} bytes came")


def _length(answer: Any) -> int | None:
    """How many bytes an answer says that it has; None where it says nothing, or nothing of use."""
    text = answer.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _read(answer: Any, size: int) -> bytes:
    """The next bytes of an answer. SilenceError: what goes wrong here is not taken for what goes wrong while they are written."""
    try:
        return bytes(answer.read(size))
    except OSError as error:
        raise SilenceError(_reason(error)) from None
    except (http.client.HTTPException, ValueError):
        raise SilenceError("the answer broke off") from None


def _parsed(body: bytes) -> Any:
    try:
        return read_json(body)
    except ValueError:
        return None


def _reason(error: BaseException) -> str:
    """A few words on why nobody answered."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    if isinstance(cause, SlowError):
        return "its answer comes too slowly"
    if isinstance(cause, TimeoutError):
        return f"no answer in {http_limits.ANSWER_SECONDS} s"
    if isinstance(cause, ConnectionError):
        return "connection broken off"
    lines = (getattr(cause, "strerror", None) or str(cause)).splitlines()
    return shown(lines[0] if lines else type(cause).__name__, 120)
