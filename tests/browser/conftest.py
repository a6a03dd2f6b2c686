"""A real page of a real server in a real browser; without one of them every test here is skipped and says what is missing.

CHROMIUM_PATH names the browser (default: chromium, chromium-browser, google-chrome, ... on PATH). ComfyUI: tests/integration.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

if sys.platform == "win32":
    pytest.skip("the browser is driven over a POSIX pipe", allow_module_level=True)

from ..integration.client import Client
from ..integration.conftest import server
from .chromium import Chromium, find_chromium
from .comfy_page import ComfyPage, opened

__all__ = ["server"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Chromium]:
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on PATH; install chromium, or set CHROMIUM_PATH to a Chromium or Chrome")
    with Chromium(path) as running:
        yield running


@pytest.fixture
def page(browser: Chromium, server: Client) -> Iterator[ComfyPage]:
    """A page of its own."""
    with opened(browser, server.url) as page:
        yield page


@pytest.fixture(scope="module")
def same_page(browser: Chromium, server: Client) -> Iterator[ComfyPage]:
    """One page for all tests that only load a graph and look at it: opening one takes seconds."""
    with opened(browser, server.url) as page:
        yield page
