"""HTTP of which every answer ends: bounded in bytes and in seconds, and from the server that was asked."""

from __future__ import annotations

import http.client
import io
import socket
import time
import urllib.request
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

from ..errors import ServerError, shown

ANSWER_SECONDS = 20  # a server that computes on all cores answers late


class SlowError(TimeoutError):
    """An answer has begun and does not go on as fast as it must."""


class ElsewhereError(ServerError):
    """The server sends us to another one, whose answer was not asked for. Holds `place`."""

    def __init__(self, url: str, place: str):
        self.place = shown(place, 120)
        super().__init__(f"{url} sends us elsewhere (to {self.place}); name that address as --server if it is ComfyUI's")


def opener(url: str, proxies: bool, bytes_per_second: float) -> urllib.request.OpenerDirector:
    """Asks the server at `url` and no other. An answer has ANSWER_SECONDS, and a second more for so many bytes."""
    kinds = [_clocked(kind, bytes_per_second) for kind in (http.client.HTTPConnection, http.client.HTTPSConnection)]

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(kinds[0], request)

    class Secure(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(cast(Any, kinds[1]), request)

    class SameServer(urllib.request.HTTPRedirectHandler):
        def http_error_302(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
            place = headers.get("Location") or headers.get("URI")
            if place is not None and (req.data is not None or not _is_at(url, req.full_url, place)):
                fp.close()
                raise ElsewhereError(url, place)
            return super().http_error_302(req, fp, code, msg, headers)

        http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    handlers: list[Any] = [Plain, Secure, SameServer]
    return urllib.request.build_opener(*handlers, *([] if proxies else [urllib.request.ProxyHandler({})]))


def _is_at(server: str, asked: str, place: str) -> bool:
    """Whether `place`, as an answer to what was asked names it, is on the server."""
    try:
        return _origin(urljoin(asked, place)) == _origin(server)
    except ValueError:
        return False


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _clocked(kind: type[http.client.HTTPConnection], bytes_per_second: float) -> type[http.client.HTTPConnection]:
    """Connections whose answers are read against a clock, their first lines included."""

    class Answer(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *rest: Any, **options: Any):
            super().__init__(sock, *rest, **options)
            raw = self.fp.detach()
            self.fp = io.BufferedReader(_Clock(raw, sock, bytes_per_second))

    return type(kind.__name__, (kind,), {"response_class": Answer})


class _Clock(io.RawIOBase):
    """What comes out of a socket, until it comes too slowly."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, bytes_per_second: float):
        self._raw, self._sock, self._rate = raw, sock, bytes_per_second
        self._deadline = time.monotonic() + ANSWER_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise SlowError
        self._sock.settimeout(min(ANSWER_SECONDS, left))
        count = self._raw.readinto(buffer)
        self._deadline += (count or 0) / self._rate
        return cast("int | None", count)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()
