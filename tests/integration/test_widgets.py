"""Widgets of all nodes, typed and linked, with what they take and what they must not: a sample of tools/fuzz_widgets.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from . import tiny_wan
from .client import ROOT, Client

SAMPLE = 150


def _tool() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz_widgets", ROOT / "tools" / "fuzz_widgets.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True, scope="module")
def checkpoint(server: Client) -> Path:
    file = server.base / "models" / "diffusion_models" / "self_forcing.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    tiny_wan.write(file)
    return file


def test_a_sample_of_all_widgets(server: Client, record_property: Any) -> None:
    tool = _tool()
    ends, wrong = tool.fuzz(tool.Server(server.url), seed=16, count=SAMPLE)
    record_property("ends", dict(ends))
    assert wrong == [] and ends.total() == SAMPLE and len(ends) == 3
