"""What a layer's attention should take on a GPU: the larger of its arithmetic and its traffic, plus decoding.

Bandwidths are copies as measured, throughputs published or modelled ones (docs/kernels.md, "The cost model"). Keys and values
count once, although every wave of query blocks reads them again: the second-level cache hides that.
"""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """bytes_per_second of a copy; operations per second of bf16 attention, of our 8-bit and of our direct Triton kernel, of
    FlashAttention 2, which the official pack uses."""

    bytes_per_second: float
    bf16: float
    eight: float
    direct: float
    flash2: float


CARDS = {
    "H200": Card(4.3e12, 600e12, 600e12, 250e12, 370e12),
    "H100": Card(2.95e12, 600e12, 600e12, 250e12, 370e12),
    "A100": Card(1.8e12, 200e12, 250e12, 100e12, 200e12),
    "RTX 4090": Card(0.9e12, 160e12, 300e12, 110e12, 160e12),
    "RTX 5090": Card(1.6e12, 210e12, 400e12, 140e12, 210e12),
}


def predicted_ms(device: str, way: str, heads: int, queries: int, keys: int, bits: float, channels: int = 128) -> float | None:
    """Milliseconds of one way to read; None for a device that is not in CARDS. `bits` per value, all overhead included."""
    card = next((card for name, card in CARDS.items() if name in device), None)
    if card is None:
        return None
    values, operations = 2 * heads * keys * channels, 4 * heads * queries * keys * channels
    stored, per_second = values * bits / 8, card.bytes_per_second
    decode = (values * 2 + stored) / per_second
    seconds = {
        "bf16": max(operations / card.bf16, values * 2 / per_second),
        "exact": decode + max(operations / card.bf16, values * 2 / per_second),
        "fast": (values + stored) / per_second + max(operations / card.eight, values / per_second),
        "direct": max(operations / card.direct, stored / per_second),
        # Everything decoded twice, copied by permute and cat, all keys rotated in float64 (52 bytes of traffic per value).
        "official": 2 * decode + values * 8 / per_second + values / 2 * 52 / per_second + operations / card.flash2,
    }[way]
    return seconds * 1e3
