"""A prompt's equal rows, merged: attention does not change, and rows that only look equal stay."""

from __future__ import annotations

import math

import pytest
import torch
from comfyui_qvg.qvg.attention.prompt import LEAST_SHARE, attend, attend_part, kept_rows, merge_equal_rows
from torch import Tensor
from torch.nn import functional as F

from ...rounding import attention_error


def _prompt(words: int, rows: int = 512, batch: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values of a prompt of `words` tokens padded to `rows`."""
    rng = torch.Generator().manual_seed(words)
    q = 2 * torch.randn(batch, 3, 40, 64, generator=rng)
    k, v = torch.randn(2, batch, 3, rows, 64, generator=rng)
    k[:, :, words:], v[:, :, words:] = k[:, :, words : words + 1].clone(), v[:, :, words : words + 1].clone()
    return q.to(dtype), k.to(dtype), v.to(dtype)


def _whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double())


def _error(out: Tensor, reference: Tensor) -> float:
    return float((out.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize("words", [0, 1, 60, 120, 509])
@pytest.mark.parametrize(("dtype", "rows_left"), [(torch.float32, 1), (torch.bfloat16, 2), (torch.float16, 2)], ids=str)
def test_attention_over_the_merged_prompt_is_attention_over_the_whole(words: int, dtype: torch.dtype, rows_left: int) -> None:
    q, k, v = _prompt(words, dtype=dtype)
    merged = merge_equal_rows(k, v)
    assert merged is not None and merged.merged_rows == 512 - words
    assert merged.keys.shape == merged.values.shape == (1, 3, words + rows_left, 64)
    # No worse than what the dtype costs without merging.
    assert _error(attend(q, merged), _whole(q, k, v)) <= attention_error(q, k, v, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_biases_stand_for_the_count_in_any_dtype(dtype: torch.dtype) -> None:
    """Rounded once, log(count) would be off by up to 1.6 % in bfloat16."""
    for count in range(3, 513):
        k = torch.zeros(1, 1, count + 2, 8, dtype=dtype)
        k[:, :, :2] = torch.tensor([1.0, 2.0])[:, None]
        merged = merge_equal_rows(k, k)
        assert merged is not None and merged.merged_rows == count
        stands_for = merged.bias[..., 2:].double().exp().sum().item()
        assert stands_for == pytest.approx(count, rel=torch.finfo(dtype).eps / 4)


def test_without_the_logarithm_it_would_be_wrong() -> None:
    q, k, v = _prompt(60)
    merged = merge_equal_rows(k, v)
    assert merged is not None
    assert _error(F.scaled_dot_product_attention(q, merged.keys, merged.values), _whole(q, k, v)) > 0.1
    assert merged.bias[..., -1].item() == pytest.approx(math.log(452))


def test_each_batch_item_and_head_counts() -> None:
    """The longest prompt of the batch decides; a value or a head that differs ends the run."""
    q, k, v = (torch.cat(pair) for pair in zip(_prompt(60), _prompt(200), strict=True))
    merged = merge_equal_rows(k, v)
    assert merged is not None and merged.merged_rows == 312
    assert _error(attend(q, merged), _whole(q, k, v)) <= attention_error(q, k, v)
    v[0, 2, 400, 5] += 1e-3
    merged = merge_equal_rows(k, v)
    assert merged is not None and merged.merged_rows == 111


def test_a_prompt_without_padding_is_left_alone() -> None:
    k, v = _prompt(60)[1:]
    k[..., -1, 0] = torch.nextafter(k[..., -1, 0], torch.tensor(9e9))
    assert merge_equal_rows(k, v) is None, "the last bit of the last row differs"
    k[..., -1, 0] = float("nan")
    assert merge_equal_rows(k, v) is None
    assert merge_equal_rows(*_prompt(511)[1:]) is None, "one row is no run"
    assert merge_equal_rows(*_prompt(510, dtype=torch.bfloat16)[1:]) is None, "two rows would become two"


def test_the_whole_prompt_is_not_kept_alive() -> None:
    _, k, v = _prompt(60)
    merged = merge_equal_rows(k, v)
    assert merged is not None
    assert merged.keys.untyped_storage().nbytes() == 61 * 3 * 64 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_without_mass_become_one(dtype: torch.dtype) -> None:
    """Words that no query asks for are one row with the logarithm of their number; what is asked for is read as it is."""
    q, k, v = _prompt(60, dtype=dtype)
    # Queries look one way; twenty words lie there, all others behind them.
    toward = torch.nn.functional.normalize(q[:, :, :1].float(), dim=-1)
    q = (6 * toward + 0.1 * q.float()).to(dtype)
    k = (k.float() - 3 * toward).to(dtype)
    k[:, :, :20] = (k[:, :, :20].float() + 6 * toward).to(dtype)
    merged = merge_equal_rows(k, v)
    assert merged is not None
    kept = kept_rows(q, merged, "mass")
    shares = (q.float() @ merged.keys.float().mT / 8 + merged.bias.float()).softmax(-1).amax((0, 1, 2))
    # Those that are asked for, and at most the padding, which counts 452 times.
    assert torch.equal(kept, shares >= LEAST_SHARE) and int(kept[:20].sum()) > 5 and not bool(kept[20:60].any())
    seen, rows = attend_part(q, merged, "mass")
    assert rows == int(kept.sum()) + 1 and rows < merged.keys.shape[2]
    whole = attend(q, merged)
    # What is put together has less than a tenth of the attention in all.
    lost = float(shares[~kept].sum())
    assert lost < 0.1 and _error(seen, whole.double()) < 2 * lost + attention_error(q, k, v, dtype)
    dropped = F.scaled_dot_product_attention(
        q, merged.keys[:, :, kept], merged.values[:, :, kept], attn_mask=merged.bias[..., kept]
    )
    assert _error(seen, whole.double()) < _error(dropped, whole.double()) or dtype != torch.float32


def test_buckets_keep_what_shares_one_with_a_query() -> None:
    q, k, v = _prompt(60)
    k[:, :, :7] = 0.5 * q[:, :, :7]  # the same direction, and so the same buckets
    merged = merge_equal_rows(k, v)
    assert merged is not None
    kept = kept_rows(q, merged, "buckets")
    assert bool(kept[:7].all()) and not bool(kept.all())
    seen, rows = attend_part(q, merged, "buckets")
    assert rows == int(kept.sum())
    wanted = F.scaled_dot_product_attention(
        q, merged.keys[:, :, kept], merged.values[:, :, kept], attn_mask=merged.bias[..., kept]
    )
    assert torch.equal(seen, wanted)
    assert torch.equal(kept_rows(q, merged, "buckets"), kept), "from a seed of its own"


def test_where_all_or_none_are_kept_all_are_read() -> None:
    q, k, v = _prompt(60, rows=63)  # equal shares are 1 / 63 each
    merged = merge_equal_rows(k, v)
    assert merged is not None
    for rule, queries in (("all", q), ("mass", 0 * q), ("buckets", q[:, :, :0])):
        seen, rows = attend_part(queries, merged, rule)
        assert rows == 61 and torch.equal(seen, attend(queries, merged))
