"""Caches as earlier versions saved them: tests/data/earlier, written by tools/make_earlier_caches.py."""

from __future__ import annotations

from pathlib import Path

import torch
from comfyui_qvg.qvg import CacheSpec, GridRope, KVCache, QVGConfig
from torch import Tensor

EARLIER = Path(__file__).parent / "data" / "earlier"
# Of every version of the file format.
CACHES = {1: EARLIER / "caches", **{version: EARLIER / f"caches_{version}" for version in (2, 3, 4, 5)}}

_FREQUENCIES = tuple(3 * 10 ** (-channel / 7) for channel in range(8))
ROPE = GridRope(2, 2, ((), _FREQUENCIES, _FREQUENCIES))
SPEC = CacheSpec(layers=1, heads=2, head_dim=32, tokens_per_frame=4)
_KLT = QVGConfig(
    codec="klt", bits=2.5, bits_v=1.5, clusters=6, clusters_added=3, span_frames=3, recent_frames=2, spans_per_codebook=3
)
_QVG = QVGConfig(
    clusters=4, group_size=32, span_frames=3, recent_frames=2, spans_per_codebook=2, window_frames=14, symmetric=False
)
CONFIGS = {
    "none": QVGConfig(codec="none", span_frames=3, group_size=32),
    "qvg": _QVG,
    "qvg_two_stages": _QVG.with_changes(num_stages=2, symmetric=True, bits=4, bits_v=2),
    "klt": _KLT,
    "klt_hadamard": _KLT.with_changes(transform="hadamard"),
    "klt_keys_after_rope": _KLT.with_changes(keys="after_rope"),
    "klt_offloaded": _KLT.with_changes(offload="cpu"),
    **{
        codec: QVGConfig(codec=codec, bits=3, bits_v=2, group_size=32, symmetric=False, span_frames=3, window_frames=14)
        for codec in ("rtn", "kivi", "quarot")
    },
}
# Frames of a span that have left the window, which version 1 did not know; and spans long enough to learn a basis from.
_SINCE_2 = {"klt_window": _KLT.with_changes(window_frames=13), "klt_learned": _KLT.with_changes(span_frames=32)}
# Since version 4: a file says 4 only where tokens are merged.
_MERGED = {
    name: config.with_changes(merge=0.99, window_frames=None, keys="before_rope")
    for name, config in CONFIGS.items()
    if name in ("none", "qvg", "klt", "kivi")
}
# Since version 5: a file says 5 only where a share is read.
_SHARE = {
    name: config.with_changes(sparse=0.2, window_frames=None)
    for name, config in CONFIGS.items()
    if name in ("none", "qvg", "klt", "klt_keys_after_rope", "kivi")
}


def configs(version: int) -> dict[str, QVGConfig]:
    """The caches of a version, by the names of their files."""
    return {1: CONFIGS, 4: _MERGED, 5: _SHARE}.get(version, CONFIGS | _SINCE_2)


def saved_after(kind: str) -> int:
    """After how many frames this cache was saved."""
    return 36 if kind == "klt_learned" else 14


def seen(merges: bool, frame: int) -> int:
    """Which picture a frame shows: where tokens are merged, every fifth one again."""
    return frame % 5 if merges else frame


SAVED = [(version, kind) for version in CACHES for kind in configs(version)]


def attended(cache: KVCache, frames: range) -> Tensor:
    """What attention sees while these frames are appended. -> [frames, H, S, D]"""
    outs = []
    for frame in frames:
        look = seen(cache.config.merges, frame)
        cache.place([(0.0, look * 0.5, 1.0)])
        q, k, v = torch.randn(3, 1, 2, 4, 32, generator=torch.Generator().manual_seed(look))
        outs.append(cache.attend(0, q, k, v))
        cache.commit()
    return torch.cat(outs)
