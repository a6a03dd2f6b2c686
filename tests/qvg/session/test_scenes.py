"""A run through several scenes, broken off and resumed anywhere, in CPU memory or with packed spans elsewhere: the same bytes.

Spans are long enough to learn bases from, layers cut to another scene at different times, so that what one of them begins depends
on what it and those before it have left of their room.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg import CacheSpec, KVCache, QVGConfig
from comfyui_qvg.qvg.session import load_cache, save_cache
from safetensors import safe_open
from torch import Tensor

SPEC = CacheSpec(layers=3, heads=1, head_dim=32, tokens_per_frame=64, batch=2)
CONFIG = QVGConfig.preset("fewest-bytes").with_changes(
    iterations=1, span_frames=2, sink_frames=1, recent_frames=1, spans_per_codebook=6
)
# Of every layer, the scene of each span.
SCENES = ((0, 0, 0, 1, 1, 2, 0, 3), (0, 0, 1, 1, 2, 2, 0, 3), (0, 1, 1, 2, 2, 3, 0, 3))
FRAMES = 2 * len(SCENES[0]) + 3


def _block(frame: int, layer: int) -> Iterator[Tensor]:
    """Keys and values of a frame: places of its scene, and what differs from them in its scene's directions."""
    scene = SCENES[layer][min(max(0, frame - 1) // 2, len(SCENES[0]) - 1)]
    generator = torch.Generator().manual_seed(100 + scene)
    places, spread = 2 * torch.randn(12, 32, generator=generator), torch.logspace(0, -1.5, 32).roll(9 * scene)
    generator = torch.Generator().manual_seed(1000 * layer + frame)
    for _ in range(2):
        which = torch.randint(12, (2, 1, 64), generator=generator)
        yield places[which] + spread * torch.randn(2, 1, 64, 32, generator=generator)


def _go_on(cache: KVCache, frame: int, by_layer: bool = False) -> None:
    for layer in range(SPEC.layers):
        cache.layers[layer].append(*_block(frame, layer))
        if by_layer:
            cache.commit_layer(layer)
    if not by_layer:
        cache.commit()


def _saved(cache: KVCache, file: Path) -> tuple[str, dict[str, Tensor]]:
    """All that a file of it says, but for where packed spans are kept."""
    save_cache(cache, file)
    with safe_open(file, "pt") as opened:
        state = opened.metadata()["state"].replace('"offload": "cpu"', '"offload": "gpu"')
        return state, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)


def _same(one: tuple[str, dict[str, Tensor]], other: tuple[str, dict[str, Tensor]]) -> bool:
    return one[0] == other[0] and all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())


@pytest.mark.parametrize("window", [None, 9], ids=["all", "window"])
def test_a_run_that_is_resumed_makes_the_same_bytes(window: int | None, tmp_path: Path) -> None:
    config = CONFIG.with_changes(window_frames=window)
    file, spare = tmp_path / "cache.safetensors", set()
    unbroken, resumed, by_layer = (KVCache(SPEC, config) for _ in range(3))
    # Torch takes "cpu:0" for another device than "cpu", and copies between them.
    elsewhere = KVCache(SPEC, config.with_changes(offload="cpu"), home="cpu:0")
    for frame in range(FRAMES):
        for cache in (unbroken, resumed, elsewhere):
            _go_on(cache, frame)
        _go_on(by_layer, frame, by_layer=True)
        if frame % 3:
            continue
        wanted = _saved(unbroken, file)
        for cache in (by_layer, elsewhere, resumed):
            assert _same(wanted, _saved(cache, file)), frame
        resumed = load_cache(file)
        spare.add(tuple(tuple(layer.state.spare_rows) for layer in unbroken.layers))
    assert len(spare) > 3, "what is left of the room for codebooks changes"
