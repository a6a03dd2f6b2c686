"""HY-WorldPlay's Wan small and random, by the names that its trainer saved it with, and in the forms that people have it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..golden_worldplay import weights

TEXT_CHANNELS = 4096
# With two, a frame's keys and values do not know yet what later frames have seen, and modes are alike that are not.
LAYERS = 3


def state_dict() -> dict[str, Tensor]:
    """By Diffusers' names, in float32."""
    return weights(TEXT_CHANNELS, LAYERS)


def released() -> dict[str, Any]:
    """As model.pt: two sets of weights, wrapped by the trainer."""
    plain = {f"model._fsdp_wrapped_module.{name}": weight for name, weight in state_dict().items()}
    return {"generator": plain, "generator_ema": {name: 0.5 * weight for name, weight in plain.items()}}


def base() -> dict[str, Tensor]:
    """What it was made of: without an action embedding and second projections."""
    return {name: weight for name, weight in state_dict().items() if "action" not in name and "prope" not in name}


def write(path: Path) -> None:
    """The pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(released(), path)
