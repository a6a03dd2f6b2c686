"""Settings of a memory that is written once: what one segment of a video is conditioned on."""

from __future__ import annotations

from ...config import QVGConfig
from ...errors import ConfigError


def condition_config(config: QVGConfig, condition_frames: int) -> QVGConfig:
    """One span of everything, nothing of it exact beside, no window. ConfigError where tokens are to be merged: what comes at
    once has nothing before it to be compared with."""
    if config.merges:
        raise ConfigError(
            f"merge {config.merge:g} does not go with a memory that is made once for a segment and does not grow; use merge 0"
        )
    return config.with_changes(sink_frames=0, recent_frames=0, span_frames=condition_frames, window_frames=None)
