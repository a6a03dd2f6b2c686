"""Finished blocks reach the disk while a run goes on, in whole parts, within their share of its time."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg.session import finished_blocks
from comfyui_qvg.qvg.session.finished_blocks import FinishedBlocks, read_blocks, remove_blocks
from safetensors.torch import load_file

from ...helpers import ROOT


def _block(number: int, frames: int = 2) -> torch.Tensor:
    return torch.randn(1, 4, frames, 3, 5, generator=torch.Generator().manual_seed(number))


def test_blocks_come_back_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finished = FinishedBlocks(folder)
    assert not folder.exists()
    for number in range(9):
        finished.add(_block(number, 1 + number % 3), number=number, name="é")
        if number % 4 == 0:
            finished.write()
    finished.write()
    kept = read_blocks(folder)
    assert [facts["number"] for facts in kept.facts] == list(range(9)) and kept.facts[1] == {
        "number": 1,
        "name": "é",
        "frames": 2,
    }
    assert all(torch.equal(block, _block(number, 1 + number % 3)) for number, block in enumerate(kept.blocks))
    assert {path.name for path in folder.iterdir()} == {f"part-{number:05}.latent" for number in range(kept.parts)}
    latent = load_file(folder / "part-00000.latent")  # as LoadLatent reads it
    assert torch.equal(latent["latent_tensor"], _block(0, 1)) and "latent_format_version_0" in latent
    finished.remove()
    assert not folder.exists()


def test_what_is_damaged_ends_them_and_makes_way(tmp_path: Path) -> None:
    def run(start: int, **more: object) -> None:
        finished = FinishedBlocks(tmp_path, **more)  # type: ignore[arg-type]
        for number in range(start, start + 4):
            finished.add(_block(number))
            finished.write()

    run(0)
    damaged = bytearray((tmp_path / "part-00002.latent").read_bytes())
    damaged[-3] ^= 1
    (tmp_path / "part-00002.latent").write_bytes(damaged)
    kept = read_blocks(tmp_path)
    assert kept.parts == len(kept.blocks) == 2
    run(10, after=kept)
    assert [torch.equal(block, _block(n)) for block, n in zip(read_blocks(tmp_path).blocks, (0, 1, 10, 11, 12, 13), strict=True)]
    run(20)
    assert torch.equal(read_blocks(tmp_path).blocks[0], _block(20)) and read_blocks(tmp_path).parts == 4
    (tmp_path / "mine.txt").touch()
    (tmp_path / "part-mine.latent").touch()
    remove_blocks(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "part-mine.latent"}
    assert read_blocks(tmp_path / "none").blocks == []


def test_a_slow_disk_gets_few_long_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes by 0.1 s a block, and a part takes 0.5 s: 2 % of 400 s is 16 parts."""
    clock = [0.0]
    write = finished_blocks.write_safetensors

    def slow(*arguments: object, **options: object) -> None:
        clock[0] += 0.5
        write(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(finished_blocks, "write_safetensors", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    finished = FinishedBlocks(tmp_path)
    for number in range(4000):
        clock[0] += 0.1
        finished.add(_block(number % 7))
        assert finished.spent_seconds <= 0.02 * clock[0] or finished.spent_seconds == 0.5
    kept = read_blocks(tmp_path)
    assert 14 <= kept.parts <= 16 and len(kept.blocks) > 3700


def test_a_disk_that_refuses_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    finished = FinishedBlocks(tmp_path / "file" / "run")
    with caplog.at_level(logging.WARNING):
        for number in range(50):
            finished.add(_block(number))
            finished.write()
    assert finished.failed is not None and len(caplog.records) == 1 and "Not a directory" in caplog.text
    monkeypatch.setattr(finished_blocks, "_MOST_WAITING_BYTES", 100)
    finished.add(_block(1))
    finished.write()
    assert not finished._waiting  # the memory is given back


def test_a_kill_loses_the_block_in_work(tmp_path: Path) -> None:
    """At any moment: what is there is whole. `tools/kills.py` does it more often."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import bootstrap_package\n"
        "from pathlib import Path\nimport torch\n"
        "from comfyui_qvg.qvg.session.finished_blocks import FinishedBlocks\n"
        "finished = FinishedBlocks(Path(sys.argv[1]), share=1e9)\nprint('on', flush=True)\n"
        "for number in range(10**9):\n"
        "    finished.add(torch.full((1, 4, 2, 16, 16), float(number)), number=number)\n"
    )
    for kill in range(2):
        folder = tmp_path / str(kill)
        with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"on\n"
            time.sleep(0.8 + 0.01 * kill)
            process.kill()
        kept = read_blocks(folder)
        assert [facts["number"] for facts in kept.facts] == list(range(len(kept.blocks))) and len(kept.blocks) > 2
        assert all(bool((block == number).all()) for number, block in enumerate(kept.blocks))
