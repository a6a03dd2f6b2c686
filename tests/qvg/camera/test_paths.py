"""The camera path grammar, walks in the demo world, and visits to the same place."""

from __future__ import annotations

import numpy as np
import pytest
from comfyui_qvg.qvg.camera.paths import KEYS, MAX_PATH_FRAMES, Move, format_path, parse_path, visits, walk
from comfyui_qvg.qvg.errors import CameraPathError, ConfigError
from hypothesis import given
from hypothesis import strategies as st

LOOP = "d-12,s-10,a-12,w-10"


@st.composite
def moves(draw):
    """Moves without opposite keys."""
    axes = draw(st.lists(st.sampled_from([("w", "s"), ("a", "d"), ("up", "down"), ("left", "right")]), min_size=1, unique=True))
    return Move(tuple(draw(st.sampled_from(axis)) for axis in axes), draw(st.integers(1, 999)))


@given(st.lists(moves(), min_size=1, max_size=20))
def test_round_trip(path):
    text = format_path(path)
    assert parse_path(text) == tuple(path)
    assert format_path(parse_path(text)) == text


@given(st.text(alphabet="wasdupleftrighn+-,0123456789. ", max_size=30))
def test_any_text_parses_or_is_refused_in_one_sentence(text):
    try:
        path = parse_path(text)
    except CameraPathError as error:
        assert "\n" not in str(error) and "d-12,s-10" in str(error)
    else:
        assert parse_path(format_path(path)) == path


def test_keys_are_kept_in_one_order():
    assert parse_path("right+w-4") == (Move(("w", "right"), 4),)
    assert format_path(parse_path(" D + w - 08 ,\tRIGHT-4 \n")) == "w+d-8,right-4"
    assert Move(("d", "w"), 3) == Move(("w", "d"), 3)
    assert format_path(parse_path(",".join(f"{key}-1" for key in KEYS))) == "w-1,a-1,s-1,d-1,up-1,down-1,left-1,right-1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("d-3,,s-2", "part 2 of the camera path, '', is empty"),
        ("d-3,s-2,", "part 3 of the camera path, '', is empty"),
        (",d-3", "part 1"),
        ("d-3,q-2", "part 2 of the camera path, 'q-2', has the unknown key 'q'"),
        ("wd-3", "unknown key 'wd'"),
        ("d 3", "unknown key 'd 3'"),
        ("d", "no duration"),
        ("d-", "no duration"),
        ("-3", "lacks a key"),
        ("w+-3", "lacks a key"),
        ("d-1.5", "'1.5', which is not a whole number"),
        ("d-3.0", "not a whole number"),
        ("d-1e2", "not a whole number"),
        ("d-1_0", "not a whole number"),
        ("d-٣", "not a whole number"),
        ("d-3 s-2", "not a whole number"),
        ("d-0", "duration of 0"),
        ("d--3", "negative duration '-3'"),
        ("w+w-3", "key w twice"),
        ("w+s-3", "opposite keys w and s"),
        ("d+a-3", "opposite keys a and d"),
        ("up+w+down-3", "opposite keys up and down"),
        ("left+right-3", "opposite keys left and right"),
        (f"d-{MAX_PATH_FRAMES + 1}", "longer than 100000"),
        ("d-" + "9" * 5000, "longer than 100000"),
        ("d-60000,a-60000", "part 2 of the camera path, 'a-60000', makes the path longer than 100000"),
        (None, "text, not NoneType"),
        (12, "text, not int (12)"),
        (["d-12"], "text, not list"),
    ],
)
def test_bad_paths(text, said):
    with pytest.raises(CameraPathError) as refused:
        parse_path(text)
    message = str(refused.value)
    assert said in message and "'d-12,s-10,w+a-8'" in message
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize(("keys", "frames"), [((), 1), (("w", "s"), 1), (("w",), 0), (("w",), 1.0), (("W",), 1)])
def test_bad_moves(keys, frames):
    with pytest.raises(CameraPathError):
        Move(keys, frames)


def test_the_longest_path():
    assert parse_path(f"d-{MAX_PATH_FRAMES}")[0].frames == MAX_PATH_FRAMES


def test_walk():
    positions = walk(parse_path("d-2,s-1,w+a-2"), 6, start=(5, 7), step=4)
    assert positions.dtype == np.int64
    assert positions.tolist() == [[5, 7], [5, 11], [5, 15], [9, 15], [5, 11], [1, 7]]
    assert walk(parse_path("d-2"), 1).tolist() == [[0, 0]]


def test_a_closed_walk_repeats_itself():
    positions = walk(parse_path(LOOP), 100)
    assert (positions[44:88] == positions[:44]).all()
    assert (positions[88:] == positions[:12]).all()
    assert len(np.unique(positions[:44], axis=0)) == 44


def test_an_open_walk_goes_on():
    assert walk(parse_path("d-2,s-1"), 8)[-1].tolist() == [2, 5]


def test_walk_refuses_what_the_demo_world_does_not_know():
    with pytest.raises(CameraPathError, match="part 2 of the camera path, 'w.right-4', holds right.*only w, a, s and d"):
        walk(parse_path("d-2,w+right-4"), 2)
    with pytest.raises(CameraPathError, match="no moves"):
        walk((), 2)
    with pytest.raises(ConfigError, match="1 or more"):
        walk(parse_path("d-2"), 0)


def test_visits_of_a_loop():
    positions = walk(parse_path(LOOP), 100)
    pairs = visits(positions, min_gap_frames=20)
    assert pairs == [(frame % 44, frame) for frame in range(44, 100)]
    assert visits(positions, min_gap_frames=43) == pairs
    assert visits(positions, min_gap_frames=44) == []


def test_visits_need_an_absence_in_a_row():
    #         0       1       2       3 (still)  4       5       6       7
    places = [(0, 0), (0, 1), (0, 0), (0, 0), (0, 1), (0, 2), (0, 0), (0, 0)]
    assert visits(places, 0) == [(0, 2), (0, 3), (1, 4), (0, 6), (0, 7)]
    assert visits(places, 1) == [(0, 2), (0, 3), (1, 4), (0, 6), (0, 7)]
    assert visits(places, 2) == [(1, 4), (0, 6), (0, 7)]
    assert visits(places, 3) == []


def test_standing_still_is_no_visit():
    assert visits([(1, 1)] * 5, 1) == []
    assert visits([(1, 1)] * 3, 0) == [(0, 1), (0, 2)]


def test_visits_refuse_other_shapes():
    with pytest.raises(ConfigError, match=r"\[5\]"):
        visits(np.zeros(5), 1)
    with pytest.raises(ConfigError, match="-1 is negative"):
        visits([(0, 0)], -1)
