"""Finished blocks of a run on disk: what a kill leaves is whole blocks, and files know whose they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg.errors import CacheFileError
from comfyui_qvg.qvg.session.unfinished import ENDING, UnfinishedRun, abandoned, claim, read_blocks

TOOLS = Path(__file__).resolve().parents[3] / "tools"
BLOCKS = [torch.arange(24, dtype=torch.float32).reshape(1, 3, 2, 2, 2), torch.ones(1, 3, 1, 2, 2, dtype=torch.bfloat16)]

WRITER = """
import sys, torch
from pathlib import Path
from bootstrap_package import comfyui_qvg
from comfyui_qvg.qvg.session.unfinished import UnfinishedRun
run = UnfinishedRun(Path(sys.argv[1]), "kept", {"what": "a test"})
for index in range(10**9):
    run.add(torch.full((1, 4, 2, 64, 64), float(index)))
    print(index, flush=True)
"""


def written(folder: Path) -> UnfinishedRun:
    run = UnfinishedRun(folder, "kept", {"given": 1})
    for block in BLOCKS:
        run.add(block)
    return run


def test_blocks_come_back_while_the_run_goes_on_and_go_when_it_has_ended(tmp_path: Path) -> None:
    run = written(tmp_path / "new")
    about, blocks = read_blocks(run.path)
    assert about == {"given": 1} and len(blocks) == 2
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(blocks, BLOCKS, strict=True))
    assert abandoned(run.path.parent, "kept") == []
    run.discard()
    assert list(run.path.parent.iterdir()) == []


@pytest.mark.parametrize("cut", [1, 100, 130, 200, 240])
def test_what_a_kill_cut_short_is_not_read(tmp_path: Path, cut: int) -> None:
    run = written(tmp_path)
    run.close()
    whole = run.path.read_bytes()
    for end in range(len(whole) - cut, len(whole)):
        run.path.write_bytes(whole[:end])
        _, blocks = read_blocks(run.path)
        assert all(torch.equal(a, b) for a, b in zip(blocks, BLOCKS, strict=False)) and len(blocks) <= 1


def test_a_flipped_bit_ends_the_file(tmp_path: Path) -> None:
    run = written(tmp_path)
    run.close()
    whole = bytearray(run.path.read_bytes())
    for at in range(8 + 8 + 20, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        run.path.write_bytes(damaged)
        _, blocks = read_blocks(run.path)
        same = sum(bool(a.shape == b.shape and torch.equal(a.float(), b.float())) for a, b in zip(blocks, BLOCKS, strict=False))
        assert same == len(blocks) <= 2


@pytest.mark.parametrize(("content", "sentence"), [(b"", "begins as another kind"), (b"QVGBLOC1", "ends before it says")])
def test_files_that_are_none(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CacheFileError, match=sentence):
        read_blocks(tmp_path / "x")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL on Windows")
def test_a_killed_writer_leaves_all_that_it_had_finished(tmp_path: Path) -> None:
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TOOLS)})
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 5:
                break
        assert abandoned(tmp_path, "kept") == []
        writer.send_signal(signal.SIGKILL)
        last = max([5, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        writer.wait()
        (left,) = abandoned(tmp_path, "kept")
        about, blocks = read_blocks(left)
        assert about == {"what": "a test"} and len(blocks) >= last + 1
        assert [float(block.mean()) for block in blocks] == list(range(len(blocks)))
        mine = claim(left, "kept")
        assert mine is not None and claim(left, "kept") is None and abandoned(tmp_path, "kept") == []
        os.unlink(mine)


def test_other_files_are_nobody_s(tmp_path: Path) -> None:
    for name in ("kept-x.blocks", f"kept-00000000-1-1-0123456789abcde{ENDING}", "kept.blocks", "video.mp4"):
        (tmp_path / name).write_bytes(b"")
    assert abandoned(tmp_path, "kept") == [] and abandoned(tmp_path / "none", "kept") == []


def test_writing_takes_a_small_part_of_a_run(tmp_path: Path) -> None:
    """Blocks as a causal Wan at 832 x 480 makes them, 0.2 s apart; the bound is the issue's, and forcing keeps to half of it."""
    run, began = UnfinishedRun(tmp_path, "kept", {}), time.perf_counter()
    for _ in range(8):
        time.sleep(0.2)
        run.add(torch.zeros(1, 16, 3, 60, 104))
    assert run.seconds < 0.04 * (time.perf_counter() - began)
    run.discard()
