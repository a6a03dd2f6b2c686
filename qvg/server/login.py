"""What a server behind a login is told with every request: `--header`, an environment variable, or a name and password in the
address."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError, shown

# One header a line; unlike an argument it is seen by nobody who lists the machine's processes.
VARIABLE = "QVG_HEADERS"
EXAMPLE = "'Authorization: Bearer ...'"
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
# What a request says of itself.
_OURS = ("host", "content-length", "content-type", "transfer-encoding", "connection", "upgrade")


def login_headers(given: Sequence[str], address: str) -> dict[str, str]:
    """Headers by name, from the address, the variable and what was given, the last of a name. ConfigError, which tells no
    value."""
    headers = {}
    if (basic := _of_address(address)) is not None:
        headers["Authorization"] = basic
    for line in os.environ.get(VARIABLE, "").splitlines():
        if line.strip():
            headers |= _header(line, VARIABLE)
    for line in given:
        headers |= _header(line, "--header")
    return headers


def without_login(address: str) -> str:
    """An address as it may be shown and kept."""
    start, at, rest = address.rpartition("@")
    scheme, separator, _ = start.partition("://")
    return f"{scheme}{separator}{rest}" if at and separator else rest if at else address


def _of_address(address: str) -> str | None:
    if "@" not in address:
        return None
    try:
        parts = urlsplit(address.strip() if "://" in address else f"http://{address.strip()}")
        name, password = unquote(parts.username or ""), unquote(parts.password or "")
    except ValueError:
        return None  # the address is refused where it is read
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def _header(line: str, source: str) -> dict[str, str]:
    name, colon, value = line.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value) or not value:
        raise ConfigError(f"a header in {source} ({shown(name, 40)!r}) is not NAME: VALUE on one line; for example {EXAMPLE}")
    if name.lower() in _OURS:
        raise ConfigError(f"the header {name!r} in {source} is one that every request has of its own; leave it out")
    return {name.title(): value}
