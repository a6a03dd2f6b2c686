"""Whether what a node is asked for has room in main memory, said before any of it is taken, and whether what it is given are
numbers. Importing it needs no ComfyUI."""

from __future__ import annotations

import torch

from ...qvg.errors import ConfigError


def require_room(needed_bytes: int, what: str, instead: str) -> None:
    """Raise ConfigError where `needed_bytes` are more than all main memory. `what` takes them, `instead` would take fewer."""
    there = _main_memory()
    if there is not None and needed_bytes > there:
        raise ConfigError(
            f"{what} would take {_size(needed_bytes)} of main memory, and this machine has {_size(there)}; use {instead}"
        )


def require_numbers(what: str, latent: torch.Tensor) -> None:
    """Raise ConfigError for a latent with NaN or infinity in it, which memory would hold from the first frame on."""
    if not latent.isfinite().all():
        raise ConfigError(f"{what} holds NaN or infinity, which no video does; check the node that it comes from")


def _main_memory() -> int | None:
    """Bytes, or None where nobody says."""
    try:
        import comfy.model_management as mm
    except ImportError:
        return None
    return int(mm.get_total_memory(torch.device("cpu")))


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
