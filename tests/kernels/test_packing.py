"""Packing and eight-bit floats are bit-exact."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.kernels import e4m3, packing


@pytest.mark.parametrize("channels", [64, 128, 256], ids=lambda d: f"head_dim_{d}")
@pytest.mark.parametrize("bits", packing.BITS, ids=lambda b: f"{b}_bits")
def test_round_trip_and_width(bits: int, channels: int) -> None:
    codes = torch.randint(0, 1 << bits, (2, 3, 17, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = packing.pack(codes, bits)
    assert packed.shape == (2, 3, 17, packing.packed_width(channels, bits)) and packed.dtype == torch.uint8
    assert torch.equal(packing.unpack(packed, bits), codes)


def test_two_bits_lie_in_planes() -> None:
    """The drawing in packing.py: byte j holds channels j, j+32, j+64, j+96 from the low bits up. Files depend on it."""
    codes = torch.zeros(128, dtype=torch.uint8)
    codes[5], codes[5 + 32], codes[5 + 64], codes[5 + 96] = 1, 2, 3, 1
    packed = packing.pack(codes, 2)
    assert packed[5] == 0b01_11_10_01 and packed.sum() == packed[5]


def test_three_bits_are_two_planes_and_one() -> None:
    codes = torch.zeros(128, dtype=torch.uint8)
    codes[7] = 0b110
    packed = packing.pack(codes, 3)
    assert packed[7] == 0b10 and packed[32 + 7] == 0b1 and packed.count_nonzero() == 2


def test_e4m3_decodes_every_byte_as_torch_does() -> None:
    code = torch.arange(256, dtype=torch.uint8)
    expected = code.view(torch.float8_e4m3fn).float()
    written = ~expected.isnan()
    assert int(written.sum()) == 254 and torch.equal(e4m3.decode(code)[written], expected[written])


def test_e4m3_rounds_as_torch_does_and_saturates() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(20_000, generator=generator) * 10.0**power for power in range(-4, 4)])
    levels = e4m3.decode(torch.arange(127, dtype=torch.uint8))
    ties = (levels[1:] + levels[:-1]) / 2
    x = torch.cat([values, ties, -ties, torch.tensor([0.0, 448.0, 449.0, 1e30, -1e30, 2.0**-10, 2.0**-9])])
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.equal(e4m3.decode(e4m3.encode(x)), expected)


def test_e4m3_never_writes_nan() -> None:
    assert not (e4m3.encode(torch.linspace(-1000, 1000, 4001)) & 0x7F == 0x7F).any()
