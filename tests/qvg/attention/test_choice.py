"""Every way to read gives what one softmax over the decoded history gives, within what it states; and says why it was chosen."""

from __future__ import annotations

import logging
import sys
import types

import pytest
import torch
from comfyui_qvg.kernels.attention.library import AttentionOp, choose_attention
from comfyui_qvg.kernels.errors import BackendError
from comfyui_qvg.qvg import CacheSpec, ConfigError, GridRope, KVCache, QVGConfig
from comfyui_qvg.qvg.attention import choice as read_module
from comfyui_qvg.qvg.attention import exact as attention_module
from comfyui_qvg.qvg.attention import plan_tiling
from comfyui_qvg.qvg.attention.choice import DIRECT_QUERIES, Readings
from comfyui_qvg.qvg.positions.rope import rotate, rotate_

from ...helpers import LiveBytes, assert_close
from ...rounding import UNIT, attend, attention_error, eight_bit_error
from .test_attention import CODECS, ROPE, _fill, _seen

READS = ["exact", "direct", "fast"]


def _assert_one_softmax(read: str, seen: tuple[torch.Tensor, ...], block: int, out: torch.Tensor) -> None:
    """`seen`: queries, keys and values; the last `block` of them are the current block's, whose keys have a part in common."""
    q, k, v = seen
    if read == "fast":
        bound = eight_bit_error(q, k, v, k[:, :, -block:].float().mean(2)) + UNIT[out.dtype]
    else:
        bound = attention_error(q, k, v, out.dtype)
    assert_close(read, attend(*(x.double() for x in seen)), out, bound)


def _case(
    config: QVGConfig, rope: GridRope | None = ROPE, frames: int = 23, dtype: torch.dtype = torch.float32
) -> tuple[KVCache, torch.Tensor, tuple[torch.Tensor, ...]]:
    """A filled cache, its attention and what it has seen."""
    cache = KVCache(CacheSpec(1, 3, 128, 12, batch=2), config, rope)
    generator = _fill(cache, frames)
    q, k, v = torch.randn(3, 2, 3, 12, 128, generator=generator).to(dtype)
    origin = (float(frames), 4.5, 2.0)
    if rope is not None:
        cache.place([origin])
    out = cache.attend(0, q, k, v)
    return cache, out, _seen(cache, q.float(), k.float(), v.float(), origin)


@pytest.mark.parametrize("rope", [None, ROPE], ids=["no_rope", "rope"])
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("read", READS)
def test_every_read_is_one_softmax(read: str, name: str, rope: GridRope | None) -> None:
    cache, out, seen = _case(CODECS[name].with_changes(read=read), rope)
    _assert_one_softmax(read, seen, 12, out)
    assert cache.explain() and cache.explain()[0].startswith(f"{read} (asked for), attention by ")
    if read == "direct":
        assert ("codec 'kivi' has no kernel that reads its codes" in cache.explain()[0]) == (name == "kivi")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("read", READS)
def test_16_bit_queries(read: str, dtype: torch.dtype) -> None:
    """The result is in the queries' dtype."""
    _, out, seen = _case(CODECS["qvg"].with_changes(read=read), dtype=dtype)
    assert out.dtype == dtype
    _assert_one_softmax(read, seen, 12, out)


@pytest.mark.parametrize("read", READS)
def test_queries_and_keys_of_two_dtypes_and_odd_strides(read: str) -> None:
    cache = KVCache(CacheSpec(1, 3, 128, 12, batch=2), CODECS["qvg"].with_changes(read=read))
    generator = _fill(cache, 15)
    q, k, v = torch.randn(3, 2, 12, 128, 3, generator=generator).permute(0, 1, 4, 2, 3)  # channels are not dense
    k, v = k.half(), v.bfloat16()
    out = cache.attend(0, q, k, v)
    _assert_one_softmax(read, _seen(cache, q, k.float(), v.float(), (0.0, 0.0, 0.0)), 12, out)


@pytest.mark.parametrize("frames", [0, 1, 15, 16, 17])
@pytest.mark.parametrize("read", READS)
def test_histories_of_awkward_lengths(read: str, frames: int) -> None:
    """One token per frame: 0, 1, 15, 16 and 17 committed keys."""
    cache = KVCache(CacheSpec(1, 2, 128, 1), QVGConfig(clusters=4, span_frames=4, read=read))
    generator = _fill(cache, frames)
    q, k, v = torch.randn(3, 1, 2, 1, 128, generator=generator)
    _assert_one_softmax(read, _seen(cache, q, k, v, (0.0, 0.0, 0.0)), 1, cache.attend(0, q, k, v))


