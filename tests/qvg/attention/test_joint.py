"""What queries see besides memory and block: as one softmax over all of it, in every way to read."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.qvg import CacheError, CacheSpec, KVCache, QVGConfig
from comfyui_qvg.qvg.positions.projective import Projector
from comfyui_qvg.qvg.positions.rope import hunyuan_rope, pairs_apart, rotate
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...helpers import assert_close

ROPE = hunyuan_rope(4, 8)
SPEC = CacheSpec(1, 2, 128, 32, 1, dtype=torch.float32)
TOKENS = 32


def _draw(tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 2, tokens, 128, generator=generator) for _ in range(3))
    return q, k, v


def _filled(config: QVGConfig, frames: int = 3) -> KVCache:
    cache = KVCache(SPEC, config, ROPE)
    for frame in range(frames):
        cache.place([(frame, 0, 0)])
        cache.attend(0, *_draw(TOKENS, frame))
        cache.commit()
    cache.place([(frames, 0, 0)])
    return cache


@pytest.mark.parametrize("read", ["exact", "fast", "direct"])
def test_joint_keys_join_the_softmax(read: str) -> None:
    """Neither turned nor kept. 'fast' reads in eight bits."""
    config = QVGConfig(codec="none", read=read)
    q, k, v = _draw(TOKENS, 9)
    _, text_k, text_v = _draw(11, 10)
    with _filled(config) as cache:
        out = cache.attend(0, q, k, v, joint=(text_k, text_v))
        before = cache.nbytes()
        cache.commit()
        assert cache.nbytes().exact - before.exact == 2 * k.nbytes
    rotation = ROPE.rotation(torch.tensor([(frame, 0, 0) for frame in range(4)]))
    history = [_draw(TOKENS, frame) for frame in range(3)]
    keys = rotate(torch.cat([*(frame[1] for frame in history), k], 2), rotation)
    values = torch.cat([*(frame[2] for frame in history), v], 2)
    whole = scaled_dot_product_attention(
        rotate(q, rotation.tokens(3 * TOKENS, 4 * TOKENS)), torch.cat([text_k, keys], 2), torch.cat([text_v, values], 2)
    )
    assert_close(read, whole, out, 1e-5 if read != "fast" else 0.05)


def test_joint_keys_are_not_projected() -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = torch.eye(4) + 0.1 * torch.randn(4, 4, 4, generator=generator)
    projector = Projector(matrices[3:], matrices, TOKENS, apart=True)
    q, k, v = _draw(TOKENS, 9)
    _, text_k, text_v = _draw(11, 10)
    history = [_draw(TOKENS, frame) for frame in range(3)]
    with _filled(QVGConfig(codec="none")) as cache:
        out = cache.attend_projected(0, q, k, v, projector, joint=(text_k, text_v))
    everything = Projector(matrices, matrices, TOKENS, apart=True)
    rows = [torch.cat([*(frame[which] for frame in history), x], 2) for which, x in ((0, q), (1, k), (2, v))]
    queries, keys, values = everything.block(*rows)
    own = queries[:, :, -TOKENS:]
    whole = scaled_dot_product_attention(own, torch.cat([text_k, keys], 2), torch.cat([text_v, values], 2))
    assert_close("projected", projector.leave(whole), out, 1e-5)


def test_one_text_serves_a_batch() -> None:
    spec = CacheSpec(1, 2, 128, 32, 1, batch=2, dtype=torch.float32)
    q, k, v = (x.repeat(2, 1, 1, 1) for x in _draw(TOKENS, 9))
    _, text_k, text_v = _draw(11, 10)
    with KVCache(spec, QVGConfig(codec="none")) as cache:
        both = cache.attend(0, q, k, v, joint=(text_k, text_v))
    torch.testing.assert_close(both[0], both[1])
    whole = scaled_dot_product_attention(q[:1], torch.cat([text_k, k[:1]], 2), torch.cat([text_v, v[:1]], 2))
    assert_close("one of them", whole, both[:1], 1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 5, 128), (1, 2, 5, 64), (3, 2, 5, 128), (2, 5, 128)])
def test_joint_keys_of_another_shape(shape: tuple[int, ...]) -> None:
    with _filled(QVGConfig(codec="none")) as cache, pytest.raises(CacheError, match=r"give \[1 or 1, 2, n, 128\]"):
        cache.attend(0, *_draw(TOKENS, 9), joint=(torch.zeros(shape), torch.zeros(shape)))


def test_hunyuan_positions() -> None:
    """As the official tables: pairs of neighbours, 16 channels for time, 56 each for row and column, theta 256."""
    rotation = ROPE.rotation(torch.tensor([(5, 0, 0)]))
    token = 2 * 8 + 3  # row 2, column 3
    angles = [5 * 256 ** (-2 * i / 16) for i in range(8)] + [2 * 256 ** (-2 * i / 56) for i in range(28)]
    angles += [3 * 256 ** (-2 * i / 56) for i in range(28)]
    cos, sin = torch.tensor(angles).cos(), torch.tensor(angles).sin()
    x = torch.randn(128, generator=torch.Generator().manual_seed(0))
    first, second = x[0::2], x[1::2]
    expected = torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten()
    turned = rotate(pairs_apart(x)[None, None, None], rotation.tokens(token, token + 1))
    torch.testing.assert_close(turned.flatten(), pairs_apart(expected), rtol=1e-5, atol=1e-5)
