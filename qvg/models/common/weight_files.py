"""Weight files as they lie on people's disks, .safetensors and .pt, opened without reading them or running their code."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import UnsupportedModelError

_AGAIN = "download it again"
# Trainers wrap weights once or twice. A dictionary in a pickle may hold itself, and then there is no innermost one.
MOST_WRAPPINGS = 8
# What stands at the beginning of files that are taken for weights. Git LFS leaves its pointer where a file was not fetched.
_STRANGERS = {
    b"GGUF": "is a GGUF file, whose weights only a GGUF loader reads; take the .pt or .safetensors of this model",
    b"version https://git-lfs": f"is Git LFS's pointer to the weights, not the weights; {_AGAIN} (git lfs pull)",
    b"<!DOCTYPE": f"is a web page, not the file that was asked for there; {_AGAIN}",
    b"<html": f"is a web page, not the file that was asked for there; {_AGAIN}",
}


@dataclass(frozen=True)
class WeightFile:
    """What is in a file: `content` by name, tensors or dictionaries of more; `metadata` of a safetensors file. Tensors are mapped
    from disk, so they take memory only when they are used."""

    path: Path
    content: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)


def open_weights(path: Path) -> WeightFile:
    """Raises UnsupportedModelError, in a sentence, for what is missing, truncated, foreign, or needs code to be run."""
    head = _head(path)
    if head[:2] == b"PK":
        return WeightFile(path, _read_torch(path, zipped=True))
    if head[:1] == b"\x80":
        return WeightFile(path, _read_torch(path, zipped=False))
    if head[8:9] == b"{":
        return _open_safetensors(path)
    for beginning, what in _STRANGERS.items():
        if head.startswith(beginning):
            raise UnsupportedModelError(f"{path.name} {what}")
    raise UnsupportedModelError(f"{path.name} begins as no weight file does, neither .safetensors nor .pt; {_AGAIN}")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise UnsupportedModelError(f"{path} cannot be opened ({error.strerror}); give the path of a weight file") from error
    if len(head) < 32:
        raise UnsupportedModelError(f"{path.name} has {len(head)} bytes, too few for weights; {_AGAIN}")
    return head


def _open_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return WeightFile(path, tensors, file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        why = (
            "is cut off or damaged"
            if re.search("ncomplete|not fully covered|offset|header length", str(error))
            else "cannot be read"
        )
        raise UnsupportedModelError(f"{path.name} {why} ({error}); {_AGAIN}") from error


def _read_torch(path: Path, zipped: bool) -> dict[str, Any]:
    """What torch.save wrote. Only weights: anything else that a pickle may hold is not unpickled."""
    # The table of a zip archive stands at its end.
    if zipped and not zipfile.is_zipfile(path):
        raise UnsupportedModelError(f"{path.name} is cut off ({path.stat().st_size} bytes are here); {_AGAIN}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise UnsupportedModelError(
            f"{path.name} holds more than weights{f' ({named[1]})' if named else ''}, and to read that would run code that the "
            "file brings along; take a .safetensors of this model, or a .pt with nothing but weights"
        ) from error
    except Exception as error:  # what a damaged pickle trips over is anything: struct.error, IndexError, TypeError ...
        reason = str(error).strip().partition("\n")[0]
        raise UnsupportedModelError(f"{path.name} is damaged, or no file of torch's ({reason}); {_AGAIN}") from error
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path.name} holds a {type(content).__name__}, not weights by name; it is no model's file")
    return content


def is_tensors(value: Any) -> bool:
    """Whether this is a dictionary of tensors by name."""
    return isinstance(value, dict) and bool(named_tensors(value))


def named_tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """What of it are tensors by name: a trainer's file has numbers and counters between them."""
    return {name: each for name, each in content.items() if isinstance(name, str) and isinstance(each, Tensor)}


def causal_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """`metadata` with the mark by which ComfyUI (0.21 on) tells a causal Wan from an ordinary one."""
    config = _config(metadata)
    network = config.get("transformer")
    config["transformer"] = {**(network if isinstance(network, dict) else {}), "causal_ar": True}
    return {**metadata, "config": json.dumps(config)}


def is_marked_causal(metadata: dict[str, str]) -> bool:
    """Whether that mark is there."""
    network = _config(metadata).get("transformer")
    return isinstance(network, dict) and bool(network.get("causal_ar"))


def _config(metadata: dict[str, str]) -> dict[str, Any]:
    try:
        config = json.loads(metadata.get("config", "{}"))
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
