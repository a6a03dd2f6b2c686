"""What people type for a server -> where it is."""

from __future__ import annotations

import ipaddress
from urllib.parse import quote, urlsplit

from ..errors import ConfigError, quoted
from .login import without_login

DEFAULT_PORT = 8188  # ComfyUI's own
DEFAULT_SERVER = f"127.0.0.1:{DEFAULT_PORT}"
EXAMPLE = "127.0.0.1:8188 or https://example.org/comfy"


def server_url(text: str) -> str:
    """`HOST`, `HOST:PORT` or `http(s)://HOST[:PORT][/PATH]` -> URL without a slash at its end.

    Without a scheme it is http, and the port ComfyUI's own unless named. A name and password in front of the host are left out
    (`login.py` has them). ConfigError for anything else.
    """
    typed = without_login(text.strip())
    has_scheme = "://" in typed
    refusal = ConfigError(f"server is {quoted(typed)}, but must be HOST:PORT or an http(s) address; for example {EXAMPLE}")
    try:
        parts = urlsplit(typed if has_scheme else f"http://{typed}")
        port = parts.port
        (parts.hostname or "").encode("idna")  # as it is looked up: no empty part, none of more than 63 letters
    except ValueError:
        raise refusal from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise refusal
    if any(letter.isspace() for letter in typed) or (parts.path.strip("/") and not has_scheme):
        raise refusal
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if port is None and not has_scheme:
        port = DEFAULT_PORT
    return (
        f"{parts.scheme}://{host}"
        + (f":{port}" if port is not None else "")
        + quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    )


def is_on_this_machine(url: str) -> bool:
    """Whether the server is this machine: no proxy may come between."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
