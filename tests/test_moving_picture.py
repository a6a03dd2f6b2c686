"""tools/moving_picture.py: what it draws of two walks."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from comfyui_qvg.qvg import PRESETS
from PIL import Image, ImageColor

from .helpers import ROOT, tool_module


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return tool_module("moving_picture", monkeypatch)


def test_bytes_are_drawn_on_one_scale(tool: ModuleType, tmp_path: Path) -> None:
    frames = [np.full((64, 64, 3), shade, np.uint8) for shade in (0, 90, 180)]
    sides = [
        tool.Side("exact", PRESETS["exact"], frames, [1_000_000, 2_000_000, 4_000_000]),
        tool.Side("two bits", PRESETS["balanced"], frames, [1_000_000, 500_000, 1_000_000]),
    ]
    tool.write(sides, tmp_path / "walk.webp", 90)
    with Image.open(tmp_path / "walk.webp") as picture:
        assert (picture.n_frames, picture.info["loop"]) == (3, 0)  # type: ignore[attr-defined]
        picture.seek(2)
        last = np.asarray(picture.convert("RGB")).astype(int)
    bar = last[tool.HEAD + tool.SIDE + 20]
    for colour, share in zip(tool.COLOURS, (1.0, 0.25), strict=True):
        near = np.abs(bar - ImageColor.getrgb(colour)).max(-1) < 40
        assert near.sum() == pytest.approx(share * tool.SIDE, abs=6)
    assert (last[tool.HEAD + 100, tool.MARGIN + 100] // 10 == 18).all()


def test_what_the_page_shows_is_what_it_makes(tool: ModuleType) -> None:
    with Image.open(ROOT / "assets" / "walk.webp") as picture:
        assert picture.n_frames == tool.DEFAULT_FRAMES  # type: ignore[attr-defined]
        assert picture.size == (2 * tool.SIDE + 3 * tool.MARGIN, tool.HEAD + tool.SIDE + tool.FOOT)
