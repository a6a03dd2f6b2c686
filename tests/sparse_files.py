"""Safetensors files of full-size networks that take no room: a true header, and values that were never written."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from comfyui_qvg.qvg.models.wan.network import CausalWan, WanConfig
from comfyui_qvg.qvg.safetensors_writer import DTYPES
from torch import Tensor


def write_sparse(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """`tensors` may be on the device meta. What is read of the file is zeros."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + tensor.numel() * tensor.dtype.itemsize
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + begin)
    return path


def wan(heads: int, layers: int = 1) -> dict[str, Tensor]:
    """A causal Wan so wide, of so few layers, without values."""
    return CausalWan(WanConfig(layers=layers, heads=heads, mlp=256), device="meta").state_dict()
