"""The attention kernels that a machine already has, and which of them is fit for a job.

torch's own, ours in Triton, FlashAttention's and SageAttention's packages where someone has installed them. What an op is called,
whether it is there, what it returns and whether the numbers are right differs between versions and cards, so every candidate is
tried once on a few random numbers and held against the definition before it is used.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..dispatch import triton_refusal
from ..errors import BackendError
from . import Attended, reference

_LOG = logging.getLogger(__name__)
# What 16-bit products may be off by; an op that reads a layout wrongly is off by 1.
_TRIAL_TOLERANCE = 0.03
_TRIAL_TOLERANCE_8 = 0.15


class AttentionOp(NamedTuple):
    """call(q, k, v) -> (out, lse or None). `score_copies`: times that it holds all logits in float32. `biased`: the same with
    what is added to the logits of each key, float32 [S]; None where there is no such thing."""

    name: str
    call: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
    score_copies: int = 0
    biased: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]] | None = None

    def run(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """With a bias or without."""
        if bias is None:
            return self.call(q, k, v)
        assert self.biased is not None
        return self.biased(q, k, v, bias)


def choose_attention(q: Tensor, needs_lse: bool, backend: str = "auto", biased: bool = False) -> AttentionOp:
    """The best op for queries like q [B, H, Sq, D] (dtype, device, D). `backend` "torch" and "triton" leave only their own,
    `biased` those that take a bias per key."""
    return _choose(q.device, q.dtype, q.shape[-1], needs_lse, backend, biased)


def eight_bit_package(q: Tensor) -> AttentionOp | None:
    """SageAttention, where it is installed and right for queries like q, else None. It makes 8 bits of 16-bit keys itself."""
    return _choose_package(q.device, q.dtype, q.shape[-1])


@cache
def _choose_package(device: torch.device, dtype: torch.dtype, channels: int) -> AttentionOp | None:
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    reason = _trial(_SAGE, device, dtype, channels, True, _TRIAL_TOLERANCE_8)
    if reason is not None:
        _LOG.info("8-bit attention does not run in %s: %s", _SAGE.name, reason)
    return _SAGE if reason is None else None


@cache
def _choose(device: torch.device, dtype: torch.dtype, channels: int, needs_lse: bool, backend: str, biased: bool) -> AttentionOp:
    if backend == "triton" and (refusal := triton_refusal("attention", device)):
        raise BackendError("attention", backend, refusal)
    reasons: list[str] = []
    for op in _candidates(device, needs_lse, backend):
        takes = not biased or op.biased is not None
        reason = _trial(op, device, dtype, channels, needs_lse, biased=biased) if takes else "takes no bias per key"
        if reason is None:
            if reasons:
                _LOG.info("attention runs in %s; passed over: %s", op.name, "; ".join(reasons))
            return op
        reasons.append(f"{op.name} ({reason})")
    if backend == "triton":
        raise BackendError("attention", backend, "; ".join(reasons))
    _LOG.info("attention runs in torch with all logits of a tile; passed over: %s", "; ".join(reasons) or "nothing there is")
    return _REFERENCE


def _candidates(device: torch.device, needs_lse: bool, backend: str) -> list[AttentionOp]:
    """In order of speed where they run."""
    if backend == "triton":
        return [_TRITON]
    if device.type == "cpu":
        return [_CPU_FLASH]
    if device.type != "cuda":
        return [] if needs_lse else [_SDPA]
    torch_ops = [_CUDNN, _FLASH] if needs_lse else [_SDPA]
    if backend == "torch":
        return [*torch_ops, _EFFICIENT]
    ours = [_TRITON] if triton_refusal("attention", device) is None else []
    return [_FLASH_PACKAGE_3, *torch_ops, *ours, _EFFICIENT]


def _trial(
    op: AttentionOp,
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    needs_lse: bool,
    tolerance: float = _TRIAL_TOLERANCE,
    biased: bool = False,
) -> str | None:
    """Why `op` cannot be used, or None: it must give the definition's numbers on a small case of odd lengths."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, tokens, channels, generator=generator) for tokens in (17, 49, 49))
    bias = torch.randn(49, generator=generator) if biased else None
    expected = reference.attention(q, k, v, bias)
    try:
        mine = [x.to(device, dtype) for x in (q, k, v)]
        out, lse = op.run(mine[0], mine[1], mine[2], None if bias is None else bias.to(device))
        error = float((out.float().cpu() - expected[0]).abs().max())
        if needs_lse:
            if lse is None or lse.shape != expected[1].shape:
                return f"its lse is {None if lse is None else tuple(lse.shape)}"
            error = max(error, float((lse.float().cpu() - expected[1]).abs().max()))
    except Exception as failure:  # whatever a foreign kernel raises means: not here
        return f"{type(failure).__name__}: {str(failure).strip().splitlines()[0][:100] if str(failure).strip() else 'no message'}"
    return None if error <= tolerance else f"its result is off by {error:.2g}"


