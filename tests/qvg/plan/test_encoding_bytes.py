"""What the codecs to compare with work in while they encode: plans know it of every one, as it is counted."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg.codec import make_codecs
from comfyui_qvg.qvg.codec.base import EncodeHint
from comfyui_qvg.qvg.config import COMPARED, QVGConfig
from comfyui_qvg.qvg.plan.activations import _TORCH_BYTES, _TRITON_BYTES

from ...helpers import LiveBytes

TOKENS, HEADS = 1560, 1


@pytest.mark.parametrize("codec", COMPARED)
def test_bytes_per_value_are_those_that_are_alive(codec: str) -> None:
    config = QVGConfig(codec=codec, bits=COMPARED[codec][-1], group_size=16 if codec.startswith("study") else 64, span_frames=1)
    x = torch.randn(1, HEADS, TOKENS, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    peaks = []
    for each in make_codecs(config, torch.bfloat16):
        with torch.inference_mode(), LiveBytes() as alive:
            each.encode(x, EncodeHint())
        peaks.append(alive.peak / x.numel())
    # Beside what grows with the span there is a little that does not: 2 % of so short a span.
    assert max(peaks) == pytest.approx(_TORCH_BYTES[codec], rel=0.02) and _TRITON_BYTES[codec] == _TORCH_BYTES[codec]
