"""The study's menu, and what rows say of its methods: bits per value, and how near to the exact video they came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .registry import STUDY
from .shipped import SHIPPED

# What reuses the denoiser's velocity changes nothing of the cache.
MENU = (*(method.name for method in STUDY if not method.reuse and method.name != "BF16"), *SHIPPED)


class Measured(NamedTuple):
    """`bits` per value of what is not exact, codebooks spread over the spans of a real model: by count. `psnr_db` against the
    exact cache's video in the demo world, as the node sets the method; None where nothing was walked yet."""

    bits: float
    psnr_db: float | None


# made by tools/write_docs.py: measured
MEASURED: dict[str, Measured] = {
    "RTN_INT4": Measured(5.01, 41.4),
    "RTN_INT2": Measured(3.01, 18.5),
    "RTN_K2_V4": Measured(4.01, 19.6),
    "RTN_INT4_RECENT2": Measured(6.59, 38.2),
    "RTN_INT4_REFRESH": Measured(5.01, 41.4),
    "KIVI_INT4": Measured(5.02, 32.8),
    "KIVI_INT2": Measured(3.01, 28.4),
    "KIVI_INT4_REFRESH": Measured(5.02, 32.8),
    "KIVI_K2_V4": Measured(4.01, 34.3),
    "QUAROT_KV_INT4": Measured(5.01, 38.3),
    "QUAROT_KV_INT2": Measured(3.01, 19.4),
    "QUAROT_KV_INT4_RECENT2": Measured(6.59, 36.4),
    "QUAROT_KV_INT4_REFRESH": Measured(5.01, 38.3),
    "PRQ_INT4": Measured(10.02, 51.6),
    "PRQ_INT2": Measured(8.01, 35.7),
    "QAQ_INT4": Measured(5.09, 31.8),
    "QAQ_INT2": Measured(3.09, 28.5),
    "TPTQ_INT2": Measured(5.91, 22.9),
    "AGE_TIER_INT4": Measured(5.03, 27.7),
    "AGE_TIER_INT2": Measured(3.64, 17.6),
    "FLOWCACHE_HYBRID_INT2": Measured(3.47, 17.6),
    "FLOWCACHE_ADAPTIVE_INT2": Measured(3.75, 17.6),
    "FLOWCACHE_PRUNE_INT4": Measured(2.91, 24.7),
    "FLOWCACHE_PRUNE_INT2": Measured(2.05, 19.8),
    "FLOWCACHE_SOFT_PRUNE_INT4": Measured(2.91, 23.2),
    "FLOWCACHE_SOFT_PRUNE_INT2": Measured(2.34, 18.8),
    "SPATIAL_MIXED_FG_RTN_INT4_BG_RTN_INT4": Measured(5.08, 27.0),
    "SPATIAL_MIXED_FG_RTN_INT4_BG_RTN_INT2": Measured(4.36, 17.5),
    "SPATIAL_MIXED_FG_KIVI_INT4_BG_KIVI_INT2": Measured(4.62, 24.6),
    "SPATIAL_MIXED_FG_QUAROT_KV_INT4_BG_RTN_INT2": Measured(4.62, 18.9),
    "LightX2V KIVI, 2 bits": Measured(3.0, 28.8),
    "LightX2V KIVI, 4 bits": Measured(5.0, 42.5),
    "LightX2V KIVI, 8 bits": Measured(9.0, 43.4),
    "sglang QVG, 2 bits": Measured(2.24, 38.0),
    "sglang QVG, 4 bits": Measured(4.24, 54.9),
    "NVFP4": Measured(4.5, 48.8),
    "FP8": Measured(8.0, 56.8),
    "keys 16, values 8 bits": Measured(12.06, 65.4),
    "Budget-PCA": Measured(2.32, 38.3),
}
# end

# From so many dB on a method has this verdict; below 30 frames diverge for anyone to see.
VERDICTS: tuple[tuple[str, float], ...] = (
    ("hardly different", 45.0),
    ("a little different", 35.0),
    ("plainly different", 30.0),
    ("another picture", 0.0),
)
UNKNOWN = "not walked yet"


def verdict(measured: Measured) -> str:
    """In two or three words."""
    if measured.psnr_db is None:
        return UNKNOWN
    return next(words for words, least in VERDICTS if measured.psnr_db >= least)


def by_verdict(measured: Mapping[str, Measured] = MEASURED) -> dict[str, list[str]]:
    """Names by verdict, the nearest first and in each those with the fewest bits; verdicts that nobody has are left out."""
    found: dict[str, list[str]] = {words: [] for words in (*(words for words, _ in VERDICTS), UNKNOWN)}
    for name in sorted(measured, key=lambda name: measured[name].bits):
        found[verdict(measured[name])].append(name)
    return {words: names for words, names in found.items() if names}


def with_bits(names: Sequence[str]) -> str:
    """As a tooltip has them: `NVFP4 (4.5), FP8 (8.0)`."""
    return ", ".join(f"{name} ({MEASURED[name].bits:.1f})" for name in names)
