"""Which folders of custom_nodes are copies of this pack that ComfyUI loads: one that it does not must not be waited for."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest

WHOLE = ("__init__.py", "nodes/__init__.py", "qvg/__init__.py", "kernels/__init__.py")


@pytest.fixture
def copies(nodes: Any) -> Any:
    return importlib.import_module("comfyui_qvg.nodes.comfy.copies")


def copied(folder: Path, without: str = "") -> Path:
    for name in WHOLE:
        if name != without:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    (folder / "nodes").mkdir(exist_ok=True)
    (folder / "nodes" / "cache.py").write_text('node_id="QVGKVCache"')
    return folder


def test_what_is_off_or_made_by_half_is_no_copy(copies: Any, tmp_path: Path) -> None:
    whole = {copied(tmp_path / name) for name in ("comfyui-qvg", "comfyui-qvg.bak")}
    copied(tmp_path / "qvg.disabled")
    for name in WHOLE:
        copied(tmp_path / f"half of {name.replace('/', ' ')}", without=name)
    (tmp_path / "another pack").mkdir()
    assert set(copies.found_in([str(tmp_path), str(tmp_path / "gone")])) == whole


def test_only_those_count_that_comfyui_was_told_to_load(copies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --disable-all-custom-nodes --whitelist-custom-nodes comfyui-qvg the backup is not loaded, and nothing had nodes."""
    mine, _ = (copied(tmp_path / name) for name in ("comfyui-qvg", "zz-backup"))
    options = types.ModuleType("comfy.cli_args")
    options.args = types.SimpleNamespace(disable_all_custom_nodes=True, whitelist_custom_nodes=["comfyui-qvg"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy", types.ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.cli_args", options)
    assert copies.found_in([str(tmp_path)]) == [mine]
    monkeypatch.setattr(sys.modules["folder_paths"], "get_folder_paths", lambda folder: [str(tmp_path)])
    monkeypatch.setattr(copies, "HERE", mine)
    assert copies.counts()
