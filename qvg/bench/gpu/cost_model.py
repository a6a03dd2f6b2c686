"""What a layer's attention should take on a GPU: arithmetic, traffic, decoding, and the host that starts it all.

Milliseconds of one call are the larger of what the GPU and what the host takes. The GPU's:

    attention   operations / throughput, or its traffic where that is more
    decoding    what is read and written once for all queries, or the instructions for it where they take longer, and for
                transform coefficients the product with their basis
    launches    a fixed time each

Throughput follows from a compiled tile of 128 queries x 64 keys: cycles of the matrix unit, and of the instructions beside it
(`INSTRUCTIONS`, counted by the compile gate). They follow each other (Triton on Hopper), or overlap at best; on other cards it is
the mean of both. `ANCHORS` says how far that is from what others have published, and what was fitted to it: numbers of the pack's
own kernels on a GPU are still to come. Keys and values count once, although every wave of query blocks reads them again: the
second-level cache hides that.
"""

from __future__ import annotations

from typing import NamedTuple

_CHANNELS = 128
# Of a transform's directions, those that have bits.
_USED_DIRECTIONS = 0.625
# Fitted: what instructions beside the matrix unit add to a tile where nothing overlaps (H100, Triton's tutorial).
_SERIAL = 1.27
# Assumed: what is reached of perfect overlap.
_OVERLAP = 0.9
# Of one launch: what a GPU spends on the smallest kernel (assumed), and the host on starting one from Python. The latter was
# measured on a core of a server without a GPU: 1,900 kernels of one read in 55 ms, Triton's own launch left out.
_LAUNCH_SECONDS, _HOST_SECONDS = 2e-6, 29e-6


class Card(NamedTuple):
    """units: multiprocessors; matrix operations per cycle of each, in 16 bits, int8 and fp8 with sums in 32 bits (0: none).
    kind: as the compile gate names it. waits: whether products and the arithmetic beside them take turns. library: operations per
    second of the best 16-bit attention where that is published and no kernel like ours; 0: as modelled. assumed: of the pack's
    16-bit attention, where no cycles are modelled; its other kernels' are in proportion."""

    kind: str
    units: int
    ghz: float
    bytes_per_second: float
    matrix16: int
    int8: int
    fp8: int
    waits: bool = False
    library: float = 0.0
    assumed: float = 0.0


class Tile(NamedTuple):
    """What one turn of a kernel's loop works on, and by how many warps."""

    queries: int = 128
    keys: int = 64
    warps: int = 8

    @property
    def operations(self) -> int:
        """Of attention's two products."""
        return 4 * self.queries * self.keys * _CHANNELS


CARDS = {
    "H200": Card("sm_90", 132, 1.75, 4.3e12, 4096, 8192, 8192, waits=True, library=595e12),
    "H100": Card("sm_90", 132, 1.70, 2.95e12, 4096, 8192, 8192, waits=True, library=595e12),
    "A100": Card("sm_80", 108, 1.35, 1.8e12, 2048, 4096, 0),
    "RTX 3090": Card("sm_86", 82, 1.75, 0.84e12, 512, 2048, 0),
    "RTX 4090": Card("sm_89", 128, 2.55, 0.9e12, 512, 2048, 1024),
    "RTX 5090": Card("sm_120", 170, 2.45, 1.6e12, 512, 2048, 1024),
    # 30 % of the peak, as an assumption: no absolute number of a kernel like torch's was found.
    "MI300X": Card("gfx942", 304, 2.1, 4.3e12, 2048, 4096, 4096, waits=True, assumed=390e12),
}

