"""Write tests/data/earlier/caches: a cache of every kind, by the version that is checked out, for later ones to read."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bootstrap_package  # noqa: F401 (makes the repository importable as comfyui_qvg)
from comfyui_qvg.qvg import KVCache
from comfyui_qvg.qvg.session import save_cache
from comfyui_qvg.tests.earlier import CACHES, CONFIGS, ROPE, SAVED_AFTER, SPEC, attended


def main() -> None:
    """See the module docstring."""
    read = {}
    for name, config in CONFIGS.items():
        cache = KVCache(SPEC, config, ROPE)
        attended(cache, range(SAVED_AFTER))
        save_cache(cache, CACHES / f"{name}.safetensors")
        read[name] = attended(cache, range(SAVED_AFTER, SAVED_AFTER + 1))
    save_file(read, CACHES / "read.safetensors")


if __name__ == "__main__":
    main()
