"""A share of the tiles is read, the others are seen by their means: what attention sees, what is kept, what it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_qvg.kernels.attention import Attended, merge_attention
from comfyui_qvg.kernels.means import rank_means
from comfyui_qvg.kernels.rotary import Angles
from comfyui_qvg.kernels.rows8 import quantize_rows
from comfyui_qvg.qvg import CacheError, CacheSpec, ConfigError, GridRope, KVCache, QVGConfig
from comfyui_qvg.qvg.attention.tiles import TILE_TOKENS, make_order, tile_bytes, tile_means, tile_sizes
from comfyui_qvg.qvg.bench.cache_watch import CacheWatch
from comfyui_qvg.qvg.cache import reading
from comfyui_qvg.qvg.cache.peak import peaks
from comfyui_qvg.qvg.positions.projective import Projector
from comfyui_qvg.qvg.positions.rope import Rotation, geometric_frequencies, rotate
from torch import Tensor

from ...helpers import assert_close

ROPE = GridRope(3, 4, (geometric_frequencies(4, 5, 80), geometric_frequencies(14, 3, 60), geometric_frequencies(14, 3, 60)))
SPEC = CacheSpec(2, 2, 64, 12, dtype=torch.float32)
_SHARED: dict[str, Any] = {"span_frames": 5, "sink_frames": 1, "recent_frames": 2}
CODECS = {
    "none": QVGConfig(codec="none", **_SHARED),
    "qvg": QVGConfig(clusters=8, **_SHARED),
    "klt": QVGConfig(codec="klt", bits=3, clusters="auto", spans_per_codebook=3, **_SHARED),
    "klt_hadamard": QVGConfig(codec="klt", bits=3, clusters=6, transform="hadamard", spans_per_codebook=2, **_SHARED),
    "rtn": QVGConfig(codec="rtn", bits=4, symmetric=False, **_SHARED),
    "kivi": QVGConfig(codec="kivi", bits=4, group_size=16, **_SHARED),
    "quarot": QVGConfig(codec="quarot", bits=4, **_SHARED),
    "nvfp4": QVGConfig(codec="nvfp4", bits=4, group_size=16, **_SHARED),
}


@pytest.fixture(autouse=True)
def short_histories_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any length."""
    monkeypatch.setattr(reading, "LEAST_TOKENS", 1)


def walk(cache: KVCache, frames: int, first: int = 0, by_layer: bool = False, scale: float = 1.0) -> Tensor:
    """What every layer saw in every block: [blocks * layers * B, H, S, D]."""
    spec, seen, chunk = cache.spec, [], cache.spec.chunk_frames
    for at in range(first, first + frames, chunk):
        generator = torch.Generator().manual_seed(at)
        cache.place([(float(at + i), 0.0, float(at % 7) / 2) for i in range(chunk)])
        for layer in range(spec.layers):
            shape = (3, spec.batch, spec.heads, chunk * spec.tokens_per_frame, spec.head_dim)
            q, k, v = (x.clone() for x in scale * torch.randn(shape, generator=generator))
            seen.append(cache.attend(layer, q, k, v))
            if by_layer:
                cache.commit_layer(layer)
        if not by_layer:
            cache.commit()
    return torch.cat(seen)


@pytest.mark.parametrize("keys", ["before_rope", "after_rope"])
@pytest.mark.parametrize("name", CODECS)
def test_all_tiles_are_the_whole(name: str, keys: str) -> None:
    """A share of 1 reads everything, in another order: float32's rounding."""
    config = CODECS[name].with_changes(keys=keys)
    whole, share = (KVCache(SPEC, one, ROPE) for one in (config, config.with_changes(sparse=1.0)))
    assert_close("attention", walk(whole, 24), walk(share, 24), 2e-5)
    assert any("of 16 tiles of 16 tokens read" in line for line in share.explain()), share.explain()
    plain = whole.nbytes()
    assert share.nbytes().total - share.nbytes().tiles == plain.total, "what is encoded is what it would be"


@pytest.mark.parametrize(("name", "window"), [("none", 12), ("kivi", 14)])
def test_a_window_cuts_spans_and_takes_their_tiles_along(name: str, window: int) -> None:
    """What is left of the span that it cuts is read whole, and its means, which stand for what has left, too, are not seen."""
    config = CODECS[name].with_changes(window_frames=window, span_frames=4)
    whole, share = (KVCache(SPEC, one, ROPE) for one in (config, config.with_changes(sparse=1.0)))
    assert_close("attention", walk(whole, 21), walk(share, 21), 2e-5)
    assert any("tiles of 16 tokens read" in line for line in share.explain()), share.explain()
    for layer in share.layers:
        assert len(layer.state.tiles) == len(layer.state.spans) == len(share.layout.spans)
    assert share.nbytes() == SPEC.predict(share.config, 21, codebooks=share.codebooks())
    part = KVCache(SPEC, config.with_changes(sparse=0.3), ROPE)
    assert bool(walk(part, 21).isfinite().all())