def _call_sdpa(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, None]:
    """The public function, forbidden to fall back to one that holds all logits."""
    if q.device.type != "cuda":
        return torch.nn.functional.scaled_dot_product_attention(q, k, v), None
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with sdpa_kernel(order if _hopper_or_newer(q.device) else order[1:]):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v), None


@cache
def _hopper_or_newer(device: torch.device) -> bool:
    """Where cuDNN's kernels are the fastest that torch has."""
    return torch.cuda.get_device_capability(device)[0] >= 9


def _call_cudnn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if not _hopper_or_newer(q.device):
        raise RuntimeError("slower than flash attention on this card")
    out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
    return out, lse.squeeze(-1) if lse.ndim == 4 else lse


def _call_flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    return out, lse


def _call_efficient(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    mask = None if bias is None else _aligned(bias, q.dtype)[: k.shape[2]].expand(*q.shape[:3], -1)
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, True)[:2]
    return out, lse[:, :, : q.shape[2]]  # filled up to a multiple of 32


def _aligned(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """A bias whose memory goes on to a multiple of eight numbers, which this kernel loads at a time."""
    return torch.nn.functional.pad(bias, (0, -len(bias) % 8)).to(dtype)


def _call_cpu_flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    mask = None if bias is None else bias.to(q.dtype).expand(*q.shape[:3], -1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask)
    return out, lse


def _call_flash_package_3(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    """FlashAttention 3 (Hopper), layout [B, S, H, D]. Older ones return the lse unasked, newer ones when asked."""
    function: Any = importlib.import_module("flash_attn_interface").flash_attn_func
    layout = [x.transpose(1, 2) for x in (q, k, v)]
    try:
        result = function(*layout, return_attn_probs=True)
    except TypeError:
        result = function(*layout)
    out, lse = result[:2] if isinstance(result, tuple) else (result, None)
    return out.transpose(1, 2), lse


def _call_sage(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """SageAttention 2. The first one swallows what it does not know and returns no lse."""
    function: Any = importlib.import_module("sageattention").sageattn
    result = function(q, k, v, tensor_layout="HND", is_causal=False, return_lse=True)
    if not isinstance(result, tuple):
        raise RuntimeError("this version returns no lse; SageAttention 2 does")
    return result[0], result[1]


def _call_triton(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Attended:
    return Attended(*importlib.import_module(".triton_kernel", __package__).attention(q, k, v, bias))


_SDPA = AttentionOp("torch.nn.functional.scaled_dot_product_attention", _call_sdpa)
_CUDNN = AttentionOp("aten._scaled_dot_product_cudnn_attention", _call_cudnn)
_FLASH = AttentionOp("aten._scaled_dot_product_flash_attention", _call_flash)
_EFFICIENT = AttentionOp("aten._scaled_dot_product_efficient_attention", _call_efficient, 0, _call_efficient)
_CPU_FLASH = AttentionOp("aten._scaled_dot_product_flash_attention_for_cpu", _call_cpu_flash, 0, _call_cpu_flash)
_FLASH_PACKAGE_3 = AttentionOp("flash_attn_interface.flash_attn_func", _call_flash_package_3)
_SAGE = AttentionOp("sageattention.sageattn", _call_sage)
_TRITON = AttentionOp("the pack's Triton attention", _call_triton, 0, _call_triton)
_REFERENCE = AttentionOp("torch, all logits of a tile", reference.attention, 3, reference.attention)
