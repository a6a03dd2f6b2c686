"""What else a run could be given, one thing at a time: what it takes then, and what that costs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from ..config import PRESETS, QVGConfig
from ..errors import ConfigError
from .estimate import Plan, Weights
from .report import gigabytes

# PSNR against the exact memory on the demo world, in dB: the table of settings in README and docs/quality.md.
QUALITY_DB = {"near-exact": 54.1, "balanced": 47.9, "fewest-bytes": 45.4}

_NO_WINDOW = 1 << 30

MakePlan = Callable[[QVGConfig, Weights], Plan]


@dataclass(frozen=True)
class Way:
    """One change of a plan: bytes at the worst moment, pictures of the longest video that fits (None: any), and the price."""

    change: str
    peak_bytes: int
    longest_frames: int | None
    fits: bool
    costs: str

    def text(self, pictures_per_second: float) -> str:
        """A line for people."""
        seconds = None if self.longest_frames is None else self.longest_frames / pictures_per_second
        if seconds is None:
            longest = "any length"
        elif not seconds:
            longest = "not one block"
        else:
            longest = f"up to {seconds:.0f} s" if seconds < 100 else f"up to {seconds / 60:.0f} min"
        return f"{self.change}: {gigabytes(self.peak_bytes)}, {longest}; {self.costs}"


def ways(make_plan: MakePlan, config: QVGConfig, weights: Weights, seconds_per_frame: float, block_frames: int) -> list[Way]:
    """Another preset, encoded frames in main memory, a window where all frames do not fit, weights in 8 bits. Nothing where the
    device's memory is not known. `seconds_per_frame`: of a latent frame."""
    here = make_plan(config, weights)
    if here.fits is None:
        return []
    others = [name for name in QUALITY_DB if _kept_as(PRESETS[name], config) != config]
    found = [_preset(make_plan, name, config, weights) for name in others]
    if config.offload == "gpu" and config.codec != "none":
        away = make_plan(config.with_changes(offload="cpu"), weights)
        found.append(_way("offload cpu", away, f"copies {gigabytes(max(0, away.away_bytes))} to the card in every pass"))
    if not here.fits:
        found += _window(make_plan, config, weights, seconds_per_frame, block_frames)
    if weights.size_bytes is None and weights.dtype != "fp8":
        light = make_plan(config, Weights("fp8"))
        found.append(_way("weights fp8", light, "rounds the weights to 8 bits; what that does to pictures is not measured here"))
    return found


def _way(change: str, made: Plan, costs: str) -> Way:
    return Way(change, made.peak_bytes, made.longest_frames, bool(made.fits), costs)


def _preset(make_plan: MakePlan, name: str, config: QVGConfig, weights: Weights) -> Way:
    made = make_plan(_kept_as(PRESETS[name], config), weights)
    return _way(f"preset {name}", made, f"{QUALITY_DB[name]:.1f} dB against exact on the demo world")


def _kept_as(preset: QVGConfig, asked: QVGConfig) -> QVGConfig:
    """With what was asked for besides."""
    return preset.with_changes(
        sink_frames=asked.sink_frames,
        recent_frames=asked.recent_frames,
        window_frames=asked.window_frames,
        workspace_mb=asked.workspace_mb,
        backend=asked.backend,
        offload=asked.offload,
    )


def _window(make_plan: MakePlan, config: QVGConfig, weights: Weights, seconds_per_frame: float, block_frames: int) -> list[Way]:
    """The widest one that fits, in whole blocks, if any does."""
    exact = sum(-(-part // block_frames) * block_frames for part in (config.sink_frames, config.recent_frames))
    frames = min(make_plan(config, weights).latent_frames, config.window_frames or _NO_WINDOW)
    windows = range(exact + 2 * block_frames, frames, block_frames)

    def made(window: int) -> Plan | None:
        try:
            return make_plan(config.with_changes(window_frames=window), weights)
        except ConfigError:  # the model takes no window
            return None

    # A wider window never takes less.
    count = bisect_right(windows, False, key=lambda window: not ((found := made(window)) and found.fits))
    found = made(windows[count - 1]) if count else None
    if found is None:
        return []
    window = windows[count - 1]
    return [_way(f"window_frames {window}", found, f"forgets what is older than {window * seconds_per_frame:.0f} s")]


def ways_text(found: list[Way], pictures_per_second: float) -> str:
    """Lines for people, "" for none."""
    if not found:
        return ""
    return "\n".join(["One change at a time, and its price:", *(f"  {way.text(pictures_per_second)}" for way in found)])
