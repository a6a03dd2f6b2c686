"""Codes of unequal width: every layout of planes comes back bit for bit, and the bytes lie where files say they lie."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.kernels import bitplanes
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def _layouts(draw: st.DrawFn) -> tuple[int, tuple[int, ...]]:
    """Channels and planes that fit them, from one plane of eight channels to eight full ones."""
    channels = draw(st.sampled_from([64, 128, 256]))
    sizes = draw(st.lists(st.integers(1, channels // 8), min_size=1, max_size=8))
    return channels, tuple(8 * size for size in sorted(sizes, reverse=True))


@given(_layouts(), st.lists(st.integers(1, 5), min_size=0, max_size=3), st.integers(0, 1 << 20))
def test_round_trip_and_width(layout: tuple[int, tuple[int, ...]], shape: list[int], seed: int) -> None:
    channels, planes = layout
    widths = bitplanes.widths(planes, channels)
    assert int(widths.sum()) == sum(planes) and bool((widths[:-1] >= widths[1:]).all())
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (*shape, channels), generator=generator) % (1 << widths)
    packed = bitplanes.pack(codes.to(torch.uint8), planes)
    assert packed.dtype == torch.uint8 and packed.shape == (*shape, sum(planes) // 8)
    assert bitplanes.packed_width(planes) == packed.shape[-1]
    assert torch.equal(bitplanes.unpack(packed, planes, channels), codes.to(torch.uint8))


def test_bytes_by_hand() -> None:
    """Planes (16, 8): channels 0-7 have two bits, 8-15 one. Two bytes of low bits, then one of high bits. Files depend on it."""
    codes = torch.tensor([1, 2, 3, 0, 0, 0, 0, 2, 1, 0, 0, 0, 1, 0, 0, 1] + [0] * 48, dtype=torch.uint8)
    assert bitplanes.pack(codes, (16, 8)).tolist() == [0b00000101, 0b10010001, 0b10000110]
    assert bitplanes.widths((96, 64, 32), 128).tolist() == [3] * 32 + [2] * 32 + [1] * 32 + [0] * 32
    assert bitplanes.packed_width((96, 64, 32)) == 24


def test_unpacks_views() -> None:
    codes = torch.randint(0, 4, (3, 20, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = bitplanes.pack(codes, (64, 64))
    assert torch.equal(bitplanes.unpack(packed[1:, 3:17:2], (64, 64), 64), codes[1:, 3:17:2])


def test_no_tokens() -> None:
    assert bitplanes.unpack(bitplanes.pack(torch.zeros(2, 0, 64, dtype=torch.uint8), (64,)), (64,), 64).shape == (2, 0, 64)


@pytest.mark.parametrize(
    "planes",
    [(), (12,), (64, 72), (136,), (64, 0), (-8,), (8,) * 9],
    ids=["none", "part_of_a_byte", "rising", "too_wide", "empty", "below_0", "nine"],
)
def test_refuses_planes_that_are_none(planes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be 1 to 8 multiples of 8 that fall from at most 128"):
        bitplanes.check_planes(planes, 128)
    bitplanes.check_planes((128, 128, 64, 8), 128)


def test_refuses_more_bits_than_there_are_levels_for() -> None:
    with pytest.raises(ValueError, match="must be 1 to 2 multiples of 8"):
        bitplanes.check_planes((64, 64, 64), 64, most=2)
