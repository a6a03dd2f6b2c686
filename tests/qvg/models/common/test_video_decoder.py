"""Bytes of a streamed decode. That a real one takes them is tested where there is a ComfyUI: tests/integration/test_decode.py."""

from __future__ import annotations

import pytest
from comfyui_qvg.qvg.errors import ConfigError
from comfyui_qvg.qvg.models.common.video_decoder import WAN_2_1, WAN_2_2, decode_bytes, picture_bytes, working_bytes


def test_the_size_of_the_models_this_pack_is_about():
    assert working_bytes(832, 480) == 2_717_644_800
    assert decode_bytes(832, 480) == 2_717_644_800 + 2 * 126_892_531
    assert decode_bytes(832, 480, WAN_2_2) == 3_061_144_320 + 2 * 704_688_668


def test_everything_grows_with_the_picture_and_with_the_width_of_a_value():
    assert working_bytes(1280, 720) * 64 * 64 == working_bytes(64, 64) * 1280 * 720
    assert decode_bytes(832, 480, value_bytes=4) == 2 * decode_bytes(832, 480)
    assert picture_bytes(832, 480) == 832 * 480 * 3 * 33


@pytest.mark.parametrize(("width", "height", "decoder"), [(0, 480, WAN_2_1), (836, 480, WAN_2_1), (840, 480, WAN_2_2)])
def test_sizes_without_a_latent_are_refused(width, height, decoder):
    with pytest.raises(ConfigError, match=rf"{width}x{height} pixels has no latent; both sides must be multiples of"):
        decode_bytes(width, height, decoder)
