"""Two attentions over one stored history: along the rope, and in the coordinates of the cameras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheError, CacheSpec, KVCache, QVGConfig
from comfyui_qvg.qvg.attention import choice
from comfyui_qvg.qvg.camera.cameras import Cameras
from comfyui_qvg.qvg.positions.projective import Projector, project, projection_matrices
from comfyui_qvg.qvg.positions.rope import pairs_apart, wan_rope
from torch import Tensor

from ...golden_worldplay import GOLDEN
from ...helpers import LiveBytes, assert_close
from ...rounding import attend, eight_bit_error

PER_FRAME, BLOCK = 12, 2
ROPE = wan_rope(3, 4)
CODECS = {
    "exact": QVGConfig(codec="none"),
    "qvg": QVGConfig(clusters=16, span_frames=4, sink_frames=2),
    "klt": QVGConfig(codec="klt", clusters="auto", span_frames=4, spans_per_codebook=3),
    "kivi": QVGConfig(codec="kivi", span_frames=4),
}


def _projector(frames: int, recentred: int | None = None) -> Projector:
    cameras = Cameras(GOLDEN["turns.poses"].numpy()[: frames + BLOCK])
    cameras = cameras if recentred is None else cameras.recentred(recentred)
    matrices = projection_matrices(torch.from_numpy(cameras.views()), torch.from_numpy(cameras.normalised_intrinsics()))
    return Projector(matrices[0][-BLOCK:], matrices[1], PER_FRAME, apart=True)


def _block(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 1, 3, BLOCK * PER_FRAME, 128, generator=generator)


def _filled(config: QVGConfig, frames: int, **spec: Any) -> tuple[KVCache, Tensor]:
    """A cache after so many frames, and the next block's queries, keys and values in the model's order of channels."""
    cache = KVCache(CacheSpec(1, 3, 128, PER_FRAME, BLOCK, dtype=torch.float32, **spec), config, ROPE)
    generator = torch.Generator().manual_seed(0)
    for frame in range(0, frames, BLOCK):
        _place(cache, frame)
        q, k, v = _block(generator)
        cache.attend(0, pairs_apart(q), pairs_apart(k), v)
        cache.commit()
    _place(cache, frames)
    return cache, _block(generator)


def _place(cache: KVCache, frame: int) -> None:
    cache.place([(frame + i, 0, 0) for i in range(BLOCK)])


def _definition(cache: KVCache, block: Tensor, projector: Projector) -> Tensor:
    """In float64, channels in the model's order, from what the cache decodes to."""
    seen, leave = _seen(cache, block, projector)
    return leave(attend(*seen))


def _seen(
    cache: KVCache, block: Tensor, projector: Projector
) -> tuple[tuple[Tensor, Tensor, Tensor], Callable[[Tensor], Tensor]]:
    """Queries, keys and values as they go into attention, and what its output goes through."""
    layer = cache.layers[0]
    q, k, v = block.double()
    held = []
    for which in (0, 1):
        parts = []
        for pair in layer.state.history:
            codec = layer.exact if pair[which].codec == "none" else layer.codecs[which]
            shape = (1, 3, pair[which].num_tokens, 128)
            parts.append(codec.decode(pair[which], slice(None), slice(None), torch.empty(shape)).double())
        held.append(torch.cat(parts, 2))
    keys = held[0].unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)  # pairs together again
    keys, values = torch.cat([keys, k], 2), torch.cat([held[1], v], 2)

    def by_frame(x: Tensor, matrices: Tensor) -> Tensor:
        grouped = x.unflatten(-1, (-1, 4)).unflatten(2, (len(matrices), PER_FRAME))
        return torch.einsum("fij,bhfsgj->bhfsgi", matrices.double(), grouped).flatten(2, 3).flatten(-2)

    to_picture, to_world = projector.to_picture, projector.to_world
    seen = by_frame(q, to_picture.mT), by_frame(keys, to_world), by_frame(values, to_world)
    return seen, lambda out: by_frame(out, to_picture)


def _read(cache: KVCache, block: Tensor, projector: Projector) -> Tensor:
    q, k, v = block
    return cache.attend_projected(0, pairs_apart(q), pairs_apart(k), v, projector)


