"""From measurements to the rows of codecs.csv."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..codec import make_codecs
from ..config import QVGConfig
from ..demo.command import GIVEN_FRAMES
from ..files import written_whole
from ..models.demo_world import DemoWorldConfig
from .methods import Method
from .probes import Probe
from .statistics import bootstrap_mean
from .walks import Case, WalkResult, pooled

# What a span of Self-Forcing holds: 24 frames of 1,560 tokens.
AMORTISED_TOKENS = 37_440
WINDOWS = 4
_WITHOUT_GROUPS = ("klt", "fp8", "bf16-int8")


@dataclass(frozen=True)
class Measured:
    """A method, its walks in the order of the cases, and its probes without and with outlier tokens."""

    method: Method
    walks: Sequence[WalkResult]
    probe: Probe
    outlier_probe: Probe


def row(measured: Measured, reference: Measured, cases: Sequence[Case]) -> dict[str, Any]:
    """One line of the table. Gains are paired: the same world, path and seed."""
    config, walks, probe = measured.method.config, measured.walks, measured.probe
    psnr = bootstrap_mean([walk.psnr_db() for walk in walks])
    gain = bootstrap_mean([ours.psnr_db() - theirs.psnr_db() for ours, theirs in zip(walks, reference.walks, strict=True)])
    sizes = _mean_bytes(walks)
    frames = cases[0].frames
    # The probes have no positions: they say nothing of keys that are kept rotated.
    probed = config.keys == "before_rope"
    return {
        "codec": config.codec,
        "preset": measured.method.name,
        "bits_k": config.bits,
        "bits_v": config.bits if config.bits_v is None else config.bits_v,
        "stages": config.num_stages if config.codec == "qvg" else int(config.codec == "klt"),
        "clusters": _centroids(config),
        "group_size": 0 if config.codec in _WITHOUT_GROUPS else config.group_size,
        "bits_per_value": _round(bits_per_value(walks)),
        "bits_per_value_amortised": _round(amortised_bits(config, walks[0])),
        "cache_bytes": round(sum(sizes.values())),
        "worlds": len({case.seed for case in cases}),
        "psnr_db": _round(psnr.mean),
        "psnr_db_low": _round(psnr.low),
        "psnr_db_high": _round(psnr.high),
        "ssim": _round(float(np.mean([np.mean(walk.similarity[GIVEN_FRAMES:]) for walk in walks]))),
        "attention_error": _round(probe.attention_error) if probed else "",
        "logit_slope": _round(probe.logit_slope) if probed else "",
        "encode_ms": _round(probe.encode_ms),
        "decode_ms": _round(probe.decode_ms),
        "gain_db": _round(gain.mean),
        "gain_db_low": _round(gain.low),
        "gain_db_high": _round(gain.high),
        "keys": config.keys,
        "transform": config.transform if config.codec == "klt" else "",
        "paths": len({case.path for case in cases}),
        "frames": frames,
        "seeds": " ".join(str(seed) for seed in sorted({case.seed for case in cases})),
        "first_divergent_frame": _round(float(np.median([walk.first_divergent_frame() for walk in walks]))),
        **{f"psnr_db_frames_{a}_{b}": _round(pooled(walks, a, b)) for a, b in windows(frames)},
        "revisit_db": _round(float(np.mean([walk.revisit_db for walk in walks if walk.revisit_db is not None] or [np.nan]))),
        "mass_moved": _round(probe.mass_moved) if probed else "",
        "top1_shift": _round(probe.top1_shift) if probed else "",
        "key_error": _round(probe.key_error) if probed else "",
        "value_error": _round(probe.value_error) if probed else "",
        "attention_error_outliers": _round(measured.outlier_probe.attention_error) if probed else "",
        "peak_cache_bytes": max(walk.peak_bytes for walk in walks),
        **{
            f"bytes_{name}": round(sizes.get(name, 0))
            for name in ("codes", "ids", "scales", "zero_points", "centroids", "basis", "exact", "outliers")
        },
        "seconds_per_frame": _round(float(np.mean([walk.seconds_per_frame for walk in walks]))),
    }


def _centroids(config: QVGConfig) -> int:
    """Centroids that a codebook begins with, "auto" resolved for the demo's spans; 0 for methods without."""
    shape = DemoWorldConfig()
    tokens = shape.cache_spec().check(config).span_frames * shape.tokens_per_frame
    codec = make_codecs(config).keys
    sizes = codec.predicted_codebook_bytes((1, 1, shape.head_dim), [tokens])
    per_centroid = shape.head_dim + 2 if config.codec == "klt" else 2 * shape.head_dim * config.num_stages
    return sizes.get("centroids", 0) // per_centroid


def windows(frames: int) -> list[tuple[int, int]]:
    """Quarters of the generated frames."""
    edges = np.linspace(GIVEN_FRAMES, frames, WINDOWS + 1).round().astype(int).tolist()
    return list(itertools.pairwise(edges))


def bits_per_value(walks: Sequence[WalkResult]) -> float:
    """Everything that encoded spans take, codebooks included, over the values in them; the exact tail is not in it."""
    walk = walks[0]
    config = DemoWorldConfig()
    values = 2 * config.layers * config.heads * config.head_dim * walk.encoded_tokens
    return 8 * (sum(walk.bytes.values()) - walk.bytes.get("exact", 0)) / values


def amortised_bits(config: QVGConfig, walk: WalkResult) -> float:
    """The same if the walk's codebook, as large as it has grown, served a span of 37,440 tokens."""
    shape = DemoWorldConfig()
    span_tokens = shape.cache_spec().check(config).span_frames * shape.tokens_per_frame
    served = min(config.spans_per_codebook, walk.encoded_tokens // span_tokens)
    bits = 0.0
    for codec in make_codecs(config):
        size = sum(codec.predicted_bytes((1, 1, AMORTISED_TOKENS, shape.head_dim)).values())
        size += sum(codec.predicted_codebook_bytes((1, 1, shape.head_dim), [span_tokens] * served).values())
        bits += 8 * size / (2 * AMORTISED_TOKENS * shape.head_dim)
    return bits


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The file appears whole or not at all."""
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _mean_bytes(walks: Sequence[WalkResult]) -> dict[str, float]:
    names = {name for walk in walks for name in walk.bytes}
    return {name: float(np.mean([walk.bytes.get(name, 0) for walk in walks])) for name in names}


def _round(value: float) -> float:
    return round(value, 4)
