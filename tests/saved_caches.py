"""Saved caches taken apart and put together again, sealed anew: what their checksums cannot find is looked at too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfyui_qvg.qvg.safetensors_writer import checksum, in_memory, write_safetensors
from safetensors import safe_open
from torch import Tensor

Tensors = dict[str, Tensor]


def read_apart(file: Path) -> tuple[dict[str, str], dict[str, Any], Tensors]:
    """Metadata, state and tensors of a file, none of them checked."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (not a dict)
    return metadata, json.loads(metadata["state"]), tensors


def write_sealed(file: Path, version: int, state: Any, tensors: Tensors) -> None:
    """A file of this version, whose checksums are right whatever is in it."""
    text = state if isinstance(state, str) else json.dumps(state)
    metadata = {"format": "qvg-cache", "version": str(version), "state": text}
    sealed = ("crc32", {"state": checksum(text.encode())}) if version >= 3 else None
    write_safetensors(file, in_memory(tensors), metadata, checksums=sealed)


def rewrite(
    file: Path,
    state: Callable[[dict[str, Any]], object] = lambda state: None,
    tensors: Callable[[Tensors], object] = lambda tensors: None,
    version: int | None = None,
) -> None:
    """Change what a file says of itself and what it holds."""
    metadata, saved, held = read_apart(file)
    state(saved)
    tensors(held)
    write_sealed(file, version or int(metadata["version"]), saved, held)
