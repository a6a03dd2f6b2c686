"""HTTP with a ComfyUI server, with the standard library alone, and with patience."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from ..errors import ServerError
from .address import is_on_this_machine

T = TypeVar("T")
ANSWER_SECONDS = 20  # a server that computes on all cores answers late
RETRY_SECONDS = 0.5
CHUNK_BYTES = 1 << 20
GATEWAY_ERRORS = (502, 503, 504)  # what a proxy says for a server that is not there


class SilenceError(Exception):
    """Nobody answered, this once."""


class NotGivenError(Exception):
    """The server does not give a file out; its argument is the HTTP status."""


class Server:
    """A ComfyUI at `url`. Every question is asked again for up to `patience_seconds` while nobody answers; then ServerError.

    `say` is told when the server falls silent and when it is back; `silences` counts how often that happened.
    """

    def __init__(self, url: str, patience_seconds: float, say: Callable[[str], None]):
        self.url, self.patience_seconds, self.say = url, patience_seconds, say
        self.silences = 0
        proxies = [urllib.request.ProxyHandler({})] if is_on_this_machine(url) else []
        self._opener = urllib.request.build_opener(*proxies)

    def identify(self) -> str:
        """ComfyUI's version. Asked once: a server that is not there at the beginning is not waited for."""
        try:
            answer = self.ask("/system_stats")
        except SilenceError as silence:
            hint = "start ComfyUI there, or name another --server"
            raise ServerError(f"no server answers at {self.url} ({silence}); {hint}") from None
        try:
            return str(answer["system"]["comfyui_version"])
        except (KeyError, TypeError):
            raise self.stranger("no JSON of ComfyUI's") from None

    def get(self, path: str) -> Any:
        """The JSON at `path`, waited for. ServerError."""
        return self.patiently(lambda: self.ask(path))

    def ask(self, path: str) -> Any:
        """The JSON at `path`, asked for once. SilenceError; ServerError where no ComfyUI answers."""
        try:
            with self._open(self.url + path) as answer:
                body = _read(answer, None)
        except urllib.error.HTTPError as error:
            with error:
                raise self.stranger(f"HTTP {error.code} to {path}") from None
        try:
            return json.loads(body)
        except ValueError:
            raise self.stranger("no JSON of ComfyUI's") from None

    def post(self, path: str, data: Any) -> tuple[int, Any]:
        """(status code, JSON of the answer or None). Asked once: what changes something may have been heard. SilenceError."""
        request = urllib.request.Request(self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"})
        try:
            with self._open(request) as answer:
                return int(answer.status), _parsed(_read(answer, None))
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _parsed(_read(error, None))

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
        raise ServerError(f"{self.url} has not answered for {self.patience_seconds:g} s ({reason}); {way_out}")

    def stranger(self, what: str) -> ServerError:
        """The error for a server that is no ComfyUI."""
        return ServerError(f"{self.url} answers, but not as ComfyUI does ({what}); check host and port of --server")

    def _open(self, request: urllib.request.Request | str) -> Any:
        """The answer. SilenceError; HTTPError, which is an answer too, where it is not a proxy's word for silence."""
        try:
            return self._opener.open(request, timeout=ANSWER_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code in GATEWAY_ERRORS:
                raise SilenceError(f"HTTP {error.code}") from None
            raise
        except OSError as error:
            raise SilenceError(_reason(error)) from None
        except http.client.HTTPException:
            raise self.stranger("not even HTTP") from None

    def _download(self, path: str, target: Path) -> None:
        try:
            with self._open(self.url + path) as answer, target.open("wb") as file:
                expected, written = answer.headers.get("Content-Length"), 0
                while chunk := _read(answer, CHUNK_BYTES):
                    written += file.write(chunk)
        except urllib.error.HTTPError as error:
            with error:
                raise NotGivenError(error.code) from None
        if expected is not None and written != int(expected):  # a connection that breaks off looks like the end of the file
            raise SilenceError(f"{written} of {expected} bytes came")


def _read(answer: Any, size: int | None) -> bytes:
    """The next bytes of an answer. SilenceError: what goes wrong here is not taken for what goes wrong while they are written."""
    try:
        return bytes(answer.read(size))
    except OSError as error:
        raise SilenceError(_reason(error)) from None
    except http.client.HTTPException:
        raise SilenceError("the answer broke off") from None


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _reason(error: BaseException) -> str:
    """A few words on why nobody answered."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    if isinstance(cause, TimeoutError):
        return f"no answer in {ANSWER_SECONDS} s"
    if isinstance(cause, ConnectionError):
        return "connection broken off"
    return (getattr(cause, "strerror", None) or str(cause) or type(cause).__name__).splitlines()[0]