def test_a_part_of_the_whole_by_definition() -> None:
    """Tiles chosen by the largest share of any query, all others one key more that stands for its tokens: in float64, from the
    stretches themselves."""
    cache = KVCache(SPEC, CODECS["none"].with_changes(sparse=0.3), ROPE)
    walk(cache, 24, scale=1.5)
    state, origins = cache.layers[0].state, torch.tensor(cache.origins)
    held = [torch.cat([pair[which].values for pair in state.history], 2) for which in (0, 1)]  # type: ignore[union-attr]
    keys, values = rotate(held[0], ROPE.rotation(origins)).double(), held[1].double()
    generator = torch.Generator().manual_seed(9)
    q, k, v = 1.5 * torch.randn(3, 1, 2, 12, 64, generator=generator)
    cache.place([(24.0, 0.0, 1.0)])
    seen = cache.attend(0, q, k, v)
    here = ROPE.rotation(torch.tensor([(24.0, 0.0, 1.0)]))
    q, k = rotate(q, here).double() / 8, rotate(k, here).double()
    first, per_span = 12, 5 * 12
    spans = len(state.spans)
    for head in range(2):
        exact = [*range(first), *range(first + spans * per_span, keys.shape[2])]
        near = [*range(first), *range(first + spans * per_span, keys.shape[2])]
        near_keys, near_values = (torch.cat([x[0, head, near], y[0, head].double()]) for x, y in ((keys, k), (values, v)))
        logits, tiles, masses, added = q[0, head] @ near_keys.T, [], [], []
        for number in range(spans):
            some, base = state.tiles[number], first + number * per_span
            for tile, mean in enumerate(some.keys.dequantize()[0, head].double()):
                tokens = base + some.order[0, head, 16 * tile : 16 * tile + 16].long()
                masses.append(q[0, head] @ mean + torch.tensor(float(len(tokens))).log())
                spread = (held[0][0, head, exact].double().square().sum(1).mean() - mean.square().sum()).clamp(min=0) / 64
                added.append((q[0, head].square().sum(1) / 2 * spread).clamp(max=6))
                tiles.append((tokens, some.values.dequantize()[0, head, tile].double()))
        every = torch.stack(masses, 1)
        guessed = every + torch.stack(added, 1)
        shares = (guessed - torch.cat([logits, guessed], 1).logsumexp(1)[:, None]).amax(0)
        best = set(shares.topk(-(-3 * len(tiles) // 10)).indices.tolist())
        assert len(tiles) == 4 * spans == 16 and len(best) == 5
        logit, value = [logits], [near_values]
        for number, (tokens, mean_value) in enumerate(tiles):
            if number in best:
                logit.append(q[0, head] @ keys[0, head, tokens].T)
                value.append(values[0, head, tokens])
            else:
                logit.append(every[:, number : number + 1])
                value.append(mean_value[None])
        wanted = torch.cat(logit, 1).softmax(1) @ torch.cat(value)
        assert_close(f"head {head}", wanted, seen[0, head].double(), 2e-5)


def test_a_tile_of_equal_keys_and_values_loses_nothing() -> None:
    """FAST-AR's lemma: m equal keys are one with log m more. Eight bits cost the means 1/254 of their largest component."""
    spec = CacheSpec(1, 2, 64, 16, dtype=torch.float32)
    config = QVGConfig(codec="none", span_frames=4, sink_frames=1, recent_frames=2)
    share, whole = KVCache(spec, config.with_changes(sparse=0.08)), KVCache(spec, config)
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(2, 1, 2, 4, 64, generator=generator)
    for one in (share, whole):
        for _ in range(20):
            k, v = kinds[..., torch.arange(16) % 4, :]
            one.attend(0, k, k, v)
            one.commit()
    q = torch.randn(1, 2, 16, 64, generator=generator)
    k, v = kinds[..., torch.arange(16) % 4, :]
    assert_close("attention", whole.attend(0, q, k, v), share.attend(0, q, k, v), 0.02)
    assert "2 of 16 tiles" in share.explain()[-1]


@pytest.mark.parametrize("name", CODECS)
def test_bytes_are_those_that_were_predicted(name: str) -> None:
    config = CODECS[name].with_changes(sparse=0.15)
    cache, frames = KVCache(SPEC, config, ROPE), 23
    watch, most = CacheWatch(cache), []
    for peak in peaks(SPEC, config, [1] * frames, torch.float32, by_layer=False):
        walk(cache, 1, peak.frames - 1)
        if name not in ("klt",):  # begins further codebooks where frames do not fit
            assert cache.nbytes().total == peak.now_bytes
        most.append((watch.most, peak.peak_bytes))
    assert cache.nbytes() == SPEC.predict(config, frames, codebooks=cache.codebooks())
    assert all(counted <= predicted for counted, predicted in most) or name == "klt"
    assert cache.nbytes().tiles == 4 * 2 * tile_bytes(2, 60, 64)
    assert SPEC.predict_peak(config, frames, None, torch.float32, False) == most[-1][1]


def test_batches_and_blocks_of_several_frames() -> None:
    spec = CacheSpec(2, 2, 64, 12, chunk_frames=3, batch=2, dtype=torch.float32)
    config = QVGConfig(codec="klt", bits=3, clusters="auto", sparse=1.0, span_frames=6)
    whole, share = (KVCache(spec, one, ROPE) for one in (config.with_changes(sparse=0.0), config))
    assert_close("attention", walk(whole, 30), walk(share, 30, by_layer=True), 2e-5)
    part = KVCache(spec, config.with_changes(sparse=0.25), ROPE)
    walk(part, 30)
    assert part.nbytes() == spec.predict(part.config, 30, codebooks=part.codebooks())


def test_many_queries_choose_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of other sizes give other choices, and with all tiles the same result."""
    from comfyui_qvg.qvg.attention import sparse

    seen = {}
    for size in (4, 12):
        monkeypatch.setattr(sparse, "BLOCK_QUERIES", size)
        for share in (0.2, 1.0):
            cache = KVCache(SPEC, CODECS["klt"].with_changes(sparse=share), ROPE)
            seen[size, share] = walk(cache, 24)
    assert_close("all", seen[4, 1.0], seen[12, 1.0], 2e-5)
    assert not torch.allclose(seen[4, 0.2], seen[12, 0.2], atol=1e-4)


@pytest.mark.parametrize("name", ["none", "klt", "kivi"])
def test_blocks_that_read_everything_together_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does with many queries (spans decoded once, a list of tokens for every block) against tile by tile."""
    from comfyui_qvg.qvg.attention import sparse

    monkeypatch.setattr(sparse, "BLOCK_QUERIES", 16)
    spec = CacheSpec(1, 2, 64, 12, chunk_frames=3, batch=2, dtype=torch.float32)
    seen = []
    for many in (False, True):
        monkeypatch.setattr(sparse, "on_gpu", lambda device, many=many: many)
        cache = KVCache(spec, CODECS[name].with_changes(sparse=0.4, workspace_mb=1), ROPE)
        seen.append(walk(cache, 27))
    assert_close("attention", seen[0], seen[1], 2e-5)
    assert not torch.equal(*seen), "both ways were taken"


def test_a_short_history_is_read_whole_and_says_so_once(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(reading, "LEAST_TOKENS", 100)
    whole, share = (KVCache(SPEC, CODECS["none"].with_changes(sparse=each), ROPE) for each in (0.0, 0.1))
    with caplog.at_level("INFO"):
        assert torch.equal(walk(whole, 8), walk(share, 8)), "one span of 60 tokens"
        walk(share, 12, 8)
    short, long = [line for line in caplog.text.splitlines() if "sparse" in line]
    assert "fewer than 100 encoded tokens are read whole before sparse 0.1 skips any" in short
    assert "sparse: 0.1 was asked for" in long


def test_the_next_block_reads_what_has_become_history() -> None:
    """Plans are made anew when a span joins, and reset gives everything back."""
    cache = KVCache(SPEC, CODECS["klt"].with_changes(sparse=0.2), ROPE)
    once = walk(cache, 30)
    assert len(cache.layers[0].state.tiles) == len(cache.layers[0].state.spans) == 5
    cache.reset()
    assert cache.nbytes().total == 0
    assert torch.equal(once, walk(cache, 30))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sparse": 0.05}, r"sparse is 0.05, but must be 0 \(off\) or a share of the tokens from 0.08 to 1; start with 0.15"),
        ({"sparse": 1.5}, "sparse is 1.5"),
        ({"sparse": -1}, "sparse is -1"),
        ({"sparse": True}, "sparse is True"),
        ({"sparse": "x"}, "sparse is 'x'"),
        ({"sparse": float("nan")}, "sparse is nan"),
        ({"sparse": 0.15, "merge": 0.99}, "sparse 0.15 does not go with merge 0.99: what could be skipped"),
        ({"sparse": 0.15, "offload": "cpu"}, "does not go with offload 'cpu'"),
        ({"sparse": 0.15, "read": "fast"}, "does not go with read 'fast'"),
        ({"sparse": 0.15, "read": "direct"}, "does not go with read 'direct'"),
    ],
)
def test_what_does_not_go_is_said(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        CODECS["klt"].with_changes(**changes)


def test_tiles_stay_where_they_are() -> None:
    cache = KVCache(SPEC, CODECS["klt"].with_changes(sparse=0.2), ROPE)
    walk(cache, 12)
    with pytest.raises(CacheError, match="frames cannot move; use sparse 0"):
        cache.replace_origins(cache.origins)
    x = torch.randn(1, 2, 12, 64)
    with pytest.raises(CacheError, match="cameras turn them otherwise; use sparse 0"):
        cache.attend_projected(0, x, x, x, Projector.__new__(Projector))


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 60, 100, 1024])
def test_an_order_holds_every_token_once(tokens: int) -> None:
    keys = torch.randn(2, 3, tokens, 32, generator=torch.Generator().manual_seed(tokens))
    order = make_order(keys)
    assert torch.equal(order.long().sort(-1).values, torch.arange(tokens).expand(2, 3, -1)) and order.dtype == torch.int16
    sizes = tile_sizes(tokens, keys.device)
    assert int(sizes.sum()) == tokens and len(sizes) == -(-tokens // TILE_TOKENS) and float(sizes.max()) <= TILE_TOKENS
    means = tile_means(keys, order)
    last = keys[1, 2, order[1, 2, 16 * (len(sizes) - 1) :].long()].mean(0)
    assert_close("the last mean", last, means.dequantize()[1, 2, -1], 0.02)


def test_what_is_alike_is_in_a_tile() -> None:
    """64 places, 16 tokens each that differ little: every tile holds one place."""
    generator = torch.Generator().manual_seed(3)
    places = torch.randn(1, 2, 64, 1, 32, generator=generator)
    keys = (places + 1e-5 * torch.randn(1, 2, 64, 16, 32, generator=generator)).flatten(2, 3)
    shuffled = torch.randperm(1024, generator=generator)
    order = shuffled[make_order(keys[:, :, shuffled]).long()]
    of = (order // 16).view(1, 2, 64, 16)
    assert bool((of == of[..., :1]).all())


def test_angles_of_some_tokens() -> None:
    origins = torch.tensor([(float(t), 0.5 * t, 1.0) for t in range(6)])
    angles = ROPE.angles(origins)
    tokens = torch.tensor([71, 0, 13, 13, 40])
    for part, whole in ((angles, angles.spread()), (angles.tokens(5, 60), angles.tokens(5, 60).spread())):
        some = tokens.clamp(max=part.num_tokens - 1)
        for mine, all_of_them in zip(part.at(some), whole, strict=True):
            assert torch.equal(mine, all_of_them[some])
    apart = ROPE.angles_at(torch.randn(5, 3)).at(torch.tensor([4, 2]))
    assert apart[0].shape == (2, 32)
    joined = angles.tokens(8, 24).followed_by(angles.tokens(48, 72))
    wanted = Rotation(*(torch.cat([x[8:24], x[48:72]]) for x in angles.spread()))
    for mine, theirs in zip(joined.spread(), wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert isinstance(joined, Angles)


def test_attention_to_nothing_left_adds_nothing() -> None:
    """With all tiles chosen the others weigh nothing, and merging takes that."""
    generator = torch.Generator().manual_seed(0)
    q, near = torch.randn(1, 1, 3, 16, generator=generator), torch.zeros(1, 1, 3)
    keys, values = (quantize_rows(torch.randn(1, 1, 4, 16, generator=generator)) for _ in range(2))
    tiles, rest = rank_means(q, keys, values, torch.zeros(4), torch.ones(1, 1), near, 4, 64)
    assert tiles.tolist() == [[[[0, 1, 2, 3]]]] and bool((rest.lse == -torch.inf).all()) and not bool(rest.out.any())
    total = Attended(torch.ones(1, 1, 3, 16), near.clone())
    merge_attention(rest.out[None], rest.lse[None], total)
    assert torch.equal(total.out, torch.ones(1, 1, 3, 16)) and torch.equal(total.lse, near)
