"""Small floats: FP8, NVFP4, and 16-bit keys beside 8-bit values. What serving engines ship for KV caches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...kernels import e4m3
from ...kernels.packing import pack, unpack
from .parts import Part, PartsCodec

# E2M1: a sign bit and these.
_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_FP4_GROUP = 16


class FP8Codec(PartsCodec):
    """E4M3 values with one float32 scale for each head of a span. 8 bits per value."""

    name = "fp8"

    def parts(self, shape: tuple[int, int, int, int]) -> dict[str, Part]:
        """See `PartsCodec`."""
        return {"codes": Part(shape), "scales": Part(shape[:2], torch.float32)}

    def packed(self, x: Tensor) -> dict[str, Tensor]:
        """See `PartsCodec`."""
        scales = x.abs().amax((2, 3)) / e4m3.MAX
        codes = e4m3.encode(x / torch.where(scales > 0, scales, torch.inf)[..., None, None])
        return {"codes": codes, "scales": scales}

    def unpacked(self, parts: Mapping[str, Tensor], tokens: slice, heads: slice) -> Tensor:
        """See `PartsCodec`."""
        return e4m3.decode(parts["codes"][:, heads, tokens]) * parts["scales"][:, heads, None, None]


class NVFP4Codec(PartsCodec):
    """E2M1 values in groups of 16 channels with an E4M3 scale, and a float32 scale for each batch row of a span. 4.5 bits.

    The scale of a group maps its largest value to 6 or to 4, whichever leaves the smaller squared error (LongLive 2.0,
    arXiv 2605.18739).
    """

    name = "nvfp4"

    def parts(self, shape: tuple[int, int, int, int]) -> dict[str, Part]:
        """See `PartsCodec`."""
        batch, heads, tokens, channels = shape
        rows = (batch, heads, tokens)
        return {
            "codes": Part((*rows, channels // 2)),
            "scales": Part((*rows, channels // _FP4_GROUP)),
            "tensor_scales": Part((batch,), torch.float32),
        }

    def packed(self, x: Tensor) -> dict[str, Tensor]:
        """See `PartsCodec`."""
        groups = x.unflatten(-1, (-1, _FP4_GROUP))
        largest = groups.abs().amax(-1)
        whole = largest.amax((1, 2, 3)) / (_FP4[-1] * e4m3.MAX)
        inverse = torch.where(whole > 0, 1 / whole, 0.0)[:, None, None, None]
        tries = [self._rounded(groups, e4m3.encode(largest * inverse / most), whole) for most in (6.0, 4.0)]
        better = tries[1][2] < tries[0][2]
        codes = torch.where(better[..., None], tries[1][0], tries[0][0])
        scales = torch.where(better, tries[1][1], tries[0][1])
        return {"codes": pack(codes.flatten(-2), 4), "scales": scales, "tensor_scales": whole}

    def unpacked(self, parts: Mapping[str, Tensor], tokens: slice, heads: slice) -> Tensor:
        """See `PartsCodec`."""
        codes = unpack(parts["codes"][:, heads, tokens], 4).unflatten(-1, (-1, _FP4_GROUP))
        scales = e4m3.decode(parts["scales"][:, heads, tokens]) * parts["tensor_scales"][:, None, None, None]
        return (_values(codes) * scales[..., None]).flatten(-2)

    @staticmethod
    def _rounded(groups: Tensor, scales: Tensor, whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scales and the squared error of each group."""
        steps = (e4m3.decode(scales) * whole[:, None, None, None])[..., None]
        sizes = groups.abs() / torch.where(steps > 0, steps, torch.inf)
        levels = _FP4.to(groups.device)
        codes = torch.bucketize(sizes, (levels[1:] + levels[:-1]) / 2) + 8 * (groups < 0)
        codes = codes.to(torch.uint8)
        return codes, scales, (_values(codes) * steps - groups).square().sum(-1)


class EightBitValuesCodec(PartsCodec):
    """Of keys bfloat16, of values int8 with a float16 scale per token: 16 and 8.125 bits at 128 channels (Overworld's engine)."""

    name = "bf16-int8"

    def __init__(self, keys: bool):
        self.keys = keys

    def parts(self, shape: tuple[int, int, int, int]) -> dict[str, Part]:
        """See `PartsCodec`."""
        if self.keys:
            return {"codes": Part(shape, torch.bfloat16)}
        return {"codes": Part(shape, torch.int8), "scales": Part(shape[:3], torch.float16)}

    def packed(self, x: Tensor) -> dict[str, Tensor]:
        """See `PartsCodec`."""
        if self.keys:
            return {"codes": x.to(torch.bfloat16)}
        scales = (x.abs().amax(-1) / 127).clamp(max=torch.finfo(torch.float16).max).half()
        steps = scales.float()[..., None]
        codes = torch.round(x / torch.where(steps > 0, steps, torch.inf)).clamp(-127, 127)
        return {"codes": codes.to(torch.int8), "scales": scales}

    def unpacked(self, parts: Mapping[str, Tensor], tokens: slice, heads: slice) -> Tensor:
        """See `PartsCodec`."""
        codes = parts["codes"][:, heads, tokens].float()
        return codes * parts["scales"][:, heads, tokens].float()[..., None] if "scales" in parts else codes


def _values(codes: Tensor) -> Tensor:
    """E2M1 codes -> float32."""
    sizes = _FP4.to(codes.device)[(codes & 7).long()]
    return torch.where(codes >= 8, -sizes, sizes)
