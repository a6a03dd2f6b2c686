"""tools/hostile_server.py, tools/camera_paths.py: small samples of what they make, and that they would notice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_qvg.qvg.errors import CameraPathError
from comfyui_qvg.qvg.server import command

from .helpers import ROOT, tool_module

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the tools end what hangs by a signal that Windows does not have")


def _run(name: str, *arguments: str) -> str:
    ran = subprocess.run([sys.executable, str(ROOT / "tools" / name), *arguments], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0 and not ran.stderr, ran.stdout + ran.stderr
    return ran.stdout


def test_hostile_answers() -> None:
    assert "0 wrong" in _run("hostile_server.py", "--seed", "5", "--count", "12")


def test_camera_paths() -> None:
    assert "0 wrong" in _run("camera_paths.py", "--seed", "5", "--count", "2000")


def test_a_hostile_server_that_gets_its_way_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tool_module("hostile_server", monkeypatch)
    case = tool.Case("a version to obey", "/system_stats", b'{"system": {"comfyui_version": "\\u001b[2J"}}')
    (tmp_path / "a").mkdir()
    assert tool.tried(case, tmp_path / "a") == (0, "")
    monkeypatch.setattr("comfyui_qvg.qvg.server.display.shown", lambda text, letters=0: text)
    monkeypatch.setattr("comfyui_qvg.qvg.server.connection.shown", lambda text, letters=0: text)
    (tmp_path / "b").mkdir()
    assert "not fit for a terminal" in tool.tried(case, tmp_path / "b")[1]
    monkeypatch.setattr(command, "_perform", lambda outcome, run: 1 // 0)
    (tmp_path / "c").mkdir()
    assert "ZeroDivisionError" in tool.tried(case, tmp_path / "c")[1]


def test_a_path_that_is_taken_wrongly_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tool_module("camera_paths", monkeypatch)
    assert tool.complaint("w-3", random.Random(1)) == (True, "") and tool.complaint("w-0", random.Random(1)) == (False, "")
    monkeypatch.setattr(tool, "camera_poses", lambda moves, frames, beyond: tool.np.zeros((2, 2)))
    assert "poses" in tool.complaint("w-3", random.Random(1))[1]

    def refuse(text: str) -> None:
        raise CameraPathError("\x1b")

    monkeypatch.setattr(tool, "parse_path", refuse)
    assert "no one sentence" in tool.complaint("w-3", random.Random(1))[1]
