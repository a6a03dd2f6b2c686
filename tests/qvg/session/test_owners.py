"""Folders of runs know whose they are: those of a killed process are found, those in work are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg.session.finished_blocks import FinishedBlocks, read_blocks
from comfyui_qvg.qvg.session.owners import abandoned, claim, own_folder

TOOLS = Path(__file__).resolve().parents[3] / "tools"
WRITER = """
import sys, torch
from pathlib import Path
from bootstrap_package import comfyui_qvg
from comfyui_qvg.qvg.session.finished_blocks import FinishedBlocks
from comfyui_qvg.qvg.session.owners import own_folder
run = FinishedBlocks(own_folder(Path(sys.argv[1]), "kept"))
for index in range(10**9):
    run.add(torch.full((1, 4, 2, 64, 64), float(index)))
    print(index, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL on Windows")
def test_what_a_killed_process_left_is_found_and_taken_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TOOLS)})
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) == 50:
            break
    assert abandoned(tmp_path, "kept") == []
    writer.send_signal(signal.SIGKILL)
    writer.stdout.close()
    writer.wait()
    (left,) = abandoned(tmp_path, "kept")
    blocks = read_blocks(left).blocks
    assert blocks and [float(block.mean()) for block in blocks] == list(range(len(blocks)))
    mine = claim(left, "kept")
    assert mine is not None and claim(left, "kept") is None and abandoned(tmp_path, "kept") == []
    assert len(read_blocks(mine).blocks) == len(blocks)


def test_own_folders_and_others_are_left_alone(tmp_path: Path) -> None:
    own = own_folder(tmp_path, "kept")
    FinishedBlocks(own).add(torch.zeros(1, 1, 1, 1, 1))
    for name in ("kept-x", "kept", "kept-00000000-1-1-0123456789abcde"):
        (tmp_path / name).mkdir()
    (tmp_path / f"{own.name}0").write_bytes(b"")
    assert own.is_dir() and abandoned(tmp_path, "kept") == [] and abandoned(tmp_path / "none", "kept") == []
