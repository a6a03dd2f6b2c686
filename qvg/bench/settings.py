"""settings.md: which preset for how much memory, out of the rows of codecs.csv and the bytes predicted for a real model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cache.spec import CacheSpec
from ..config import PRESETS
from ..files import written_whole

# Self-Forcing 1.3B at 480 x 832: 30 layers, 12 heads of 128, 1,560 tokens per latent frame, 3 latent frames per chunk.
SELF_FORCING = CacheSpec(layers=30, heads=12, head_dim=128, tokens_per_frame=1560, chunk_frames=3)
LATENT_FRAMES = (21, 60, 180)


def settings_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a line per preset that was measured, the largest first. Bytes and bits are those of Self-Forcing."""
    measured = {entry["preset"]: entry for entry in rows}
    head = ["preset", *(f"{frames} latent frames" for frames in LATENT_FRAMES), "bits per value", "PSNR against exact", "SSIM"]
    lines = [head, ["---"] * len(head)]
    names = [name for name in PRESETS if name == "exact" or name in measured]
    for name in sorted(names, key=lambda name: -_sizes(name)[-1]):
        quality = _quality(measured.get(name))
        lines.append([f"`{name}`", *(f"{size / 1e9:.2f} GB" for size in _sizes(name)), f"{_bits(name):.2f}", *quality])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _sizes(name: str) -> list[int]:
    return [SELF_FORCING.predict(PRESETS[name], frames).total for frames in LATENT_FRAMES]


def _bits(name: str) -> float:
    """Per value in encoded spans, codebooks included; 16 where nothing is encoded."""
    frames = LATENT_FRAMES[-1]
    size = SELF_FORCING.predict(PRESETS[name], frames)
    encoded = frames - size.exact / SELF_FORCING.exact_bytes(1)
    return 16.0 if encoded == 0 else 16 * (size.total - size.exact) / (SELF_FORCING.exact_bytes(1) * encoded)


def _quality(entry: Mapping[str, Any] | None) -> list[str]:
    if entry is None:
        return ["the same", "1"]
    low, high = float(entry["psnr_db_low"]), float(entry["psnr_db_high"])
    psnr = f"{float(entry['psnr_db']):.1f} dB ({low:.1f} to {high:.1f})"
    return [psnr, f"{float(entry['ssim']):.3f}"]


def write_settings(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The file appears whole or not at all."""
    with written_whole(path) as unfinished:
        unfinished.write_text(settings_table(rows), encoding="utf-8")