@pytest.mark.parametrize("name", ["qvg", "klt", "exact"])
def test_no_workspace_at_all(name: str) -> None:
    """`workspace_mb` 0 reads directly: nothing that grows with the history is alive, and no buffer is kept."""
    config = CODECS[name].with_changes(workspace_mb=0)
    peaks = []
    for frames in (200, 800):
        cache = KVCache(CacheSpec(1, 2, 128, 12), config, ROPE)
        generator = _fill(cache, frames)
        q, k, v = torch.randn(3, 1, 2, 12, 128, generator=generator)
        cache.place([(frames, 0.0, 0.0)])
        with LiveBytes() as live:
            out = cache.attend(0, q, k, v)
        peaks.append(live.peak)
        assert cache.workspace.nbytes == 0
        _assert_one_softmax("direct", _seen(cache, q, k, v, (frames, 0.0, 0.0)), 12, out)
    # The angles of one stretch of the history, and those it rotates at once; a decoded history would be 19 MiB.
    assert max(peaks) < 6 << 20, peaks
    assert cache.explain()[0].startswith("direct (workspace_mb is 0)")


def test_fast_stays_under_its_bound_too() -> None:
    peaks = []
    for frames in (80, 640):
        cache = KVCache(CacheSpec(1, 2, 128, 12), CODECS["qvg"].with_changes(read="fast", workspace_mb=8), ROPE)
        generator = _fill(cache, frames)
        q, k, v = torch.randn(3, 1, 2, 12, 128, generator=generator)
        cache.place([(frames, 0.0, 0.0)])
        with LiveBytes() as live:
            cache.attend(0, q, k, v)
        peaks.append(live.peak)
    assert max(peaks) <= (8 << 20) + 3 * q.nbytes, peaks


def test_a_fast_workspace_too_small_says_so() -> None:
    cache = KVCache(CacheSpec(1, 3, 128, 12), CODECS["qvg"].with_changes(read="fast", workspace_mb=1))
    _fill(cache, 9)
    with pytest.raises(
        ConfigError, match="does not hold one tile of 16 keys for 12 queries of 3 heads in 8 bits; raise workspace_mb"
    ):
        cache.attend(0, *torch.randn(3, 1, 3, 12, 128))


def test_auto_says_once_why(caplog: pytest.LogCaptureFixture) -> None:
    cache = KVCache(CacheSpec(1, 2, 128, 12, chunk_frames=40), CODECS["qvg"])
    with caplog.at_level(logging.INFO, "comfyui_qvg.qvg.attention.choice"):
        for _ in range(2):
            cache.attend(0, *torch.randn(3, 1, 2, 12, 128))
            cache.attend(0, *torch.randn(3, 1, 2, 480, 128))
    assert len(caplog.records) == 2 and 480 > DIRECT_QUERIES["qvg"] >= 12
    few, many = cache.explain()
    assert few.startswith(
        "exact (few queries could read the codes directly, but our Triton kernels do not run on cpu tensors), attention by aten."
    )
    assert many.startswith(f"exact (more than {DIRECT_QUERIES['qvg']} queries are served best by a decoded workspace)")


def test_few_queries_read_codes_directly_where_triton_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """How few depends on what a code costs; a codec without such a kernel is decoded."""
    monkeypatch.setattr(read_module, "triton_refusal", lambda op, device: None)

    def chosen(config: QVGConfig, queries: int) -> str:
        return Readings(config).choose(torch.zeros(1, 1, queries, 128)).text()

    for codec, most in DIRECT_QUERIES.items():
        config = CODECS[codec]
        assert chosen(config, most).startswith(
            f"direct (at most {most} queries read the codes faster than they would be decoded)"
        )
        assert chosen(config, most + 1).startswith(f"exact (more than {most} queries are served best by a decoded workspace)")
    assert chosen(CODECS["kivi"], 1).startswith("exact (codec 'kivi' has no kernel that reads its codes)")
    assert chosen(CODECS["exact"], 1).startswith("exact (codec 'none' keeps no codes)")
    monkeypatch.setattr(read_module, "shape_refusal", lambda channels, group_size: f"head_dim {channels} has none")
    assert chosen(CODECS["klt"], 1).startswith("exact (few queries could read the codes directly, but head_dim 128 has none)")


def test_forced_triton_raises_with_the_reason() -> None:
    with pytest.raises(BackendError, match="our Triton kernels do not run on cpu tensors"):
        choose_attention(torch.zeros(1, 1, 1, 128), True, "triton")


