"""How many codewords and directions a `klt` codebook has: functions of settings and span lengths alone, so that bytes can be
predicted. One codeword and one direction take the same room: a row of D bytes and its float16 scale."""

from __future__ import annotations

from ...kernels.kmeans import MAX_CLUSTERS
from ..config import QVGConfig

# Bit planes grow and shrink by so many channels: one byte of a token's codes.
STEP_CHANNELS = 8
# A basis is learned from at least so many tokens for each channel; from fewer it would fit them and nothing else.
_LEAST_TOKENS_PER_CHANNEL = 4
# From so many tokens for each channel on, a basis keeps an eighth of all directions more.
_LONG_SPANS = (16, 32)


def first_codewords(config: QVGConfig, tokens: int) -> int:
    """Codewords of a new codebook. "auto": one for 16 tokens, at most half of all that ids can name if other spans follow."""
    if config.clusters != "auto":
        return min(config.clusters, tokens)
    return max(1, min(MAX_CLUSTERS if config.spans_per_codebook == 1 else MAX_CLUSTERS // 2, tokens // 16))


def added_codewords(config: QVGConfig, codewords: int, tokens: int) -> int:
    """Codewords that a later span adds. "auto": at most one for 32 tokens, and such that they last for all spans to come."""
    share = MAX_CLUSTERS // 2 // max(1, config.spans_per_codebook - 1)
    wanted = min(tokens // 32, max(1, share)) if config.clusters_added == "auto" else config.clusters_added
    return max(0, min(wanted, MAX_CLUSTERS - codewords, tokens))


def learns_basis(config: QVGConfig, tokens: int, channels: int) -> bool:
    """Whether a codebook that begins with so many tokens learns a basis; otherwise it takes the Hadamard matrix."""
    return config.transform == "klt" and (tokens >= _LEAST_TOKENS_PER_CHANNEL * channels or not has_hadamard(channels))


def has_hadamard(channels: int) -> bool:
    """Whether there is a Hadamard matrix of so many channels (Sylvester's kind)."""
    return channels & (channels - 1) == 0


def directions(config: QVGConfig, tokens: int, channels: int) -> int:
    """Directions of a learned basis: as many as get bits, or would bring little if they did (measured: below 0.3 dB at 1 to 3.5
    bits). Longer spans pay for more: a direction's room is shared by more tokens."""
    share = min(1 / 8 + config.bits / 4, 1 / 4 + 3 * config.bits / 16)
    share += sum(1 / 8 for length in _LONG_SPANS if tokens >= length * channels)
    return min(channels, max(STEP_CHANNELS, round(share * channels / STEP_CHANNELS) * STEP_CHANNELS))


def most_directions(config: QVGConfig, tokens: int, channels: int) -> int:
    """What a learned basis has at most: all directions that can get bits, where the usual ones leave too much of the signal."""
    return min(channels, max(directions(config, tokens, channels), round(config.bits * channels)))


def basis_row_bytes(channels: int) -> int:
    """Bytes of one direction, and of one codeword."""
    return channels + 2
