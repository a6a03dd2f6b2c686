"""What a server tells while it works."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import dataclass, field
from typing import Any

TEXT_EVENT = 3  # ComfyUI's number for a line of text on a node
SHAKE_SECONDS = 10
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
        raw = json.loads(message)
        return Event(raw["type"], raw["data"]) if isinstance(raw["data"], dict) else None
    except (ValueError, KeyError, TypeError):
        return None


def _parse_binary(message: bytes) -> Event | None:
    """A text is: 4 bytes kind of event, 4 bytes length of the node's id (both big-endian), the id, the text."""
    if len(message) < 8:
        return None
    kind, length = struct.unpack(">II", message[:8])
    if kind != TEXT_EVENT:
        return None
    node, text = message[8 : 8 + length], message[8 + length :]
    return Event("text", {"node": node.decode("utf-8", "replace"), "text": text.decode("utf-8", "replace")})


class Events:
    """The events for `client` of the server at `url`.

    Without the library, or where the server opens no websocket, there are none: HTTP must be asked, single steps are not seen.
    """

    def __init__(self, url: str, client: str):
        self._url = f"ws{url.removeprefix('http')}/ws?clientId={client}"
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
        try:
            self._socket = websocket.create_connection(self._url, timeout=SHAKE_SECONDS)
        except websocket.WebSocketBadStatusException as error:
            self.missing = f"no progress of single steps: the server opens no websocket (HTTP {error.status_code})"
        except (OSError, websocket.WebSocketException):
            pass  # not now; HTTP will find out whether the server is gone

    def next(self, seconds: float) -> Event | None:
        """The next event, or None when none came for so long."""
        if self._socket is None:
            time.sleep(seconds)
            return None
        import websocket

        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                message = self._socket.recv()
            except websocket.WebSocketTimeoutException:
                return None
            except (OSError, websocket.WebSocketException):
                message = ""
            if not message:  # an orderly end is an empty message
                self.dropped = True
                self.close()
                return None
            event = parse(message)
            if event is not None:
                return event
        return None

    def close(self) -> None:
        """Stop listening."""
        if self._socket is not None:
            self._socket.shutdown()
            self._socket = None
