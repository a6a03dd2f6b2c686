"""tools/damaged_caches.py: a small sample of what it makes, and that it would notice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from comfyui_qvg.qvg.session import contents

from .earlier import CACHES
from .helpers import ROOT, tool_module

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the tool ends what hangs by a signal that Windows does not have")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return tool_module("damaged_caches", monkeypatch)


def test_every_kind_of_damage() -> None:
    command = [sys.executable, str(ROOT / "tools" / "damaged_caches.py"), "--seed", "3", "--count", "150"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("150 files, 17 kinds of damage, seed 3: ") and " 0 wrong; " in ran.stdout and not ran.stderr


def test_what_is_wrong_is_noticed(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CACHES[3] / "rtn.safetensors"
    damaged = bytearray(whole.read_bytes())
    damaged[-5] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)

    def tried() -> str:
        return str(tool.tried("a bit turned", 3, whole, tmp_path / "damaged", tmp_path / "again").wrong)

    assert not tried()
    monkeypatch.setattr(contents.Contents, "_check", lambda self, name, data: None)
    assert "nothing says so" in tried()
    monkeypatch.setattr(contents.Contents, "_check", lambda self, name, data: 1 // 0)
    assert "ZeroDivisionError" in tried()
