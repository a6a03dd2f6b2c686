"""DreamX-World small and random, by the names and the file that it is released in."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..golden_dreamx import weights

TEXT_CHANNELS = 4096
LAYERS = 2
FILE = "DreamX-World-5B/model.safetensors"


def state_dict() -> dict[str, Tensor]:
    """In float32, as released."""
    return weights(TEXT_CHANNELS, LAYERS)


def write(path: Path) -> None:
    """A file for models/diffusion_models."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state_dict(), path)
