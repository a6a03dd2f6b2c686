"""What killed runs have left becomes a latent when ComfyUI starts, and nothing of it stops the pack, or goes unsaid."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg.session.finished_blocks import FinishedBlocks
from safetensors.torch import load_file

OLD_SECONDS = 8 * 24 * 3600


@pytest.fixture
def keep(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """nodes/comfy/keep.py, with folders of its own."""
    memory = types.ModuleType("comfy.model_management")
    memory.InterruptProcessingException = type("Interrupted", (Exception,), {})  # type: ignore[attr-defined]
    for name, module in {"comfy": types.ModuleType("comfy"), "comfy.model_management": memory}.items():
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["comfy"].model_management = memory  # type: ignore[attr-defined]
    folders = sys.modules["folder_paths"]
    for kind in ("output", "temp", "input"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folders, f"get_{kind}_directory", lambda kind=kind: str(tmp_path / kind), raising=False)

    def named(prefix: str, folder: str, *unused: int) -> Any:
        place = Path(folder, *prefix.split("/")[:-1])
        place.mkdir(exist_ok=True)
        return str(place), prefix.split("/")[-1], 1, "", prefix

    monkeypatch.setattr(folders, "get_save_image_path", named, raising=False)
    module = importlib.import_module("comfyui_qvg.nodes.comfy.keep")
    yield module
    del sys.modules["comfyui_qvg.nodes.comfy.keep"]


def left_behind(folder: Path, blocks: list[torch.Tensor], number: int = 0, **facts: Any) -> Path:
    """What a process leaves that was killed long ago on another machine: one part for each block."""
    run = folder / f"unfinished-01234567-1-1-{number:016x}"
    finished = FinishedBlocks(run)
    for block in blocks:
        finished.add(block, **facts)
        finished.write()
    aged = run.stat().st_mtime - OLD_SECONDS
    os.utime(run, (aged, aged))
    return run


def block(number: int, frames: int = 3) -> torch.Tensor:
    return torch.full((1, 4, frames, 2, 2), float(number))


def test_blocks_become_one_latent(keep: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "output" / "QVG"
    left_behind(folder, [block(1), block(2)], given_frames=1, prefix="QVG/interrupted")
    with caplog.at_level(logging.INFO):
        keep.rescue_killed_runs()
    (file,) = folder.iterdir()
    assert file.name == "interrupted_00001_.latent" and "an earlier run left 6 finished frames" in caplog.text
    assert torch.equal(load_file(str(file))["latent_tensor"], torch.cat([block(1), block(2)], 2))


def test_what_stands_behind_a_damaged_part_is_named_and_stays(
    keep: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "output" / "QVG"
    run = left_behind(folder, [block(number) for number in range(5)], given_frames=0)
    damaged = run / "part-00002.latent"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    aged = run.stat().st_mtime - OLD_SECONDS
    os.utime(run, (aged, aged))
    for _ in range(2):  # at every start of ComfyUI; the latent is made once
        keep.rescue_killed_runs()
        (left,) = (path for path in folder.iterdir() if path.is_dir())
        assert sorted(path.name for path in left.iterdir()) == [f"part-{number:05}.latent" for number in (2, 3, 4)]
        assert "part-00002.latent in " in caplog.text and "is damaged" in caplog.text
        (file,) = (path for path in folder.iterdir() if path.is_file())
        assert load_file(str(file))["latent_tensor"].shape[2] == 6
        (again := folder / "unfinished-01234567-1-1-00000000000000ff").parent.mkdir(exist_ok=True)
        left.rename(again)
        os.utime(again, (aged, aged))


@pytest.mark.parametrize(
    ("blocks", "facts"),
    [
        ([block(1)], {"given_frames": "x"}),
        ([block(1), torch.zeros(1, 4, 3, 5, 5)], {"given_frames": 0}),
        ([block(1)], {"given_frames": None}),
    ],
    ids=["no number", "two sizes", "nothing"],
)
def test_what_is_no_video_of_ours_stops_nothing(
    keep: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, blocks: list[torch.Tensor], facts: dict[str, Any]
) -> None:
    """It stays, and other runs are rescued."""
    folder = tmp_path / "output" / "QVG"
    left_behind(folder, blocks, 1, **facts)
    left_behind(folder, [block(7)], 2, given_frames=0)
    keep.rescue_killed_runs()
    assert "is no video of ours" in caplog.text and len([path for path in folder.iterdir() if path.is_dir()]) == 1
    (file,) = (path for path in folder.iterdir() if path.is_file())
    assert torch.equal(load_file(str(file))["latent_tensor"], block(7))
