"""tools/damaged_checkpoints.py: a small sample of what it makes, and that it would notice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from comfyui_qvg.qvg.models.common import pickles, weight_files

from .helpers import ROOT, tool_module

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the tool ends what hangs by a signal that Windows does not have")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return tool_module("damaged_checkpoints", monkeypatch)


def test_every_kind_of_damage_once() -> None:
    command = [sys.executable, str(ROOT / "tools" / "damaged_checkpoints.py"), "--seed", "3", "--count", "32"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("32 files, 32 kinds of damage, seed 3: ") and " 0 wrong; " in ran.stdout and not ran.stderr


def test_the_same_seed_makes_the_same_files(tool: ModuleType, tmp_path: Path) -> None:
    """But for those of torch's old format, which numbers its tensors as they happen to lie in memory."""
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        outcomes = tool.run(12, 11, folder)
        files = sorted(path for path in folder.rglob("*.safetensors") if path.name != "out.safetensors")
        made.append([(path.relative_to(folder), path.read_bytes()) for path in files])
        assert len(outcomes) == 12 and not any(outcome.wrong for _, outcome in outcomes)
    assert made[0] == made[1] and len(made[0]) >= 4


def test_what_is_wrong_is_noticed(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = tmp_path / "self_forcing.pt", tmp_path / "out.safetensors"
    file.write_bytes(b"\x80\2" + b"]" * 100 + b".")
    assert not tool.tried(file, out).wrong
    with monkeypatch.context() as broken:
        broken.setattr(weight_files, "_head", lambda path: b"\x80" + bytes(3))
        broken.setattr(weight_files, "read_torch", lambda path, zipped: 1 // 0)
        assert "ZeroDivisionError" in tool.tried(file, out).wrong
    with monkeypatch.context() as broken:
        broken.setattr(tool, "SECONDS", 0)
        assert tool.tried(file, out).wrong.endswith("s of work")
    with monkeypatch.context() as broken:
        broken.setattr(weight_files, "read_torch", lambda path, zipped: {"\x1b[2J" * 9: {}} | {"x" * 3000: {}})
        broken.setattr("comfyui_qvg.qvg.models.common.weight_sets.some", lambda names, most=3: ", ".join(map(str, names)))
        assert "letters are said" in tool.tried(file, out).wrong
    assert pickles.MOST_OPERATIONS
