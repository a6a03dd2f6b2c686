"""Attention on eight-bit keys and values: int8 products for the logits, E4M3 (or float16) products for the output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..attention import Attended, check_bias
from ..dispatch import implementation, shape_refusal
from ..transcode import Keys8, Values8


def attention8(
    q: Tensor, keys: Keys8, values: Values8, common: Tensor | None, backend: str = "auto", bias: Tensor | None = None
) -> Attended:
    """softmax(q k^T / sqrt(D) + bias) v for k = keys + common [B, H, D]. q [B, H, Sq, D] any float. -> out in q's dtype, lse in
    float32.

    `common` None: nothing of it in the lse, for parts that all have the same. `bias` as in `attention`. Queries become int8 with
    one scale each. Against exact arithmetic on the same keys and values that costs 1 % to 4 % of the output (docs/kernels.md,
    "Eight bits"), a tenth of what two bits cost.
    """
    count = values.values.shape[2 if values.scales is None else 3]
    vector = (*q.shape[:2], q.shape[3]) if common is None else tuple(common.shape)
    if keys.values.shape[2] != count or keys.values.shape[:2] != q.shape[:2] or vector != (*q.shape[:2], q.shape[3]):
        raise ValueError(
            f"q {tuple(q.shape)}, keys {tuple(keys.values.shape)}, {count} values and a common part {vector} do not belong "
            "together"
        )
    check_bias(count, bias)
    out, lse = implementation("attention8", q, backend, shape_refusal(q.shape[-1])).attention8(q, keys, values, bias)
    if common is None:
        return Attended(out, lse)
    # The common part moves all logits of a query alike: the weights do not see it, the mass does.
    shift = torch.einsum("bhsd,bhd->bhs", q.float(), common.float()) / math.sqrt(q.shape[-1])
    return Attended(out, lse + shift)