# By kernel and kind of card. The prototype's loops are those that the published kernels below resemble.
INSTRUCTIONS: dict[str, dict[str, int]] = {
    "prototype": {"sm_80": 670, "sm_86": 590, "sm_89": 590, "sm_90": 448, "sm_120": 597},
    "prototype8": {"sm_89": 606, "sm_90": 510, "sm_120": 562},
    "prototype8, float16 values": {"sm_80": 584, "sm_86": 584, "sm_89": 584, "sm_90": 488, "sm_120": 580},
    "attention": {"sm_80": 635, "sm_86": 691, "sm_89": 691, "sm_90": 497, "sm_120": 635, "gfx942": 744},
    "attention8": {"sm_89": 792, "sm_90": 715, "sm_120": 769},
    "attention8, float16 values": {"sm_80": 659, "sm_86": 659, "sm_89": 659, "sm_90": 559, "sm_120": 660, "gfx942": 946},
    "direct": {"sm_86": 1072, "sm_89": 1072, "sm_90": 805, "sm_120": 1073},
    "direct_coefficients": {"sm_86": 2362, "sm_89": 2362, "sm_90": 2781, "sm_120": 2396, "gfx942": 5841},
}
# Instructions that one decoded value takes, the mean of a rotated key's and a value's.
_DECODED = {"none": 2.0, "qvg": 13.0, "klt": 40.0}


class Work(NamedTuple):
    """One layer's call. `bits`: of a stored value, all overhead included; `launches`: kernels that it starts."""

    heads: int
    queries: int
    keys: int
    bits: float
    codec: str = "qvg"
    launches: int = 60
    channels: int = 128

    @property
    def values(self) -> int:
        """Keys' and values' numbers."""
        return 2 * self.heads * self.keys * self.channels

    @property
    def operations(self) -> int:
        """Of attention."""
        return 4 * self.heads * self.queries * self.keys * self.channels


def predicted_ms(device: str, way: str, work: Work) -> float | None:
    """Milliseconds of one way to read ("bf16", a cache at 16 bits read by the best attention there is; "exact", "fast", "direct";
    "official"); None for a device that is not in CARDS."""
    card = next((card for name, card in CARDS.items() if name in device), None)
    if card is None:
        return None
    if way == "bf16":
        return 1e3 * max(work.operations / _library(card), 2 * work.values / card.bytes_per_second)
    gpu = {"exact": _exact, "fast": _fast, "direct": _direct, "official": _official}[way](card, work)
    return 1e3 * max(gpu + work.launches * _LAUNCH_SECONDS, work.launches * _HOST_SECONDS)


def throughput(card: Card, kernel: str, keys: int | None = None, values: int | None = None) -> float:
    """Operations per second of attention by a kernel of INSTRUCTIONS. keys, values: matrix operations per cycle of the products
    with each; by default those of 16 bits."""
    if card.assumed and kernel != "attention":
        return card.assumed * _cycles(card, "attention") / _cycles(card, kernel, keys, values)
    return card.assumed or card.units * card.ghz * 1e9 / _cycles(card, kernel, keys, values)


def _cycles(card: Card, kernel: str, keys: int | None = None, values: int | None = None) -> float:
    """Of a multiprocessor, for one operation."""
    tile = _tile(card, kernel)
    half = tile.operations / 2
    matrix = half / (keys or card.matrix16) + half / (values or card.matrix16)
    if kernel == "direct_coefficients":  # every tile of keys is brought back into its channels
        matrix += 2 * tile.keys * _USED_DIRECTIONS * _CHANNELS**2 / card.matrix16
    issue = _instructions(card, kernel) * tile.warps / 4
    serial, overlapped = matrix + _SERIAL * issue, max(matrix, issue) / _OVERLAP
    return (serial if card.waits else (serial + overlapped) / 2) / tile.operations


def _tile(card: Card, kernel: str) -> Tile:
    """As `kernels/launch.py` plans it for many queries."""
    if kernel != "direct_coefficients":
        return Tile()
    if card.kind == "gfx942":
        return Tile(64, 64, 4)
    return Tile(64, 64 if card.kind == "sm_90" else 32)


def _instructions(card: Card, kernel: str) -> int:
    """Cards that nobody has compiled a kernel for are like their nearest relative."""
    known = INSTRUCTIONS[kernel]
    near = {"sm_80": "sm_86", "gfx942": "sm_90"}.get(card.kind, card.kind)
    return known.get(card.kind) or known[near]


def _library(card: Card) -> float:
    return card.library or throughput(card, "attention" if card.kind == "gfx942" else "prototype")


