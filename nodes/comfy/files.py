"""Files in ComfyUI's model folders, wherever the user has put those, and names in its output folder.

Imports nothing heavy: menus are made of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import folder_paths

MODELS, LORAS = "diffusion_models", "loras"


def model_files() -> list[str]:
    """What ComfyUI lists for its own loader: .safetensors, .pt, .pth and more."""
    return list(folder_paths.get_filename_list(MODELS))


def lora_files() -> list[str]:
    """What ComfyUI lists for its own LoRA loaders, which has the same endings."""
    return list(folder_paths.get_filename_list(LORAS))


def model_path(name: str) -> Path:
    """Of a listed file. FileNotFoundError: it is not there any more."""
    return Path(folder_paths.get_full_path_or_raise(MODELS, name))


def lora_path(name: str) -> Path:
    """Of a listed file. FileNotFoundError: it is not there any more."""
    return Path(folder_paths.get_full_path_or_raise(LORAS, name))


def numbered(folder: str, name: str, counter: int, ending: str) -> Iterator[Path]:
    """Names as core's nodes give them, such as video_00001_.mp4, from `counter` on: where another ComfyUI that writes to the same
    folder has taken the first meanwhile, the next is free."""
    return (Path(folder) / f"{name}_{number:05}_{ending}" for number in itertools.count(counter))
