"""From measurements to the rows of codecs.csv."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..cache.spec import CacheSpec
from ..codec import make_codecs
from ..config import QVGConfig
from ..files import written_whole
from .judge import Instrument, WalkResult
from .methods import Method
from .probes import Probe
from .statistics import bootstrap_mean
from .walks import DEMO_WORLD, pooled

# What a span of Self-Forcing holds: 24 frames of 1,560 tokens.
AMORTISED_TOKENS = 37_440
WINDOWS = 4
_WITHOUT_GROUPS = ("klt", "fp8", "bf16-int8")


@dataclass(frozen=True)
class Measured:
    """A method, its walks in the order of the cases, and its probes without and with outlier tokens."""

    method: Method
    walks: Sequence[WalkResult]
    probe: Probe | None = None
    outlier_probe: Probe | None = None


class Walked(Protocol):
    """What a row says of the video behind it."""

    @property
    def seed(self) -> int: ...

    @property
    def path(self) -> str: ...

    @property
    def frames(self) -> int: ...


def row(measured: Measured, reference: Measured, cases: Sequence[Walked], instrument: Instrument = DEMO_WORLD) -> dict[str, Any]:
    """One line of the table. Gains are paired: the same world, path and seed."""
    config, walks, given = measured.method.config, measured.walks, instrument.given_frames
    psnr = bootstrap_mean([walk.psnr_db(given) for walk in walks])
    pairs = zip(walks, reference.walks, strict=True)
    gain = bootstrap_mean([ours.psnr_db(given) - theirs.psnr_db(given) for ours, theirs in pairs])
    sizes = _mean_bytes(walks)
    frames = cases[0].frames
    return {
        "codec": config.codec,
        "preset": measured.method.name,
        "bits_k": config.bits,
        "bits_v": config.bits if config.bits_v is None else config.bits_v,
        "stages": config.num_stages if config.codec == "qvg" else int(config.codec == "klt"),
        "clusters": _centroids(config, instrument.spec),
        "group_size": 0 if config.codec in _WITHOUT_GROUPS else config.group_size,
        "bits_per_value": _round(bits_per_value(walks, instrument.spec)),
        "bits_per_value_amortised": _round(amortised_bits(config, walks[0], instrument.spec)),
        "cache_bytes": round(sum(sizes.values())),
        "worlds": len({case.seed for case in cases}),
        "psnr_db": _round(psnr.mean),
        "psnr_db_low": _round(psnr.low),
        "psnr_db_high": _round(psnr.high),
        "ssim": _round(float(np.mean([np.mean(walk.similarity[given:]) for walk in walks]))),
        **_probed(measured, ("attention_error", "logit_slope", "encode_ms", "decode_ms")),
        "gain_db": _round(gain.mean),
        "gain_db_low": _round(gain.low),
        "gain_db_high": _round(gain.high),
        "keys": config.keys,
        "transform": config.transform if config.codec == "klt" else "",
        "paths": len({case.path for case in cases}),
        "frames": frames,
        "seeds": " ".join(str(seed) for seed in sorted({case.seed for case in cases})),
        "first_divergent_frame": _round(float(np.median([walk.first_divergent_frame() for walk in walks]))),
        **{f"psnr_db_frames_{a}_{b}": _round(pooled(walks, a, b)) for a, b in windows(frames, given)},
        "revisit_db": _round(float(np.mean([walk.revisit_db for walk in walks if walk.revisit_db is not None] or [np.nan]))),
        **_probed(measured, ("mass_moved", "top1_shift", "key_error", "value_error", "attention_error_outliers")),
        "peak_cache_bytes": max(walk.peak_bytes for walk in walks),
        **{
            f"bytes_{name}": round(sizes.get(name, 0))
            for name in ("codes", "ids", "scales", "zero_points", "centroids", "basis", "exact", "outliers")
        },
        "seconds_per_frame": _round(float(np.mean([walk.seconds_per_frame for walk in walks]))),
    }


def _probed(measured: Measured, names: Sequence[str]) -> dict[str, float | str]:
    """What the probes found; "" where nobody probed. They have no positions: of keys that are kept rotated they say how long they
    take alone."""
    rotated = measured.method.config.keys != "before_rope"
    found: dict[str, float | str] = {}
    for name in names:
        outlying = name.endswith("_outliers")
        probe = measured.outlier_probe if outlying else measured.probe
        silent = probe is None or (rotated and not name.endswith("_ms"))
        found[name] = "" if silent else _round(getattr(probe, name.removesuffix("_outliers")))
    return found


def span_tokens(config: QVGConfig, spec: CacheSpec) -> int:
    """Of a span, which is whole chunks of the instrument's."""
    return spec.check(config).span_chunks * spec.chunk_frames * spec.tokens_per_frame


def _centroids(config: QVGConfig, spec: CacheSpec) -> int:
    """Centroids that a codebook begins with, "auto" resolved for the instrument's spans; 0 for methods without."""
    tokens = span_tokens(config, spec)
    codec = make_codecs(config).keys
    sizes = codec.predicted_codebook_bytes((1, 1, spec.head_dim), [tokens])
    per_centroid = spec.head_dim + 2 if config.codec == "klt" else 2 * spec.head_dim * config.num_stages
    return sizes.get("centroids", 0) // per_centroid


def windows(frames: int, given_frames: int = DEMO_WORLD.given_frames) -> list[tuple[int, int]]:
    """Quarters of the generated frames."""
    edges = np.linspace(given_frames, frames, WINDOWS + 1).round().astype(int).tolist()
    return list(itertools.pairwise(edges))


def bits_per_value(walks: Sequence[WalkResult], spec: CacheSpec = DEMO_WORLD.spec) -> float:
    """Everything that encoded spans take, codebooks included, over the values in them; the exact tail is not in it."""
    walk = walks[0]
    values = 2 * spec.layers * spec.heads * spec.head_dim * walk.encoded_tokens
    return 8 * (sum(walk.bytes.values()) - walk.bytes.get("exact", 0)) / values


def amortised_bits(config: QVGConfig, walk: WalkResult, spec: CacheSpec = DEMO_WORLD.spec) -> float:
    """The same if the walk's codebook, as large as it has grown, served a span of 37,440 tokens."""
    own_tokens = span_tokens(config, spec)
    served = min(config.spans_per_codebook, walk.encoded_tokens // own_tokens)
    bits = 0.0
    for codec in make_codecs(config):
        size = sum(codec.predicted_bytes((1, 1, AMORTISED_TOKENS, spec.head_dim)).values())
        size += sum(codec.predicted_codebook_bytes((1, 1, spec.head_dim), [own_tokens] * served).values())
        bits += 8 * size / (2 * AMORTISED_TOKENS * spec.head_dim)
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