def test_an_op_that_is_wrong_is_passed_over(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a machine has is tried on a small case first: wrong numbers, a wrong lse or an error pass it over."""
    from comfyui_qvg.kernels.attention import library, reference

    def broken(*_: torch.Tensor) -> tuple[torch.Tensor, None]:
        raise RuntimeError("no kernel image is available")

    def no_lse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, None]:
        return reference.attention(q, k, v)[0], None

    def wrong(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = reference.attention(q, k, v)
        return out, lse / 0.6931  # in units of log 2

    ops = [AttentionOp(name, call) for name, call in (("broken", broken), ("no_lse", no_lse), ("wrong", wrong))]
    monkeypatch.setattr(library, "_candidates", lambda *_: ops)
    library._choose.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            assert choose_attention(torch.zeros(1, 1, 1, 64), True).name == "torch, all logits of a tile"
    finally:
        library._choose.cache_clear()
    assert (
        "broken (RuntimeError: no kernel image is available); no_lse (its lse is None); wrong (its result is off by"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("package", "attribute", "returns", "reason"),
    [
        ("sageattention", "sageattn", None, "ModuleNotFoundError"),
        ("sageattention", "sageattn_varlen", "out", "AttributeError"),
        ("sageattention", "sageattn", "out", "RuntimeError: this version returns no lse; SageAttention 2 does"),
        ("sageattention", "sageattn", "lse of log 2", "its result is off by"),
        ("sageattention", "sageattn", "both", None),
        ("flash_attn_interface", "flash_attn_func", None, "ModuleNotFoundError"),
        ("flash_attn_interface", "flash_attn_func", "out", "its lse is None"),
        ("flash_attn_interface", "flash_attn_func", "both", None),
    ],
)
def test_packages_of_another_version_are_refused_with_a_reason(
    package: str, attribute: str, returns: str | None, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is imported, called with these arguments, and does not give the definition's numbers, is passed over."""
    from comfyui_qvg.kernels.attention import library, reference

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> object:
        layout = [x.transpose(1, 2) for x in (q, k, v)] if package == "flash_attn_interface" else [q, k, v]
        out, lse = reference.attention(*layout)
        out = out.transpose(1, 2) if package == "flash_attn_interface" else out
        return out if returns == "out" else (out, lse / 0.6931 if returns == "lse of log 2" else lse)

    module = types.ModuleType(package)
    setattr(module, attribute, function)
    monkeypatch.setitem(sys.modules, package, module if returns else None)
    op = library._SAGE if package == "sageattention" else library._FLASH_PACKAGE_3
    found = library._trial(op, torch.device("cpu"), torch.float32, 128, True, library._TRIAL_TOLERANCE)
    assert found is None if reason is None else found is not None and reason in found, found


def test_an_installed_package_reads_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """What SageAttention would do: it gets decoded keys and values in stretches, and its lse merges them."""
    from comfyui_qvg.kernels.attention import reference

    monkeypatch.setattr(
        attention_module, "eight_bit_package", lambda q: AttentionOp("a package", lambda q, k, v: reference.attention(q, k, v), 3)
    )
    monkeypatch.setattr(attention_module, "_CPU_TILE_BYTES", 300_000)
    cache, out, seen = _case(CODECS["qvg"].with_changes(read="fast"))
    _assert_one_softmax("exact", seen, 12, out)  # the package's arithmetic is float32's here
    assert "attention by a package" in cache.explain()[0]


def test_logits_of_an_op_that_holds_them_count() -> None:
    """Without flash attention tiles shrink until their logits fit the workspace, too."""
    q = torch.zeros(1, 4, 4096, 128)
    plain, flash = AttentionOp("plain", lambda *_: (q, None), 3), AttentionOp("flash", lambda *_: (q, None))
    small, large = (plan_tiling(q, 1 << 20, 256 << 20, 64, op) for op in (plain, flash))
    assert small.heads * small.tokens * 3 * 4 * 4096 <= 256 << 20
    assert small.heads * small.tokens < large.heads * large.tokens


def test_a_gpu_takes_heads_or_stretches_whichever_fills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """132 multiprocessors, 12 heads of 37 blocks of queries: 3 heads take 111 of 132 places, 7 heads 259 of 264."""
    monkeypatch.setattr(attention_module, "processors", lambda device: 132)
    monkeypatch.setattr(attention_module, "slots", lambda device: 2)
    monkeypatch.setattr(attention_module, "triton_refusal", lambda op, device: None)
    q = torch.zeros(1, 12, 4680, 128, dtype=torch.bfloat16)
    sizes = attention_module._Sizes(q, 0, True)
    large = attention_module._fullest_machine(q, 37_440, 8 << 30, sizes)
    assert large.tokens >= 37_440 and -(-37 * large.heads // 132) * 132 / (37 * large.heads) < 1.2
    small = attention_module._fullest_machine(q, 280_800, 512 << 20, sizes)
    assert small.heads * min(small.tokens, 280_800) * 4 * 128 * 2 <= 512 << 20
    assert small.tokens < 280_800, "one head's keys and values, twice, are 575 MB"
    assert small.heads == 3, "four waves for all heads as with 7 or 12 of them, but the longest stretches, so the fewest merges"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotating_in_place(dtype: torch.dtype) -> None:
    x = torch.randn(1, 2, 24, 128).to(dtype)
    rotation = ROPE.rotation(torch.tensor([[3.0, 0.5, 1.0], [4.0, 0.0, 2.0]]))
    assert_close("rotated", rotate(x.float(), rotation).to(dtype), rotate_(x.clone(), rotation), 1e-7)