@pytest.mark.parametrize("tile_bytes", [90_000, 300_000, 50 << 20], ids=["small_tiles", "middle_tiles", "one_tile"])
@pytest.mark.parametrize("name", CODECS)
def test_equals_one_softmax(name: str, tile_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1e-5 in float32, however the history is cut."""
    monkeypatch.setattr("comfyui_qvg.qvg.attention.exact._CPU_TILE_BYTES", tile_bytes)
    cache, block = _filled(CODECS[name], 22)
    projector = _projector(22)
    assert_close("attention", _definition(cache, block, projector), _read(cache, block, projector), 1e-5)


@pytest.mark.parametrize("read", ["direct", "fast"])
@pytest.mark.parametrize("name", ["exact", "qvg", "kivi"])
def test_other_ways_to_read(name: str, read: str) -> None:
    cache, block = _filled(CODECS[name].with_changes(read=read), 22)
    projector = _projector(22)
    seen, leave = _seen(cache, block, projector)
    common = seen[1][:, :, -BLOCK * PER_FRAME :].mean(2)
    bound = eight_bit_error(*seen, common, then=leave) if read == "fast" else 1e-5
    assert_close("attention", leave(attend(*seen)), _read(cache, block, projector), bound)


def test_the_first_block_attends_to_itself() -> None:
    cache, block = _filled(CODECS["exact"], 0)
    apart = _projector(0)
    plain = Projector(apart.to_picture, apart.to_world, PER_FRAME)
    expected = plain.leave(torch.nn.functional.scaled_dot_product_attention(*plain.block(*block)))
    assert_close("attention", expected, cache.attend_projected(0, *block, plain), 1e-5)
    assert_close("pairs apart", expected, _read(cache, block, apart), 1e-5)


def test_the_world_may_be_moved_around_a_stored_history() -> None:
    cache, block = _filled(CODECS["qvg"], 22)
    assert_close("attention", _read(cache, block, _projector(22)), _read(cache, block, _projector(22, 22)), 1e-5)


def test_both_attentions_share_one_block_and_one_history() -> None:
    cache, block = _filled(CODECS["qvg"], 22)
    before, (q, k, v) = cache.nbytes(), block
    rope = cache.attend(0, pairs_apart(q), pairs_apart(k), v)
    _read(cache, block, _projector(22))
    torch.testing.assert_close(cache.attend(0, pairs_apart(q), pairs_apart(k), v), rope, rtol=0, atol=0)
    assert cache.nbytes() == before
    _read(cache, block, _projector(22))
    cache.commit()
    assert cache.frames_committed == 24
    stored = cache.layers[0].state.tail[-1]
    torch.testing.assert_close(stored.keys.values, pairs_apart(k).contiguous())
    torch.testing.assert_close(stored.values.values, v.contiguous())


def test_the_workspace_holds() -> None:
    """Eight times the history takes no more memory beside it: projecting takes a frame of a tile."""
    peaks = []
    for frames in (8, 64):
        cache, block = _filled(CODECS["qvg"].with_changes(workspace_mb=1), frames)
        projector = _projector(frames)
        with LiveBytes() as live:
            _read(cache, block, projector)
        peaks.append(live.peak)
    assert peaks[1] < peaks[0] + (1 << 20)


def test_keys_may_be_placed_anew() -> None:
    """What is stored does not know where it stands: re-based keys give what a cache gives that was filled there."""
    caches = []
    for offset in (0, 7):
        cache = KVCache(CacheSpec(1, 3, 128, PER_FRAME, BLOCK, dtype=torch.float32), CODECS["exact"], ROPE)
        generator = torch.Generator().manual_seed(0)
        for frame in range(0, 6, BLOCK):
            _place(cache, offset + frame)
            cache.attend(0, *_block(generator))
            cache.commit()
        cache.replace_origins([(frame, 0, 0) for frame in range(6)])
        _place(cache, 6)
        caches.append((cache, _block(generator)))
    (one, block), (other, _) = caches
    torch.testing.assert_close(one.attend(0, *block), other.attend(0, *block), rtol=0, atol=0)


def test_what_is_refused() -> None:
    cache, block = _filled(CODECS["exact"], 4)
    with pytest.raises(CacheError, match="8 cameras were given for 6 frames"):
        _read(cache, block, _projector(6))
    with pytest.raises(CacheError, match="3 positions were given for 4 frames"):
        cache.replace_origins([(0, 0, 0)] * 3)
    turned, block = _filled(QVGConfig(codec="none", keys="after_rope"), 4)
    with pytest.raises(CacheError, match="as they were rotated"):
        _read(turned, block, _projector(4))
    with pytest.raises(CacheError, match="as they were rotated"):
        turned.replace_origins([(0, 0, 0)] * 4)


@pytest.mark.parametrize("read", ["exact", "fast"])
def test_codes_in_a_table(read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU reads spans of codes, many at a time: rotated, projected, and against reading them span by span."""
    outs = []
    for by_table in (False, True):
        monkeypatch.setattr("comfyui_qvg.qvg.attention.plan.on_gpu", lambda device, by_table=by_table: by_table)
        monkeypatch.setattr("comfyui_qvg.qvg.attention.exact._CPU_TILE_BYTES", 200_000)
        cache, block = _filled(CODECS["qvg"].with_changes(read=read), 20)
        outs.append((cache.attend(0, *block), _read(cache, block, _projector(20))))
        assert bool(cache.reader._plans[0].of_codes) == by_table
    for name, one, other in zip(("rotated", "projected"), *outs, strict=True):
        assert_close(name, one, other, 1e-5 if read == "exact" else 1e-3)


def test_direct_through_cameras_takes_the_workspace_on_a_gpu() -> None:
    """One sentence says why; without a workspace a small tile at a time is left."""
    card, config = torch.device("cuda"), CODECS["qvg"].with_changes(read="direct")
    reading = choice._choose(config, card, True, 128, True)
    assert reading.mode == "exact" and "direct was asked for, but no kernel projects what it reads" in reading.why
    assert choice._choose(config, card, True, 128, False).mode == "direct"
    assert choice._choose(config.with_changes(workspace_mb=0), card, True, 128, True).mode == "direct"


def test_why_it_is_read_so() -> None:
    cache, block = _filled(CODECS["qvg"].with_changes(read="direct"), 8)
    _read(cache, block, _projector(8))
    assert "no kernel projects what it reads" in cache.explain()[-1]
    assert project(block[0], torch.eye(4)[None]).equal(block[0])
