"""The study's caches: against one softmax over what they say they keep, bytes against predictions, and as published."""

from __future__ import annotations

import math

import pytest
import torch
from comfyui_qvg.qvg import CacheError, CacheSpec, KVCache
from comfyui_qvg.qvg.bench.synthetic import make_keys_values
from comfyui_qvg.qvg.positions.rope import rotate, wan_rope
from comfyui_qvg.qvg.study import STUDY, PublishedCache, StudyCache, StudyMethod, make_cache, study_method
from comfyui_qvg.qvg.study.bytes import predict
from torch import Tensor

from ...helpers import relative_error
from ...rounding import share

PER_FRAME, FRAMES, CHUNK, HEADS = 20, 18, 3, 2
SPEC = CacheSpec(layers=2, heads=HEADS, head_dim=128, tokens_per_frame=PER_FRAME, chunk_frames=CHUNK)
ROPE = wan_rope(4, 5)
BLOCK = CHUNK * PER_FRAME
WITH_PARTS = [method for method in STUDY if not method.plain]


def _tensors(seed: int = 0) -> tuple[Tensor, Tensor]:
    return make_keys_values(seed, FRAMES, HEADS, rows=4, cols=5)


def _run(cache: KVCache, passes: int = 1, blocks: int = FRAMES // CHUNK, seed: int = 0) -> list[Tensor]:
    """Every block is attended `passes` times in both layers, then committed. -> outputs of the last block, one per layer."""
    keys, values = _tensors(seed)
    generator = torch.Generator().manual_seed(7)
    outputs: list[Tensor] = []
    for block in range(blocks):
        cache.place([(block * CHUNK + frame, 0, 0) for frame in range(CHUNK)])
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        q = torch.randn(1, HEADS, BLOCK, 128, generator=generator)
        for _ in range(passes):
            outputs = [cache.attend(layer, q, keys[:, :, part], values[:, :, part]) for layer in range(SPEC.layers)]
        cache.commit()
    cache.verify_encoded()
    return outputs


@pytest.mark.parametrize("method", STUDY, ids=lambda method: method.name)
def test_bytes_are_those_that_were_predicted(method: StudyMethod) -> None:
    """After every commit, from the storages; and frames of several lengths of video."""
    with make_cache(method, SPEC, ROPE) as cache:
        assert isinstance(cache, StudyCache) != method.plain
        keys, values = _tensors()
        for block in range(FRAMES // CHUNK):
            cache.place([(block * CHUNK + frame, 0, 0) for frame in range(CHUNK)])
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            for layer in range(SPEC.layers):
                cache.attend(layer, keys[:, :, part], keys[:, :, part], values[:, :, part])
            cache.commit()
            assert cache.nbytes() == predict(method, SPEC, (block + 1) * CHUNK)


def _one_softmax(cache: StudyCache, layer: int, q: Tensor, keys: Tensor, values: Tensor, first_frame: int) -> Tensor:
    """By hand in float64: every kept token rotated to where it is, pooled ones written out as often as they count."""
    own = cache.study_layers[layer]
    parts: list[tuple[Tensor, Tensor]] = []
    for frame in own.frames:
        k, v = (own.decoded(span) for span in frame.pair)
        angles = ROPE.rotation(torch.tensor([(frame.number, 0, 0)]))
        if frame.pooled:
            middle = PER_FRAME // 2
            k = rotate(k, angles.tokens(middle, middle + 1)).expand(-1, -1, PER_FRAME, -1)
            v = v.expand(-1, -1, PER_FRAME, -1)
        else:
            k = rotate(k, angles)
        parts.append((k, v))
    now = ROPE.rotation(torch.tensor([(first_frame + frame, 0, 0) for frame in range(CHUNK)]))
    k, v = (torch.cat([*(part[which] for part in parts), x], 2).double() for which, x in enumerate((rotate(keys, now), values)))
    return ((rotate(q, now).double() @ k.transpose(2, 3) / math.sqrt(128)).softmax(-1) @ v).float()


@pytest.mark.parametrize("workspace_mb", [1, 64])
@pytest.mark.parametrize("method", WITH_PARTS, ids=lambda method: method.name)
def test_equals_one_softmax(method: StudyMethod, workspace_mb: int) -> None:
    keys, values = _tensors()
    with make_cache(method, SPEC, ROPE, workspace_mb=workspace_mb) as cache:
        assert isinstance(cache, StudyCache)
        _run(cache, blocks=5)
        part = slice(5 * BLOCK, 6 * BLOCK)
        q = torch.randn(1, HEADS, BLOCK, 128, generator=torch.Generator().manual_seed(1))
        cache.place([(15 + frame, 0, 0) for frame in range(CHUNK)])
        found = cache.attend(1, q, keys[:, :, part], values[:, :, part])
        expected = _one_softmax(cache, 1, q, keys[:, :, part], values[:, :, part], 15)
        # A logit is a sum of 128 products and an output one of all tokens; values are about one.
        assert torch.allclose(found, expected, atol=64 * share(torch.float32, 400) * float(values.abs().max()), rtol=0)


def test_frames_move_from_codes_to_codes() -> None:
    """A tier's frame, once its age is another tier's, is encoded from what its own codes say, and not touched again."""
    with make_cache(study_method("AGE_TIER_INT2"), SPEC, ROPE) as cache:
        assert isinstance(cache, StudyCache)
        keys, _ = _tensors()
        before: dict[int, Tensor] = {}
        for blocks in range(FRAMES // CHUNK):
            part = slice(blocks * BLOCK, (blocks + 1) * BLOCK)
            cache.place([(blocks * CHUNK + frame, 0, 0) for frame in range(CHUNK)])
            for layer in range(SPEC.layers):
                cache.attend(layer, keys[:, :, part], keys[:, :, part], keys[:, :, part])
            cache.commit()
            own = cache.study_layers[0]
            four, two = (codecs[0] for codecs in (own._by_level[0], own._by_level[-1]))
            for frame in own.frames:
                now = own.decoded(frame.pair.keys)
                exact = keys[:, :, frame.number * PER_FRAME : (frame.number + 1) * PER_FRAME]
                whole = (slice(None), slice(None), torch.empty_like(exact))
                once = four.decode(four.encode(exact, _hint()), *whole).clone()
                if frame.level == 0:
                    assert torch.equal(now, once)
                else:
                    assert torch.equal(now, two.decode(two.encode(once, _hint()), *whole))
                    assert torch.equal(before.setdefault(frame.number, now), now)
        assert own.transcoded == sum(frame.level > 0 for frame in own.frames) > 0


def _hint():  # type: ignore[no-untyped-def]
    from comfyui_qvg.qvg.codec.base import EncodeHint

    return EncodeHint()


def test_pooled_tokens_are_means_and_forgotten_frames_are_gone() -> None:
    with make_cache(study_method("FLOWCACHE_SOFT_PRUNE_INT4"), SPEC, ROPE) as cache:
        assert isinstance(cache, StudyCache)
        _run(cache)
        own = cache.study_layers[1]
        pooled = [frame for frame in own.frames if frame.pooled]
        assert len(own.frames) == FRAMES and pooled and all(frame.pair.keys.num_tokens == 1 for frame in pooled)
        keys, _ = _tensors()
        for frame in pooled:
            mean = keys[:, :, frame.number * PER_FRAME : (frame.number + 1) * PER_FRAME].mean(2, keepdim=True)
            assert relative_error(mean, own.decoded(frame.pair.keys)) < 0.1
    with make_cache(study_method("FLOWCACHE_PRUNE_INT4"), SPEC, ROPE) as cache:
        assert isinstance(cache, StudyCache)
        _run(cache)
        assert len(cache.study_layers[1].frames) == FRAMES - len(pooled)


@pytest.mark.parametrize("method", STUDY, ids=lambda method: method.name)
def test_as_published_runs_and_says_its_bytes(method: StudyMethod) -> None:
    """Full caches take what their authors count: packed codes, lists and masks; padding of short groups, and outliers, beside."""
    with make_cache(method, SPEC, ROPE, published=True, capacity_frames=FRAMES) as cache:
        assert isinstance(cache, PublishedCache)
        outputs = _run(cache, passes=2)
        assert all(out.isfinite().all() for out in outputs)
        trips = {layer.round_trips for layer in cache.published_layers}
        # Once per pass and block; BF16 and REFRESH at commit alone.
        assert trips == {FRAMES // CHUNK * (1 if method.refresh or method.coding.codec == "none" else 2)}
        from comfyui_qvg.qvg.study.published_plan import published_bytes

        counted = cache.nbytes()
        expected = sum(published_bytes(layer.partition, SPEC, layer.capacity) for layer in cache.published_layers)  # type: ignore[arg-type]
        spans = 16 * sum(len(layer.partition.pooled) for layer in cache.published_layers)  # type: ignore[union-attr]
        assert counted.total - counted.outliers == expected - spans


def test_quantizing_again_and_again_loses() -> None:
    """The same method, quantized in every pass and once: what the study calls REFRESH is nearer to exact, ours nearest."""
    with make_cache(study_method("BF16"), SPEC, ROPE) as cache:
        exact = _run(cache)[1]
    error = {}
    for name in ("RTN_INT4", "RTN_INT4_REFRESH"):
        with make_cache(study_method(name), SPEC, ROPE, published=True, capacity_frames=FRAMES) as cache:
            error[name] = relative_error(exact, _run(cache, passes=5)[1])
    with make_cache(study_method("RTN_INT4"), SPEC, ROPE) as cache:
        ours = relative_error(exact, _run(cache)[1])
    assert ours < error["RTN_INT4_REFRESH"] <= error["RTN_INT4"], (ours, error)


def test_the_clamp_makes_kivi_the_worst() -> None:
    """As published KIVI_INT4 is behind RTN_INT4 by far; corrected it is beside it."""
    with make_cache(study_method("BF16"), SPEC, ROPE) as cache:
        exact = _run(cache)[1]
    error = {}
    for name in ("RTN_INT4", "KIVI_INT4"):
        for published in (True, False):
            with make_cache(study_method(name), SPEC, ROPE, published=published, capacity_frames=FRAMES) as cache:
                error[name, published] = relative_error(exact, _run(cache)[1])
    assert error["KIVI_INT4", True] > 10 * error["RTN_INT4", True], error
    assert error["KIVI_INT4", True] > 10 * error["KIVI_INT4", False], error


def test_zeroed_frames_take_attention_as_published() -> None:
    """Evicted tokens stay as zeros: a logit of 0 each. Queries that all other logits are below 0 for go there."""
    with make_cache(study_method("FLOWCACHE_PRUNE_INT4"), SPEC, ROPE, published=True, capacity_frames=FRAMES) as cache:
        assert isinstance(cache, PublishedCache)
        _run(cache)
        own = cache.published_layers[0]
        assert own.partition is not None and own.partition.zeroed
        frame = own.partition.zeroed[0]
        dense = own.rebuilt(0, torch.empty(0))
        assert not dense[:, :, frame * PER_FRAME : (frame + 1) * PER_FRAME].any() and dense[:, :, : own.filled].any()


def test_a_video_longer_than_what_was_allocated() -> None:
    cache = make_cache(study_method("RTN_INT4"), SPEC, ROPE, published=True, capacity_frames=4)
    with pytest.raises(CacheError, match="holds 80 tokens, but frames up to 120 were generated"):
        _run(cache)


def test_cameras_are_refused() -> None:
    """By both forms, in the same words."""
    method, x = study_method("AGE_TIER_INT2"), torch.zeros(1, HEADS, BLOCK, 128)
    for cache in (make_cache(method, SPEC), make_cache(method, SPEC, published=True, capacity_frames=4)):
        with pytest.raises(CacheError, match="AGE_TIER_INT2 is read along a rope only"):
            cache.attend_projected(0, x, x, x, None)  # type: ignore[arg-type]
