"""Spans that a window cuts too short to learn a basis from get a bit more for each value instead."""

from __future__ import annotations

from ...kernels.lloyd_max import MAX_BITS
from ..codec.klt_sizes import learns_basis
from ..config import QVGConfig


def encoding(config: QVGConfig, span_tokens: int, channels: int) -> QVGConfig:
    """What spans of `span_tokens` are encoded with. One bit more takes less room than the basis that they do not get, and gains
    about as much. Settings that name the length of their spans are kept as they are."""
    if not _too_short(config, span_tokens, channels):
        return config
    bits, bits_v = (min(MAX_BITS, width + 1) for width in (config.bits, config.bits if config.bits_v is None else config.bits_v))
    return config.with_changes(bits=bits, bits_v=bits_v)


def short_spans_text(config: QVGConfig, span_tokens: int, channels: int) -> str:
    """Says so, in a sentence; empty where nothing is to be said."""
    if not _too_short(config, span_tokens, channels):
        return ""
    used = encoding(config, span_tokens, channels)
    return (
        f"short spans: the window leaves {span_tokens} tokens a span, too few to learn a basis from; keys take {used.bits:g} and "
        f"values {used.bits_v:g} bits instead"
    )


def _too_short(config: QVGConfig, span_tokens: int, channels: int) -> bool:
    by_window = config.span_frames == "auto" and config.window_frames is not None
    return config.codec == "klt" and config.transform == "klt" and by_window and not learns_basis(config, span_tokens, channels)
