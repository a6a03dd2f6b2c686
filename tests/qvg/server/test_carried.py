"""What people have of a run is taken as a workflow: pictures, videos, entries of a history; what carries none is said."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_qvg.qvg.errors import ConfigError
from comfyui_qvg.qvg.media.video_file import WholeVideo
from comfyui_qvg.qvg.server.prompt import load_prompt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

PROMPT = {"1": {"class_type": "Make", "inputs": {"frames": 5}}, "2": {"class_type": "Save", "inputs": {"images": ["1", 0]}}}
PAGE = {"nodes": [], "links": [], "version": 0.4}
TEXT = json.dumps(PROMPT)


def _png(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


def _video(path: Path, **texts: str) -> Path:
    with WholeVideo(path, 16, 16, Fraction(8), frames=1, metadata=texts) as video:
        video.write(np.zeros((16, 16, 3), np.uint8))
    return path


@pytest.mark.parametrize("name", ["a.png", "b.webp", "c.mp4", "d.mp4"])
def test_pictures_and_videos(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "a.png":
        _png(path, prompt=TEXT, workflow=json.dumps(PAGE))
    elif name == "b.webp":  # as SaveAnimatedWEBP
        exif = Image.new("RGB", (4, 4)).getexif()
        exif[0x0110] = f"prompt:{TEXT}"
        exif[0x010F] = f"workflow:{json.dumps(PAGE)}"
        Image.new("RGB", (4, 4)).save(path, exif=exif)
    elif name == "c.mp4":
        _video(path, prompt=TEXT, workflow=json.dumps(PAGE))
    else:  # as other packs
        _video(path, comment=json.dumps({"prompt": TEXT, "workflow": PAGE}))
    assert load_prompt(path) == PROMPT


@pytest.mark.parametrize(
    "content",
    [
        PROMPT,
        {"prompt": PROMPT, "client_id": "x", "extra_data": {}},
        {"prompt": TEXT},
        {"6f1c": {"prompt": [3, "6f1c", PROMPT, {}, ["2"]], "outputs": {}, "status": {}}},
        {"prompt": [3, "6f1c", PROMPT, {}, ["2"]], "outputs": {}, "status": {}},
        [3, "6f1c", PROMPT, {}, ["2"]],
        {"workflow": PAGE, "output": PROMPT},
    ],
    ids=["alone", "request", "text", "history", "entry", "queue", "page's function"],
)
def test_json_with_a_workflow_in_it(content: Any, tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text(json.dumps(content), encoding="utf-8")
    assert load_prompt(tmp_path / "it.json") == PROMPT


def test_what_carries_none(tmp_path: Path) -> None:
    for path, why in (
        (_png(tmp_path / "a.png"), "carries no workflow"),
        (_png(tmp_path / "b.png", workflow=json.dumps(PAGE)), "is a workflow as ComfyUI's page saves it"),
        (_video(tmp_path / "c.mp4", comment="hello"), "carries no workflow"),
        (_png(tmp_path / "d.png", prompt="[" * 100_000), "carries no workflow"),
        (tmp_path / "missing.png", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=why):
            load_prompt(path)
    for name, content in (("e.png", b"\x89PNG"), ("f.mp4", b"\0" * 100), ("g.webp", b"RIFF")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read") as refused:
            load_prompt(tmp_path / name)
        assert "\n" not in str(refused.value)
    two = {name: {"prompt": [0, name, PROMPT]} for name in "ab"}
    (tmp_path / "two.json").write_text(json.dumps(two), encoding="utf-8")
    with pytest.raises(ConfigError, match="holds 2 runs of a server's history; keep the entry of one"):
        load_prompt(tmp_path / "two.json")
    for deep in ("[" * 200_000, '{"a":' * 100_000, "[" * 900 + "]" * 900):
        (tmp_path / "deep.json").write_text(deep, encoding="utf-8")
        with pytest.raises(ConfigError):
            load_prompt(tmp_path / "deep.json")
