"""What rounding costs a result, found in float64 alone: tolerances that no machine's measurement is the source of.

A sum of n products in limited precision is off by about unit * sqrt(2n) of its terms, in whatever order they are added: roundings
are independent (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019), and no order has more than n
of products and n of sums. So each operand is changed at random by that share, the definition is evaluated in float64, and how far
it moves is what the sum may cost. Cancellation, softmax and turned keys are thereby counted as they are in these very tensors.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# Unit roundoff: the largest relative error of rounding once.
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
E4M3_UNIT = 2.0**-4
_DRAWS = 8
# A tensor of a few values may lie far above the root mean square over draws, and a processor's own exponential, division and
# fused steps come on top.
_TIMES = 4.0


def share(dtype: torch.dtype, *roundings: int) -> float:
    """Of an operand: what so many roundings to `dtype` may change; several counts are added up."""
    return UNIT[dtype] * math.sqrt(sum(roundings))


def allowed(definition: Callable[..., Tensor], *operands: tuple[Tensor, float | Tensor], times: float = _TIMES) -> float:
    """The relative RMS error that is allowed to `definition` of tensors, each given with the `share` that it may change by, or
    with a tensor: by how much, as where it is put on a grid."""
    generator = torch.Generator().manual_seed(0)
    exact = definition(*(tensor.double() for tensor, _ in operands))
    moved = 0.0
    for _ in range(_DRAWS):
        changed = (_changed(tensor.double(), some, generator) for tensor, some in operands)
        moved += float((definition(*changed) - exact).square().mean())
    return times * math.sqrt(moved / _DRAWS / float(exact.square().mean()))


def _changed(tensor: Tensor, some: float | Tensor, generator: torch.Generator) -> Tensor:
    noise = 2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor) - 1
    return tensor + noise * (some if isinstance(some, Tensor) else some * tensor)


def _as_it_is(out: Tensor) -> Tensor:
    return out


def attention_error(
    q: Tensor, k: Tensor, v: Tensor, kept: torch.dtype = torch.float32, then: Callable[[Tensor], Tensor] = _as_it_is
) -> float:
    """What is allowed to attention of q, k, v [B, H, S, D] with sums in float32: over channels for scores, over keys for the
    output and for the weights' own sum; weights are rounded once to `kept`, and the output too, by its unit at most. `then` is
    done to the output."""
    scores = share(torch.float32, 2 * q.shape[-1])
    mixing = math.hypot(share(torch.float32, 3 * k.shape[-2]), share(kept, 1))
    return allowed(lambda *x: then(attend(*x)), (q, scores), (k, scores), (v, mixing)) + UNIT[kept]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention by its definition, in the tensors' own dtype."""
    weights: Tensor = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return weights @ v


def lse(q: Tensor, k: Tensor) -> Tensor:
    """The logarithm of its weights' sum."""
    scores: Tensor = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.logsumexp(-1)


def lse_error(q: Tensor, k: Tensor, of_q: float | Tensor | None = None, of_k: float | Tensor | None = None) -> float:
    """What is allowed to `lse`, of its RMS: sums in float32, over channels and over keys, unless operands change by more."""
    scores = share(torch.float32, 2 * q.shape[-1])
    size = float(lse(q.double(), k.double()).square().mean().sqrt())
    of_sum = _TIMES * share(torch.float32, k.shape[-2]) / size
    return allowed(lse, (q, scores if of_q is None else of_q), (k, scores if of_k is None else of_k)) + of_sum


def eight_bit_error(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    common: Tensor,
    unit: float = UNIT[torch.float16],
    then: Callable[[Tensor], Tensor] = _as_it_is,
    times: float = _TIMES,
) -> float:
    """What is allowed to attention with queries, and keys less their `common` part [B, H, D], on grids of 127 steps to a token's
    largest value, so half a step off at most; weights and values are rounded once each, by `unit` of themselves at most."""
    own = k - common[:, :, None]
    steps = [x.double().abs().amax(-1, keepdim=True) / 254 for x in (q, own)]
    operands = (q, steps[0]), (own, steps[1]), (v, unit * math.sqrt(2))
    coarse = allowed(lambda *x: then(attend(*x)), *operands, times=times)
    return coarse + attention_error(q, own, v, then=then)


def _weights(model: Any) -> list[Tensor]:
    modules = [model] if isinstance(model, torch.nn.Module) else vars(model).values()
    return [weight for module in modules if isinstance(module, torch.nn.Module) for weight in module.parameters()]


def network_error(
    run: Callable[[Any], Sequence[Tensor]], model: Any, terms: int, sines_of: Sequence[ModuleType] = ()
) -> list[float]:
    """What is allowed between the outputs of `run(model)` and those of another implementation, both in float32 with sums of up to
    `terms` products. The model is a module, or holds modules.

    To first order: in a copy of the model all weights are changed at random by 256 times what such sums cost, which stands out
    from rounding, and what the outputs change by is divided by 256. So are the angles that `sines_of` modules give to timesteps:
    each is a timestep of up to 1000 times a power, and four roundings of the product are seen in its sine.
    """
    generator, times = torch.Generator().manual_seed(0), 256.0
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for weight in _weights(changed):
            weight.copy_(_changed(weight.double(), times * share(torch.float32, 2 * terms), generator))

    def sines(t: Tensor) -> Tensor:
        half = 128
        powers = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = t.double()[..., None] * _changed(powers, times * share(torch.float32, 4), torch.Generator().manual_seed(1))
        return torch.cat([angles.cos(), angles.sin()], -1).float()

    exact = run(model)
    before = [module.sines for module in sines_of]
    try:
        for module in sines_of:
            module.sines = sines  # type: ignore[attr-defined]
        moved = run(changed)
    finally:
        for module, own in zip(sines_of, before, strict=True):
            module.sines = own  # type: ignore[attr-defined]
    errors = [(one.double() - other.double()).square().mean().sqrt() for one, other in zip(moved, exact, strict=True)]
    sizes = [other.double().square().mean().sqrt() for other in exact]
    return [_TIMES * math.sqrt(2) / times * float(error / size) for error, size in zip(errors, sizes, strict=True)]
