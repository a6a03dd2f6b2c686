"""A demo film's file that has learned nothing: for what does not depend on what it has learned."""

from __future__ import annotations

from pathlib import Path

import torch
from comfyui_qvg.qvg.models.demo_film.pictures import PictureCodec
from comfyui_qvg.qvg.models.demo_film.weights import CONFIG, write_demo_film
from comfyui_qvg.qvg.models.wan.network import CausalWan


def untrained(path: Path) -> Path:
    """Write it, the same every time."""
    torch.manual_seed(0)
    write_demo_film(path, CausalWan(CONFIG).state_dict(), PictureCodec().state_dict(), {"seed": 0})
    return path
