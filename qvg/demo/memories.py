"""The memories that a demo compares: exact, Quant VideoGen as published, our default, and exact cut down to the same bytes."""

from __future__ import annotations

from typing import NamedTuple

from ..config import PRESETS, QVGConfig

# Spans of a real video hold 40,000 tokens, ours 64 per frame: fewer centroids, or codebooks would outweigh the codes.
SPAN_FRAMES = 16
EXACT = QVGConfig(codec="none", span_frames=SPAN_FRAMES)
QUANTIZED = QVGConfig(codec="qvg", bits=2, clusters=32, group_size=64, span_frames=SPAN_FRAMES, sink_frames=1, recent_frames=3)
DEFAULT_PRESET = "balanced"
RUNS = ("exact", "qvg", DEFAULT_PRESET, "window")
LABELS = dict(zip(RUNS, ("exact", "QVG as published", f"{DEFAULT_PRESET}, our default", "exact, same bytes"), strict=True))


class Memories(NamedTuple):
    """Of the first three runs; the fourth is cut down to the bytes of the third."""

    exact: QVGConfig
    published: QVGConfig
    default: QVGConfig


def memories(frames: int, span_frames: int = SPAN_FRAMES, chunk_frames: int = 1) -> Memories:
    """For so many frames: with spans short enough that a short video is encoded too.

    `chunk_frames`: what the model makes at a time; spans are multiples of it.
    """
    default = PRESETS[DEFAULT_PRESET]
    exact_frames = max(config.sink_frames + config.recent_frames for config in (QUANTIZED, default))
    room = max(chunk_frames, (frames - exact_frames) // 2 // chunk_frames * chunk_frames)
    spans = {"span_frames": min(span_frames, room)}
    return Memories(EXACT, QUANTIZED.with_changes(**spans), default.with_changes(**spans))


def cut_to(budget_bytes: int, frame_bytes: int, chunk_frames: int = 1) -> QVGConfig:
    """An exact cache that holds no more than `budget_bytes` beside the chunk in work: as many of the newest chunks as fit."""
    # The window counts the chunk being made, which is not in memory yet.
    frames = budget_bytes // frame_bytes // chunk_frames * chunk_frames + chunk_frames
    window = max(2 * chunk_frames, frames)
    return EXACT.with_changes(span_frames=1, sink_frames=0, recent_frames=1, window_frames=window)
