"""Every wrong setting gets one sentence with the value, the rule and the way out."""

from __future__ import annotations

import re
from typing import Any

import pytest
from comfyui_qvg.qvg import PRESETS, CacheSpec, ConfigError, KVCache, QVGConfig

SPEC = CacheSpec(layers=1, heads=2, head_dim=128, tokens_per_frame=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 5}, "bits is 5, but must be one of 2, 3, 4, 8"),
        ({"bits": True}, "bits is True"),
        ({"bits": 2.0}, "bits is 2.0"),
        ({"symmetric": "no"}, "symmetric is 'no'"),
        ({"codec": "QVG"}, "codec is 'QVG', but must be one of 'none', 'qvg'"),
        ({"clusters": 257}, "clusters is 257, but must be a whole number from 1 to 256 (cluster ids are stored in one byte)"),
        ({"clusters": 0}, "clusters is 0"),
        ({"clusters": "many"}, "clusters is 'many'"),
        ({"group_size": 48}, "group_size is 48, but must be one of 16, 32, 64, 128"),
        ({"num_stages": 5}, "num_stages is 5, but must be a whole number from 1 to 4"),
        ({"iterations": 0}, "iterations is 0"),
        ({"sink_frames": -1}, "sink_frames is -1"),
        ({"span_frames": 2.5}, "span_frames is 2.5, but must be a whole number"),
        ({"workspace_mb": -1}, "workspace_mb is -1"),
        ({"workspace_mb": 0, "read": "exact"}, "workspace_mb is 0, but read 'exact' decodes into a workspace; use read 'direct'"),
        ({"read": "quick"}, "read is 'quick', but must be one of 'auto', 'exact', 'fast', 'direct'"),
        ({"window_frames": 0}, "window_frames is 0"),
        ({"backend": "gpu"}, "backend is 'gpu', but must be one of 'auto', 'torch', 'triton'"),
        ({"stages": 2}, "setting is 'stages', but must be one of"),
        ({"bits": 1.5}, "bits is 1.5, but must be one of 2, 3, 4, 8"),
        ({"bits_v": 1}, "bits_v is 1, but must be one of 2, 3, 4, 8"),
        ({"codec": "kivi", "bits": 2.5}, "bits is 2.5"),
        ({"codec": "klt", "bits": 2.03}, "bits is 2.03, but codec 'klt' takes multiples of 1/16 from 0.25 to 6; start with 2"),
        ({"codec": "klt", "bits_v": 6.5}, "bits_v is 6.5, but codec 'klt' takes multiples of 1/16"),
        ({"codec": "klt", "bits": 0.125}, "bits is 0.125"),
        ({"codec": "klt", "bits": float("nan")}, "bits is nan"),
        ({"codec": "klt", "bits": float("inf")}, "bits is inf"),
        ({"codec": "klt", "bits": "2"}, "bits is '2'"),
        ({"codec": "klt", "bits": True}, "bits is True"),
        ({"transform": "dct"}, "transform is 'dct', but must be one of 'klt', 'hadamard'"),
        ({"keys": "rotated"}, "keys is 'rotated', but must be one of 'before_rope', 'after_rope'"),
        ({"clusters_added": 257}, "clusters_added is 257, but must be a whole number from 0 to 256"),
        ({"clusters_added": "all"}, "clusters_added is 'all'"),
    ],
    ids=lambda value: "_".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        QVGConfig().with_changes(**changes)


@pytest.mark.parametrize(
    ("config", "spec", "message"),
    [
        (QVGConfig(group_size=64), CacheSpec(1, 2, 96, 64), "group_size 64 does not divide head_dim 96; use one of [16, 32]"),
        (QVGConfig(group_size=16), CacheSpec(1, 2, 24, 64), "cannot be quantized in groups"),
        (QVGConfig(clusters=256, span_frames=3), SPEC, "clusters is 256, but a span holds only 192 tokens"),
        (
            QVGConfig(window_frames=4),
            SPEC,
            "window_frames is 4, but sink (1), recent (3) and one block (1) need at least 5 frames",
        ),
        (
            QVGConfig(sink_frames=1, recent_frames=1, window_frames=8),
            CacheSpec(1, 2, 128, 64, chunk_frames=3),
            "need at least 9 frames",
        ),
        (QVGConfig(window_frames=5), SPEC, "nothing would ever be encoded; use 6 or more"),
        (
            QVGConfig(codec="quarot", group_size=32),
            CacheSpec(1, 2, 96, 64),
            "head_dim 96 is not a power of two, which a Hadamard transform needs; use codec 'klt', 'kivi' or 'rtn'",
        ),
        (
            QVGConfig(codec="klt", transform="hadamard", clusters="auto"),
            CacheSpec(1, 2, 96, 64),
            "head_dim 96 is not a power of two, which a Hadamard transform needs; use transform 'klt'",
        ),
        (
            QVGConfig(codec="klt", bits=2.0625, clusters="auto"),
            CacheSpec(1, 2, 64, 64),
            "bits 2.0625 times head_dim 64 is not a whole number of bytes; use a multiple of 0.125",
        ),
        (QVGConfig(codec="kivi"), CacheSpec(1, 2, 96, 64), "group_size 64 does not divide head_dim 96; use one of [16, 32]"),
    ],
    ids=[
        "group_size",
        "no_group_size",
        "clusters",
        "window",
        "window_in_whole_chunks",
        "window_without_room",
        "quarot_without_hadamard",
        "klt_without_hadamard",
        "part_of_a_byte",
        "kivi_group_size",
    ],
)
def test_refusals_of_misfits(config: QVGConfig, spec: CacheSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        KVCache(spec, config)


def test_presets_keep_their_names() -> None:
    """Workflows store them."""
    assert list(PRESETS) == ["exact", "qvg", "qvg-pro", "fewest-bytes", "balanced", "near-exact"]
    with pytest.raises(ConfigError, match="preset is 'best'"):
        QVGConfig.preset("best")


@pytest.mark.parametrize("codec", ["rtn", "kivi", "quarot"])
def test_codecs_without_clusters_do_not_mind_their_number(codec: str) -> None:
    SPEC.check(QVGConfig(codec=codec, clusters=256, span_frames=1))


def test_every_sixteenth_of_a_bit_that_is_whole_bytes_is_taken() -> None:
    for sixteenths in range(4, 6 * 16 + 1):
        SPEC.check(QVGConfig(codec="klt", bits=sixteenths / 16, clusters="auto"))


def test_spec_refuses_nonsense() -> None:
    with pytest.raises(ConfigError, match="heads is 0"):
        CacheSpec(1, 0, 128, 64)


def test_what_a_user_gave_is_shown_briefly() -> None:
    """And without control characters."""
    long = "\x1b[2J" + "x" * 1_000_000
    for refused in (
        lambda: QVGConfig.preset(long),
        lambda: QVGConfig(codec=long),
        lambda: QVGConfig(sink_frames=10**400),
        lambda: QVGConfig(bits=10**400),
    ):
        with pytest.raises(ConfigError) as caught:
            refused()
        assert len(str(caught.value)) < 400 and str(caught.value).isprintable()
