"""Frames, counted: what becomes sink, span and tail, and what leaves. No tensors."""

from __future__ import annotations

import pytest
from comfyui_qvg.qvg import QVGConfig
from comfyui_qvg.qvg.cache.policy import CachePolicy, Layout
from hypothesis import given
from hypothesis import strategies as st


def _run(policy: CachePolicy, chunks: int) -> tuple[Layout, int, int]:
    layout, encodes, evicted = Layout(), 0, 0
    for _ in range(chunks):
        before = layout.frames
        step = policy.commit(layout, policy.chunk_frames)
        layout = step.layout
        encodes += step.encode_chunks > 0
        evicted += before + policy.chunk_frames - layout.frames
    return layout, encodes, evicted


def test_chunks_are_encoded_when_the_recent_frames_are_still_exact_behind_them() -> None:
    policy = CachePolicy(sink_frames=1, recent_frames=3, span_frames=8, window_frames=None, chunk_frames=1)
    assert _run(policy, 11)[0] == Layout((1,), (), (1,) * 10)
    assert _run(policy, 12)[0] == Layout((1,), (8,), (1,) * 3)
    assert _run(policy, 20)[0] == Layout((1,), (8, 8), (1,) * 3)


def test_one_chunk_at_a_time_where_the_span_allows() -> None:
    policy = CachePolicy(sink_frames=3, recent_frames=3, span_frames=3, window_frames=None, chunk_frames=3)
    assert _run(policy, 4)[0] == Layout((3,), (3, 3), (3,))


def test_spans_and_sink_are_whole_chunks() -> None:
    policy = CachePolicy(sink_frames=1, recent_frames=4, span_frames=7, window_frames=None, chunk_frames=3)
    assert _run(policy, 6)[0] == Layout((3,), (9,), (3, 3))


def test_a_full_window_forgets_one_frame_at_a_time() -> None:
    """A span leaves with its last frame; until then its older ones are hidden."""
    policy = CachePolicy(sink_frames=2, recent_frames=2, span_frames=4, window_frames=12, chunk_frames=1)
    for chunks in range(11, 40):
        layout, _, evicted = _run(policy, chunks)
        assert layout.sink == (1, 1) and layout.frames == 11 and evicted == chunks - 11
        assert 0 <= layout.hidden < 4 and (layout.spans or not layout.hidden)


def test_exact_frames_leave_one_chunk_at_a_time() -> None:
    """Nothing is encoded, so span_frames (24 by default) says nothing of what leaves together."""
    policy = CachePolicy.of(QVGConfig(codec="none", window_frames=24), chunk_frames=1, tokens_per_frame=64)
    assert [_run(policy, chunks)[0].frames for chunks in (22, 23, 24, 30)] == [22, 23, 23, 23]


def test_spans_are_cut_to_what_the_window_leaves() -> None:
    """The defaults in the window of Self-Forcing: 21 frames, chunks of 3, spans of 24."""
    policy = CachePolicy.of(QVGConfig(window_frames=21), chunk_frames=3, tokens_per_frame=1560)
    assert policy.span_frames == 12
    assert _run(policy, 30)[0].spans


@given(
    sink=st.integers(0, 5),
    recent=st.integers(0, 9),
    span=st.integers(1, 12),
    chunk=st.integers(1, 4),
    extra=st.none() | st.integers(0, 20),
    chunks=st.integers(0, 60),
)
def test_what_always_holds(sink: int, recent: int, span: int, chunk: int, extra: int | None, chunks: int) -> None:
    whole = [-(-frames // chunk) * chunk for frames in (sink, recent)]
    window = None if extra is None else sum(whole) + chunk + extra
    policy = CachePolicy(sink, recent, span, window, chunk)
    layout, encodes, evicted = _run(policy, chunks)
    assert layout.frames + evicted == chunks * chunk
    assert sum(layout.sink) == min(whole[0], chunks * chunk)
    assert all(frames == policy.span_chunks * chunk for frames in layout.spans) and len(layout.spans) <= encodes
    if layout.spans:
        assert sum(layout.tail) >= recent
    assert sum(layout.tail) < recent + policy.span_chunks * chunk + chunk
    if window is not None:
        assert layout.frames + chunk <= window


@pytest.mark.parametrize(
    ("tokens_per_frame", "chunk_frames", "span_frames"), [(64, 1, 16), (1560, 3, 3), (880, 4, 4), (1024, 1, 1)]
)
def test_auto_spans_hold_1024_tokens_or_one_chunk(tokens_per_frame: int, chunk_frames: int, span_frames: int) -> None:
    policy = CachePolicy.of(QVGConfig(span_frames="auto"), chunk_frames, tokens_per_frame)
    assert policy.span_chunks * chunk_frames == span_frames
