"""What rounding costs a result, found in float64 alone: tolerances that no machine's measurement is the source of.

A sum of n products in limited precision is off by about unit * sqrt(2n) of its terms, in whatever order they are added: roundings
are independent (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019), and no order has more than n
of products and n of sums. So each operand is changed at random by that share, the definition is evaluated in float64, and how far
it moves is what the sum may cost. Cancellation, softmax and turned keys are thereby counted as they are in these very tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Unit roundoff: the largest relative error of rounding once.
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_DRAWS = 8
# A tensor of a few values may lie far above the root mean square over draws, and a processor's own exponential, division and
# fused steps come on top.
_TIMES = 4.0


def share(dtype: torch.dtype, *roundings: int) -> float:
    """Of an operand: what so many roundings to `dtype` may change; several counts are added up."""
    return UNIT[dtype] * math.sqrt(sum(roundings))


def allowed(definition: Callable[..., Tensor], *operands: tuple[Tensor, float]) -> float:
    """The relative RMS error that is allowed to `definition` of tensors, each given with the `share` that it may change by."""
    generator = torch.Generator().manual_seed(0)
    exact = definition(*(tensor.double() for tensor, _ in operands))
    moved = 0.0
    for _ in range(_DRAWS):
        changed = (_changed(tensor.double(), some, generator) for tensor, some in operands)
        moved += float((definition(*changed) - exact).square().mean())
    return _TIMES * math.sqrt(moved / _DRAWS / float(exact.square().mean()))


def _changed(tensor: Tensor, some: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
    return tensor * (1 + some * (2 * noise - 1))


def attention_error(q: Tensor, k: Tensor, v: Tensor, kept: torch.dtype = torch.float32) -> float:
    """What is allowed to attention of q, k, v [B, H, S, D] with sums in float32: over channels for scores, over keys for the
    output and for the weights' own sum; weights are rounded once to `kept`, and the output too, by its unit at most."""
    scores = share(torch.float32, 2 * q.shape[-1])
    mixing = math.hypot(share(torch.float32, 3 * k.shape[-2]), share(kept, 1))
    return allowed(attend, (q, scores), (k, scores), (v, mixing)) + UNIT[kept]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention by its definition, in the tensors' own dtype."""
    weights: Tensor = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return weights @ v


def lse(q: Tensor, k: Tensor) -> Tensor:
    """The logarithm of its weights' sum."""
    scores: Tensor = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.logsumexp(-1)
