"""The nodes, imported over a stand-in for ComfyUI's interface."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from . import standin as _standin


@pytest.fixture(scope="session")
def standin() -> ModuleType:
    """tests/nodes/standin.py."""
    return _standin


@pytest.fixture(scope="session")
def nodes() -> Iterator[Any]:
    """The package `nodes`; nothing of it, nor of the stand-in, stays in sys.modules."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in _standin.modules().items():
            patch.setitem(sys.modules, name, module)
        yield importlib.import_module("comfyui_qvg.nodes")
        for name in [name for name in sys.modules if name.startswith("comfyui_qvg.nodes")]:
            del sys.modules[name]
