"""What a method is judged by on the page: names, units, which way is better; fronts, orders and cautions of the study's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..bench.judge import DIVERGENT_DB


@dataclass(frozen=True)
class Metric:
    """`better` is 1 where more is better, -1 where less is. `digits` behind the point."""

    key: str
    label: str
    better: int
    digits: int = 2


METRICS = (
    Metric("compression", "compression, times", 1),
    Metric("peak", "peak memory, MB", -1, 1),
    Metric("cache", "cache at the end, MB", -1, 2),
    Metric("ssim", "SSIM, all frames", 1, 3),
    Metric("ssim_first", "SSIM, first generated frame", 1, 3),
    Metric("ssim_divergent", "SSIM, first divergent frame", 1, 3),
    Metric("psnr", "PSNR, all frames, dB", 1, 1),
    Metric("psnr_first", "PSNR, first generated frame, dB", 1, 1),
    Metric("psnr_divergent", "PSNR, first divergent frame, dB", 1, 1),
    Metric("divergent_frame", f"first frame below {DIVERGENT_DB:g} dB", 1, 0),
    Metric("lpips", "LPIPS, all frames", -1, 3),
    Metric("drift", "last window", 1, 2),
    Metric("slope", "drift, dB per 100 frames", 1, 1),
    Metric("visits", "between visits, dB", 1, 1),
    Metric("truth", "against the real film, dB", 1, 1),
    Metric("imaging", "VBench imaging quality", 1, 3),
    Metric("runtime", "seconds", -1, 3),
)
# The four sets of objectives of arXiv 2603.27469's dashboard.
FRONTS = {
    "balanced practical": ("ssim", "lpips", "drift", "compression", "runtime", "peak"),
    "quality-preserving compression": ("compression", "ssim", "lpips", "drift"),
    "systems": ("runtime", "peak", "compression"),
    "quality first": ("ssim", "lpips", "drift", "runtime"),
}
# Its four orders: by the first, equals by the next, and so on. Equal is what is shown as equal.
ORDERS = {
    "single-GPU practical": ("peak", "ssim", "lpips", "drift", "compression", "runtime", "psnr"),
    "quality retention": ("ssim", "lpips", "psnr", "drift", "peak", "compression", "runtime"),
    "long-horizon stability": ("drift", "ssim", "lpips", "peak", "compression", "runtime"),
    "maximum compression": ("compression", "ssim", "lpips", "drift", "peak", "runtime"),
}
SSIM_TOLERANCE, LPIPS_TOLERANCE, LEAST_COMPRESSION, SLOW = 0.05, 0.05, 1.1, 2.0


def described() -> dict[str, Any]:
    """For the page."""
    return {"metrics": [asdict(metric) for metric in METRICS], "fronts": FRONTS, "orders": ORDERS}


def cautions(values: Mapping[str, float | None], exact: Mapping[str, float | None], seeds: int) -> list[str]:
    """What to know before a method is taken, by the study's tolerances."""
    found = []

    def beyond(key: str, limit: float, sign: int) -> bool:
        mine, theirs = values.get(key), exact.get(key)
        return mine is not None and theirs is not None and sign * (mine - theirs) > limit

    if beyond("ssim", SSIM_TOLERANCE, -1):
        found.append(f"SSIM is more than {SSIM_TOLERANCE} below exact's")
    if beyond("lpips", LPIPS_TOLERANCE, 1):
        found.append(f"LPIPS is more than {LPIPS_TOLERANCE} above exact's")
    compression = values.get("compression")
    if compression is not None and compression < LEAST_COMPRESSION:
        found.append("it hardly takes less memory than exact")
    if beyond("peak", 0.0, 1):
        found.append("its peak is above exact's: what it saves does not reach the peak")
    mine, theirs = values.get("runtime"), exact.get("runtime")
    if mine is not None and theirs and mine > SLOW * theirs:
        found.append(f"it takes {mine / theirs:.1f} times as long as exact here")
    if seeds and seeds < 3:
        found.append(f"only {seeds} seed{'s' if seeds > 1 else ''}: differences may be chance")
    return found


def front(rows: Sequence[Mapping[str, float | None]], keys: Sequence[str]) -> set[int]:
    """Rows that no other beats: at least as good in every metric that anybody has, better in one. One that lacks such a metric is
    on no front."""
    ways = {metric.key: metric.better for metric in METRICS}
    used = [key for key in keys if any(row.get(key) is not None for row in rows)]
    points = {
        index: [ways[key] * value for key in used if (value := row.get(key)) is not None]
        for index, row in enumerate(rows)
        if used and all(row.get(key) is not None for key in used)
    }

    def beaten(one: list[float]) -> bool:
        return any(other != one and all(a >= b for a, b in zip(other, one, strict=True)) for other in points.values())

    return {index for index, point in points.items() if not beaten(point)}
