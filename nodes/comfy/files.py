"""Files in ComfyUI's model folders, wherever the user has put those.

Imports nothing heavy: menus are made of it.
"""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...qvg.file_names import same_file

MODELS, LORAS = "diffusion_models", "loras"


class Listed(list[str]):
    """Files as this system lists them. One that is named in the way of another system is in the list, too: ComfyUI takes a choice
    that is `in` the list, and a workflow that was saved elsewhere has other separators."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and same_file(name, self) is not None


def model_files() -> Listed:
    """What ComfyUI lists for its own loader: .safetensors, .pt, .pth and more."""
    return Listed(folder_paths.get_filename_list(MODELS))


def lora_files() -> Listed:
    """What ComfyUI lists for its own LoRA loaders, which has the same endings."""
    return Listed(folder_paths.get_filename_list(LORAS))


def model_path(name: str) -> Path:
    """Of a listed file. FileNotFoundError: it is not there any more."""
    return _path(MODELS, name)


def lora_path(name: str) -> Path:
    """Of a listed file. FileNotFoundError: it is not there any more."""
    return _path(LORAS, name)


def _path(folder: str, name: str) -> Path:
    listed = same_file(name, folder_paths.get_filename_list(folder))
    return Path(folder_paths.get_full_path_or_raise(folder, listed or name))
