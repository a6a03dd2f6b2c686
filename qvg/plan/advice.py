"""The setting that would fit, where the one asked for does not."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from ..config import PRESETS, QVGConfig
from ..errors import ConfigError
from .estimate import Plan

# The nearest to exact first.
_BY_QUALITY = ("exact", "near-exact", "balanced", "fewest-bytes")
_SMALL = ("balanced", "fewest-bytes")


@dataclass(frozen=True)
class Setting:
    """Widgets of QVG KV Cache: a preset, how many latent frames the model may look back on (None: all), where spans are kept."""

    preset: str
    window_frames: int | None
    offload: str = "gpu"

    def text(self) -> str:
        """For people."""
        more = [] if self.window_frames is None else [f"window_frames {self.window_frames}"]
        more += [] if self.offload == "gpu" else [f"offload {self.offload}"]
        return ", ".join([f"preset {self.preset}", *more])

    def config(self, asked: QVGConfig) -> QVGConfig:
        """The preset, with what was asked for besides."""
        return PRESETS[self.preset].with_changes(
            sink_frames=asked.sink_frames,
            recent_frames=asked.recent_frames,
            window_frames=self.window_frames,
            workspace_mb=asked.workspace_mb,
            backend=asked.backend,
            offload=self.offload,
        )


def setting_that_fits(make_plan: Callable[[QVGConfig], Plan], asked: QVGConfig, block_frames: int) -> Setting | None:
    """The preset nearest to exact with which the video fits, its window as asked for; else `balanced` or `fewest-bytes` with
    spans in main memory; else one of these with the largest window that fits. None: there is no such setting, because what is not
    cache is too much alone."""

    def fits(setting: Setting) -> bool:
        try:
            return bool(make_plan(setting.config(asked)).fits)
        except ConfigError:  # the window does not hold sink, recent frames and a block
            return False

    here = [Setting(name, asked.window_frames) for name in _BY_QUALITY]
    away = [Setting(name, asked.window_frames, "cpu") for name in _SMALL]
    whole = next(filter(fits, [*here, *away]), None)
    if whole is not None:
        return whole
    frames = make_plan(asked).latent_frames
    exact = sum(-(-part // block_frames) * block_frames for part in (asked.sink_frames, asked.recent_frames))
    windows = range(exact + 2 * block_frames, min(frames, asked.window_frames or frames), block_frames)
    for preset in _SMALL:
        # A wider window never takes less.
        count = bisect_right(windows, False, key=lambda window, preset=preset: not fits(Setting(preset, window, asked.offload)))  # type: ignore[misc]
        if count:
            return Setting(preset, windows[count - 1], asked.offload)
    return None
