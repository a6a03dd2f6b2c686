"""How a cache is kept: one frozen record, checked once, and the presets that users pick from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from ..kernels import BACKENDS
from ..kernels.kmeans import MAX_CLUSTERS
from ..kernels.packing import BITS
from .errors import ConfigError

CODECS = ("none", "qvg")
GROUP_SIZES = (16, 32, 64, 128)
MAX_STAGES = 4
# `clusters="auto"` spends at most this many bits per value on centroids.
AUTO_CENTROID_BITS = 0.15


@dataclass(frozen=True)
class QVGConfig:
    """Settings of one cache. Frames are latent frames. Wrong values raise ConfigError here, misfits to a model in `CacheSpec`.

    codec               "none" keeps history in 16 bits; "qvg" is Quant VideoGen (arXiv 2602.02958)
    bits                bits per residual code: 2, 3, 4 or 8
    num_stages          k-means passes before the residual is quantized, 1 to 4
    clusters            centroids per stage, 1 to 256, or "auto": as many as cost at most 0.15 bit per value
    group_size          channels that share one scale: 16, 32, 64 or 128
    symmetric           True: as published (2**bits - 1 levels around zero). False: all levels between min and max
    iterations          k-means iterations; later codebooks start from the one before
    sink_frames         first frames, kept exact and never evicted
    recent_frames       newest frames kept exact
    span_frames         frames encoded together, rounded up to whole chunks, cut to what the window leaves room for
    spans_per_codebook  consecutive spans that share one codebook; the first of them trains it
    window_frames       frames attention may see, the current ones included; None: all of them
    seed                of k-means' first centroids; the global generators are never touched
    backend             "auto", "torch" or "triton"; forced means forced
    workspace_mb        upper bound of the memory that attention takes beside the cache, in MiB
    """

    codec: str = "qvg"
    bits: int = 2
    num_stages: int = 1
    clusters: int | Literal["auto"] = 256
    group_size: int = 64
    symmetric: bool = True
    iterations: int = 6
    sink_frames: int = 1
    recent_frames: int = 3
    span_frames: int = 24
    spans_per_codebook: int = 1
    window_frames: int | None = None
    seed: int = 0
    backend: str = "auto"
    workspace_mb: int = 512

    def __post_init__(self) -> None:
        _require_choice("codec", self.codec, CODECS)
        _require_choice("backend", self.backend, BACKENDS)
        _require_choice("bits", self.bits, BITS)
        _require_choice("group_size", self.group_size, GROUP_SIZES)
        _require_between("num_stages", self.num_stages, 1, MAX_STAGES)
        _require_choice("symmetric", self.symmetric, (True, False))
        if self.clusters != "auto":
            _require_between("clusters", self.clusters, 1, MAX_CLUSTERS, "cluster ids are stored in one byte")
        for name, low in (
            ("iterations", 1),
            ("sink_frames", 0),
            ("recent_frames", 0),
            ("span_frames", 1),
            ("spans_per_codebook", 1),
        ):
            _require_between(name, getattr(self, name), low, 1 << 20)
        _require_between("workspace_mb", self.workspace_mb, 1, 1 << 20)
        _require_between("seed", self.seed, 0, (1 << 63) - 1)
        if self.window_frames is not None:
            _require_between("window_frames", self.window_frames, 1, 1 << 30)

    def with_changes(self, **changes: Any) -> QVGConfig:
        """A copy with some fields changed; an unknown name raises ConfigError."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in changes:
            _require_choice("setting", name, tuple(known))
        return QVGConfig(**{**known, **changes})

    @staticmethod
    def preset(name: str) -> QVGConfig:
        """One of PRESETS by name."""
        _require_choice("preset", name, tuple(PRESETS))
        return PRESETS[name]


def _require_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        raise ConfigError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, allowed))}; choose one of these")


def _require_between(name: str, value: object, low: int, high: int, why: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        reason = f" ({why})" if why else ""
        raise ConfigError(
            f"{name} is {value!r}, but must be a whole number from {low} to {high}{reason}; choose one in that range"
        )


# Names are for ever: workflows store them. Append, never rename.
PRESETS: dict[str, QVGConfig] = {
    "exact": QVGConfig(codec="none"),
    "qvg": QVGConfig(clusters="auto"),
    "qvg-pro": QVGConfig(clusters="auto", num_stages=4, group_size=16),
}
