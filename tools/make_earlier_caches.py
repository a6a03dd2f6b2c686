"""Write a cache of every kind into tests/data/earlier, in the version of the file format that is checked out, for later ones to
read. What is there already stays."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bootstrap_package  # noqa: F401 (makes the repository importable as comfyui_qvg)
from comfyui_qvg.qvg import KVCache
from comfyui_qvg.qvg.session import save_cache
from comfyui_qvg.qvg.session.contents import READABLE_VERSIONS
from comfyui_qvg.tests.earlier import CACHES, ROPE, SPEC, attended, configs, saved_after


def main() -> None:
    """See the module docstring."""
    version = READABLE_VERSIONS[-1]
    folder = CACHES[version]
    folder.mkdir()
    read = {}
    for name, config in configs(version).items():
        cache = KVCache(SPEC, config, ROPE)
        attended(cache, range(saved_after(name)))
        save_cache(cache, folder / f"{name}.safetensors")
        read[name] = attended(cache, range(saved_after(name), saved_after(name) + 1))
    save_file(read, folder / "read.safetensors")


if __name__ == "__main__":
    main()
