"""Ranking tiles by their means and attention to the others: the reference against its definition, Triton against both."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from comfyui_qvg.kernels.means import rank_means, working_bytes
from comfyui_qvg.kernels.means import reference as means_reference
from comfyui_qvg.kernels.rows8 import Rows8, quantize_rows
from torch import Tensor

from ..helpers import assert_close
from ..triton_interpreter import DEVICE

Load = Callable[[str], ModuleType]


class Case:
    """Queries, tiles and what is near, made up."""

    def __init__(self, count: int, tiles: int, dtype: torch.dtype = torch.float32, batch: int = 2):
        generator = torch.Generator().manual_seed(count + tiles)
        shape = (batch, 2, tiles, 64)
        self.q = (1.5 * torch.randn(batch, 2, count, 64, generator=generator)).to(DEVICE, dtype)
        self.keys, self.values = (
            Rows8(*(part.to(DEVICE) for part in quantize_rows(torch.randn(shape, generator=generator)))) for _ in range(2)
        )
        self.log_sizes = torch.randint(1, 17, (tiles,), generator=generator).float().log().to(DEVICE)
        self.norms = (80 + 20 * torch.rand(batch, 2, generator=generator)).to(DEVICE)
        self.near = torch.randn(batch, 2, count, generator=generator).to(DEVICE)
        self.near[0, 0, 0] = -torch.inf

    def ranked(self, run: Callable[..., tuple[Tensor, Tensor, Tensor]], most: int, queries: int) -> tuple[Tensor, Tensor, Tensor]:
        """By an implementation."""
        return run(self.q, self.keys, self.values, self.log_sizes, self.norms, self.near, most, queries)

    def logits(self) -> tuple[Tensor, Tensor]:
        """By definition, in float64: of the means, and what their spreads add to it in the ranking."""
        q, keys = self.q.double() / math.sqrt(self.q.shape[-1]), self.keys.dequantize(torch.float64)
        spreads = (self.norms.double()[..., None] - keys.square().sum(-1)).clamp(min=0) / q.shape[-1]
        added = (q.square().sum(-1)[..., None] / 2 * spreads[:, :, None]).clamp(max=means_reference.MOST_SPREAD)
        return q @ keys.mT + self.log_sizes.double(), added


@pytest.mark.parametrize(("count", "tiles", "most"), [(1, 1, 1), (16, 40, 5), (35, 70, 70), (40, 33, 10)])
def test_reference_is_the_definition(count: int, tiles: int, most: int) -> None:
    case = Case(count, tiles)
    chosen, out, lse = case.ranked(means_reference.rank_means, most, 16)
    logits, added = case.logits()
    mass = torch.logaddexp(case.near.double(), (logits + added).logsumexp(-1))
    shares = logits + added - mass[..., None]
    for block in range(-(-count // 16)):
        some = slice(16 * block, 16 * block + 16)
        best = shares[:, :, some].amax(2).topk(most).indices.sort().values
        assert torch.equal(best, chosen[:, :, block])
        rest = logits[:, :, some].scatter(3, best[:, :, None].expand(-1, -1, logits[:, :, some].shape[2], -1), -torch.inf)
        wanted = torch.nan_to_num(rest.softmax(-1)) @ case.values.dequantize(torch.float64)
        if most < tiles:
            assert_close("out", wanted, out[:, :, some].double(), 1e-5)
        else:
            assert not bool(out[:, :, some].any())
        seen = rest.logsumexp(-1).isfinite()
        assert torch.equal(seen, lse[:, :, some].isfinite())
        if bool(seen.any()):
            assert_close("lse", rest.logsumexp(-1)[seen], lse[:, :, some].double()[seen], 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("count", "tiles", "most"), [(37, 70, 9), (16, 17, 17)])
def test_triton_ranks_and_sees_the_rest(
    triton_kernel: Load, count: int, tiles: int, most: int, dtype: torch.dtype, poisoned_empty: None
) -> None:
    """Tiles may swap places only where their shares differ by less than what rounding queries moves them: 2^-11 or 2^-8 of the
    largest logit, some 20. Of the rest, with the same tiles taken out: out and mass as attention in these types."""
    case = Case(count, tiles, dtype)
    chosen, out, lse = case.ranked(triton_kernel("means").rank_means, most, 16)
    wanted = case.ranked(means_reference.rank_means, most, 16)
    rounding = 2**-8 if dtype == torch.bfloat16 else 2**-10
    logits, added = case.logits()
    mass = torch.logaddexp(case.near.double(), (logits + added).logsumexp(-1))
    shares = logits + added - mass[..., None]
    for block in range(-(-count // 16)):
        best = shares[:, :, 16 * block : 16 * block + 16].amax(2)
        least = best.gather(2, wanted[0][:, :, block]).amin(-1)
        assert bool((best.gather(2, chosen[:, :, block]).amin(-1) >= least - 20 * rounding).all())
        assert bool((chosen[:, :, block].diff(dim=-1) > 0).all())
    same = (chosen == wanted[0]).all(-1).repeat_interleave(16, 2)[:, :, :count]
    finite = wanted[2].isfinite() & same
    assert bool(same.any()) and torch.equal(wanted[2].isfinite(), lse.isfinite())
    if most == tiles:
        assert not bool(out.any()) and not bool(finite.any())
    else:
        assert_close("out", wanted[1][same], out[same], 8e-3 if dtype == torch.bfloat16 else 2e-3)
        assert_close("lse", wanted[2][finite], lse[finite], 8e-3 if dtype == torch.bfloat16 else 2e-3)


def test_what_does_not_belong_together_is_refused() -> None:
    case = Case(16, 20)
    parts = (case.keys, case.values, case.log_sizes, case.norms, case.near)
    with pytest.raises(ValueError, match="21 of 20 tiles cannot be read"):
        rank_means(case.q, *parts, 21, 16, "torch")
    with pytest.raises(ValueError, match="0 of 20 tiles"):
        rank_means(case.q, *parts, 0, 16, "torch")
    with pytest.raises(ValueError, match="does not belong to means"):
        rank_means(case.q[:, :, :8], *parts, 3, 16, "torch")
    with pytest.raises(ValueError, match=r"torch\.float64"):
        rank_means(case.q, *parts[:2], case.log_sizes.double(), *parts[3:], 3, 16, "torch")


def test_what_ranking_takes_is_told() -> None:
    """A matrix of logits in torch, only what is of tiles in a kernel."""
    q = Case(16, 20).q
    assert working_bytes(q, 1000, 64, "torch") == 3 * 4 * 64 * 1000
    assert working_bytes(q.cpu(), 1000, 64) == working_bytes(q, 1000, 64, "torch")