def _decoding(card: Card, work: Work, bytes_written: float) -> float:
    """Of all keys and values, once."""
    traffic = work.values * (work.bits / 8 + bytes_written) / card.bytes_per_second
    lanes = card.units * 128 * card.ghz * 1e9
    arithmetic = work.values * _DECODED[work.codec] / lanes
    # Each value of a transform is a product with all directions that have bits, at half of the matrix units' speed.
    product = work.values * 2 * _USED_DIRECTIONS * work.channels if work.codec == "klt" else 0
    return max(traffic, arithmetic) + product / (0.5 * card.units * card.matrix16 * card.ghz * 1e9)


def _exact(card: Card, work: Work) -> float:
    return _decoding(card, work, 2) + max(work.operations / _library(card), 2 * work.values / card.bytes_per_second)


def _fast(card: Card, work: Work) -> float:
    eight = card.fp8 > 0 and card.kind != "gfx942"
    kernel = "attention8" if eight else "attention8, float16 values"
    speed = throughput(card, kernel, card.int8, card.fp8 if eight else card.matrix16)
    written = 1 if eight else 1.5
    return _decoding(card, work, written) + max(work.operations / speed, written * work.values / card.bytes_per_second)


def _direct(card: Card, work: Work) -> float:
    kernel = "direct_coefficients" if work.codec == "klt" else "direct" if work.codec == "qvg" else "attention"
    speed = throughput(card, kernel)
    padded = work.operations * max(1.0, 16 / work.queries)  # a tile has 16 queries at least
    return max(padded / speed, work.values * work.bits / 8 / card.bytes_per_second)


def _official(card: Card, work: Work) -> float:
    """Everything decoded twice, copied by permute and cat, all keys rotated in float64 (52 bytes of traffic per value), then
    FlashAttention 2."""
    per_second = card.bytes_per_second
    flash2 = 370e12 if card.kind == "sm_90" else _library(card)
    copies = work.values * 8 / per_second + work.values / 2 * 52 / per_second
    return 2 * _decoding(card, work, 2) + copies + work.operations / flash2


class Anchor(NamedTuple):
    """A published number and what the model says. `fitted`: whether the model was made to meet it."""

    what: str
    published: float
    predicted: float
    source: str
    fitted: bool = False

    @property
    def miss(self) -> float:
        """The prediction's error as a share of what was published."""
        return self.predicted / self.published - 1


def anchors() -> list[Anchor]:
    """TFLOP/s, or how many times faster than FlashAttention 2 on the same card."""
    h100, a100, r4090, r5090 = (CARDS[name] for name in ("H100", "A100", "RTX 4090", "RTX 5090"))
    flash2 = throughput(r4090, "prototype")
    sage1 = throughput(r4090, "prototype8, float16 values", r4090.int8, 2 * r4090.matrix16)
    sage2 = throughput(r4090, "prototype8", r4090.int8, r4090.fp8)
    sage2pp = throughput(r4090, "prototype8", r4090.int8, 2 * r4090.fp8)
    # One query over 128 k keys of 32 heads: nothing but bytes.
    few = Work(32, 1, 131_072, 2.25, launches=2)
    decode = (predicted_ms("RTX 4090", "bf16", few) or 0) / (predicted_ms("RTX 4090", "direct", few) or 1)
    tera = 1e-12
    return [
        Anchor(
            "H100, Triton's tutorial, bf16", 436, tera * throughput(h100, "prototype"), "2407.08608; pytorch/benchmark 2391", True
        ),
        Anchor("H100, Triton, fp8", 635, tera * throughput(h100, "prototype8", h100.fp8, h100.fp8), "2407.08608, figure"),
        Anchor("A100, FlashAttention 2", 199, tera * throughput(a100, "prototype"), "thu-ml/SageAttention issue 57"),
        Anchor("RTX 4090, FlashAttention 2", 160, tera * flash2, "2410.02367"),
        Anchor("RTX 5090, FlashAttention 2", 212, tera * throughput(r5090, "prototype"), "2505.11594"),
        Anchor("RTX 4090, SageAttention 1, times", 2.1, sage1 / flash2, "2410.02367"),
        Anchor("RTX 4090, SageAttention 2, times", 3.0, sage2 / flash2, "2411.10958"),
        Anchor("RTX 4090, SageAttention 2++, times", 3.9, sage2pp / flash2, "2505.21136"),
        Anchor("RTX 4090, BitDecoding, one query, times", 7.5, decode, "2503.18773, at most"),
    ]
