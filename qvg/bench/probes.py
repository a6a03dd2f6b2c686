"""What a codec does to attention, on synthetic tensors: no model, no chaos, one number per question.

One layer remembers some encoded frames and one exact frame; queries look for what the exact frame's tokens look like, with logits
as spread as those of real models (standard deviation 2.2).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codec import make_codecs
from ..codec.base import EncodeHint
from ..codec.span import Span
from ..config import QVGConfig
from ..metrics import relative_rms
from .synthetic import COLS, ROWS, KeysValues, make_keys_values

LOGIT_DEVIATION = 2.2
_QUERIES = 512
_REPEATS = 3
_TOKENS_PER_FRAME = ROWS * COLS


@dataclass(frozen=True)
class Probe:
    """Means over seeds; times on the first one.

    attention_error  |output - exact output| / |exact output|
    logit_slope      of cached logits over exact ones, per query; below 1 keys lose attention
    mass_moved       attention on cached tokens minus what it should be, as a share of all
    top1_shift       share of queries whose strongest key is another one
    encode_ms        for keys and values of one span, one head; decode_ms to read them once
    """

    attention_error: float
    logit_slope: float
    mass_moved: float
    top1_shift: float
    key_error: float
    value_error: float
    encode_ms: float
    decode_ms: float


@torch.no_grad()
def probe(config: QVGConfig, seeds: Sequence[int] = (0, 1, 2), frames: int = 5, heads: int = 2, outliers: float = 0.0) -> Probe:
    """Measure a config. All frames but the last one are encoded as one span."""
    rows = []
    for number, seed in enumerate(seeds):
        # Times are taken once: the work is the same for every seed.
        rows.append(
            _probe_one(config, make_keys_values(seed, frames, heads, outliers=outliers), seed, _REPEATS if number == 0 else 0)
        )
    errors = [statistics.fmean(column) for column in zip(*(row[:-2] for row in rows), strict=True)]
    return Probe(*errors, *rows[0][-2:])


def _probe_one(config: QVGConfig, exact: KeysValues, seed: int, repeats: int) -> tuple[float, ...]:
    cached = exact.keys.shape[2] - _TOKENS_PER_FRAME
    codecs = make_codecs(config, torch.bfloat16)
    history = [x[:, :, :cached] for x in exact]
    spans: list[Span] = []

    def encode() -> None:
        spans[:] = [codec.encode(x, EncodeHint(seed)) for codec, x in zip(codecs, history, strict=True)]

    def decode() -> list[Tensor]:
        parts, heads = zip(codecs, spans, history, strict=True), slice(0, exact.keys.shape[1])
        return [codec.decode(span, slice(0, cached), heads, torch.empty_like(x)) for codec, span, x in parts]

    encode_ms, decode_ms = _milliseconds(encode, repeats), _milliseconds(decode, repeats)
    keys, values = decode()
    query = _queries(exact.keys[:, :, cached:], seed)
    scale = LOGIT_DEVIATION / (query @ exact.keys.transpose(2, 3)).std(-1, keepdim=True)
    true = scale * (query @ exact.keys.transpose(2, 3))
    seen = torch.cat([scale * (query @ keys.transpose(2, 3)), true[..., cached:]], -1)
    weights, seen_weights = true.softmax(-1), seen.softmax(-1)
    output = weights @ exact.values
    seen_output = seen_weights @ torch.cat([values, exact.values[:, :, cached:]], 2)
    heads = exact.keys.shape[1]
    return (
        float(relative_rms(output, seen_output)),
        _slope(true[..., :cached], seen[..., :cached]),
        float((seen_weights - weights)[..., :cached].sum(-1).mean()),
        float((seen.argmax(-1) != true.argmax(-1)).float().mean()),
        float(relative_rms(history[0] - history[0].mean(2, keepdim=True), keys - history[0].mean(2, keepdim=True))),
        float(relative_rms(history[1], values)),
        encode_ms / heads,
        decode_ms / heads,
    )


def _queries(keys: Tensor, seed: int) -> Tensor:
    """Some of these keys without their mean, and noise of the same size."""
    generator = torch.Generator().manual_seed(seed + 77)
    chosen = torch.randperm(keys.shape[2], generator=generator)[:_QUERIES]
    wanted = (keys - keys.mean(2, keepdim=True))[:, :, chosen]
    noise = torch.randn(wanted.shape, generator=generator) * wanted.square().mean((2, 3), keepdim=True).sqrt()
    return wanted + noise


def _slope(true: Tensor, seen: Tensor) -> float:
    centred = true - true.mean(-1, keepdim=True)
    return float((centred * seen).sum() / centred.square().sum())


def _milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median of so many runs, after one that is not counted unless it is the only one."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times[1:] or times)
