"""What the videos of a batch share: with `klt` which basis a span takes and when another one begins, with all else nothing."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg import CacheSpec, KVCache, QVGConfig
from torch import Tensor

TOKENS, FRAMES, CUT = 64, 30, 16
PLAIN = {"group_size": 64, "symmetric": False}
CONFIGS = {
    "exact": QVGConfig.preset("exact"),
    "qvg": QVGConfig.preset("qvg"),
    "kivi": QVGConfig("kivi", **PLAIN),
    "quarot": QVGConfig("quarot", **PLAIN),
    "rtn": QVGConfig("rtn", **PLAIN),
    "balanced": QVGConfig.preset("balanced"),
    "fewest-bytes": QVGConfig.preset("fewest-bytes"),
}


def frame(scene: int, number: int) -> Tensor:
    """Of a video, [1, 1, S, D]. Scenes differ in their covariance; the third is louder."""
    mix = torch.randn(64, 64, generator=torch.Generator().manual_seed(scene)) * torch.linspace(3, 0.05, 64)[:, None]
    noise = torch.randn(1, 1, TOKENS, 64, generator=torch.Generator().manual_seed(1000 * scene + number))
    return (4.0 if scene == 3 else 1.0) * (noise @ mix)


def first_video(config: QVGConfig, second_cuts: bool) -> Tensor:
    """What attention gives the first of two videos, frame by frame. The second one may cut to another scene."""
    config = config.with_changes(sink_frames=0, recent_frames=1, span_frames=8)
    seen = []
    with KVCache(CacheSpec(layers=1, heads=1, head_dim=64, tokens_per_frame=TOKENS, batch=2), config) as cache:
        for number in range(FRAMES):
            block = torch.cat([frame(1, number), frame(3 if second_cuts and number >= CUT else 2, number)])
            seen.append(cache.attend(0, block, block, block)[:1].clone())
            cache.commit()
    return torch.cat(seen)


@pytest.mark.parametrize("name", CONFIGS)
def test_another_video_beside_it(name: str) -> None:
    whole, cut = (first_video(CONFIGS[name], second_cuts) for second_cuts in (False, True))
    same = [bool(torch.equal(a, b)) for a, b in zip(whole, cut, strict=True)]
    if CONFIGS[name].codec == "klt":
        # Its bases are one set for the batch; docs/comfyui.md says so.
        assert all(same[:CUT]) and not all(same)
    else:
        assert all(same)
