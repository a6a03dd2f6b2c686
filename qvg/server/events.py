"""What a server tells while it works."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..json_text import read_json

TEXT_EVENT = 3  # ComfyUI's number for a line of text on a node
TEXT = "a node's text"  # what such an event is called here; no event in JSON is
SHAKE_SECONDS = 10
MOST_MESSAGE_BYTES = 64 << 20  # a preview of a large picture has some
LIBRARY = "websocket-client"


@dataclass(frozen=True)
class Event:
    """One message: its type, and its data as ComfyUI sends them."""

    kind: str
    data: dict[str, Any] = field(default_factory=dict)


def parse(message: str | bytes) -> Event | None:
    """A message as it came -> Event; None for pictures and for what cannot be read."""
    if isinstance(message, bytes):
        return _parse_binary(message)
    try:
        raw = read_json(message)
    except ValueError:
        return None
    kind, data = (raw.get("type"), raw.get("data")) if isinstance(raw, dict) else (None, None)
    return Event(kind, data) if isinstance(kind, str) and isinstance(data, dict) and kind != TEXT else None


def _parse_binary(message: bytes) -> Event | None:
    """A text is: 4 bytes kind of event, 4 bytes length of the node's id (both big-endian), the id, the text."""
    if len(message) < 8:
        return None
    kind, length = struct.unpack(">II", message[:8])
    if kind != TEXT_EVENT:
        return None
    node, text = message[8 : 8 + length], message[8 + length :]
    return Event(TEXT, {"node": node.decode("utf-8", "replace"), "text": text.decode("utf-8", "replace")})


class Events:
    """The events for `client` of the server at `url`.

    Without the library, or where the server opens no websocket, there are none: HTTP must be asked, single steps are not seen.
    """

    def __init__(self, url: str, client: str, headers: Mapping[str, str] | None = None):
        self._url = f"ws{url.removeprefix('http')}/ws?clientId={client}"
        self._headers = [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._socket: Any = None
        self.missing: str | None = None  # why there are no events
        self.dropped = False  # whether the server has broken a connection off
        self.reconnect()

    @property
    def connected(self) -> bool:
        """Whether events can come."""
        return self._socket is not None

    def reconnect(self) -> None:
        """Listen again, unless it is known that this cannot be."""
        if self.connected or self.missing:
            return
        try:
            import websocket
        except ImportError:
            self.missing = f"no progress of single steps without the package {LIBRARY} (pip install {LIBRARY})"
            return
        found = _bounded_socket()()
        found.settimeout(SHAKE_SECONDS)
        watch = threading.Timer(SHAKE_SECONDS, found.give_up)  # the library waits for each byte of the handshake anew
        watch.daemon = True
        watch.start()
        try:
            found.connect(self._url, header=self._headers, redirect_limit=0)
            self._socket = found
        except websocket.WebSocketBadStatusException as error:
            self.missing = f"no progress of single steps: the server opens no websocket (HTTP {error.status_code})"
        except Exception:  # a hostile handshake can raise anything
            pass  # not now; HTTP will find out whether the server is gone
        finally:
            watch.cancel()

    def next(self, seconds: float) -> Event | None:
        """The next event, or None when none came for so long."""
        if self._socket is None:
            time.sleep(seconds)
            return None
        import websocket

        deadline = self._socket.deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self._socket.recv()
            except websocket.WebSocketTimeoutException:
                return None
            except Exception:  # what is no websocket's language, too
                message = ""
            if not message:  # an orderly end is an empty message
                self.dropped = True
                self.close()
                time.sleep(max(0.0, left))  # who opens and drops again and again is not asked without end
                return None
            event = parse(message)
            if event is not None:
                return event
        return None

    def close(self) -> None:
        """Stop listening."""
        if self._socket is not None:
            with suppress(Exception):
                self._socket.shutdown()
            self._socket = None


@cache
def _bounded_socket() -> Any:
    """The library's websocket with an end to waiting and to the length of a message."""
    import websocket

    class Bounded(websocket.WebSocket):
        deadline = float("inf")

        def _recv(self, bufsize: int) -> bytes:
            joined = self.cont_frame.cont_data
            if max(self.frame_buffer.length or 0, len(joined[1]) if joined else 0) > MOST_MESSAGE_BYTES:
                raise websocket.WebSocketPayloadException("longer than any message of ComfyUI's")
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise websocket.WebSocketTimeoutException("not now")
            if left < float("inf"):
                self.settimeout(left)
            return bytes(super()._recv(bufsize))  # type: ignore[no-untyped-call,unused-ignore]

        def give_up(self) -> None:
            """End what waits, from another thread."""
            if self.sock is not None:
                with suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)

    return Bounded
