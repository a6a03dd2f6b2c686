"""What others ship, by name: settings of our cache with their codecs."""

from __future__ import annotations

from ..config import QVGConfig


def _compared(codec: str, bits: int, **changes: object) -> QVGConfig:
    return QVGConfig(codec=codec, bits=bits, span_frames="auto").with_changes(**changes)


def _sglang(bits: int) -> QVGConfig:
    return QVGConfig(bits=bits, clusters=128, iterations=2, sink_frames=0, recent_frames=1, span_frames="auto")


# QVG with all four levels, whose scales are legal E4M3 here in any case, is QVGConfig(symmetric=False).
SHIPPED: dict[str, QVGConfig] = {
    **{f"LightX2V KIVI, {bits} bits": _compared("lightx2v-kivi", bits, group_size=64, keys="after_rope") for bits in (2, 4, 8)},
    **{f"sglang QVG, {bits} bits": _sglang(bits) for bits in (2, 4)},
    "NVFP4": _compared("nvfp4", 4, group_size=16),
    "FP8": _compared("fp8", 8),
    "keys 16, values 8 bits": _compared("bf16-int8", 8),
    "Budget-PCA": _compared("pca", 2, group_size=128),
}
