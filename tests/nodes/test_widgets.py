"""What widgets take, what a conditioning may carry, and pictures of any kind: what needs no ComfyUI."""

from __future__ import annotations

import copy
import importlib
import json
import logging
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import ConfigError

NAN = float("nan")


@pytest.fixture
def widgets(nodes: Any) -> Any:
    return importlib.import_module("comfyui_qvg.nodes.widgets")


@pytest.fixture
def pictures(nodes: Any) -> Any:
    return importlib.import_module("comfyui_qvg.nodes.pictures")


def test_a_rule_travels_with_the_lower_bound(widgets: Any) -> None:
    """As ComfyUI compares and words it; a copy, and JSON, are the plain number."""
    low, fps = widgets.whole(16, 8192, 16)["min"], widgets.number(1.0, 120.0, 1.0)["min"]
    assert [value < low for value in (0, -16, 15, 16, 850, 832, 8192)] == [True, True, True, False, True, False, False]
    assert [value < fps for value in (NAN, 0.5, 1.0, 120.0, float("inf"))] == [True, True, False, False, False]
    assert f"Value 850 smaller than min of {low}" == "Value 850 smaller than min of 16, or no multiple of 16"
    assert f"{fps}" == "1, or no number" and json.dumps([low, fps]) == "[16, 1.0]"
    assert copy.deepcopy(low) > 850 and low == 16 and fps == 1.0
    bits = widgets.number(0.25, 6.0, 0.25, 1 / 16)["min"]
    assert [value < bits for value in (0.25, 1.5, 2.03, 5.9375)] == [False, False, True, False]


def options(widgets: Any, **more: Any) -> dict[str, Any]:
    return {**widgets.whole(16, 8192, 16), "default": 832, **more}


@pytest.mark.parametrize(
    ("kind", "declared", "value", "said"),
    [
        ("INT", {}, 850, "x is 850, but must be a multiple of 16 from 16 to 8192; use 848"),
        ("INT", {}, 832.0, "x is 832.0, but must be a multiple of 16 from 16 to 8192; use 832"),
        ("INT", {}, None, "x is None, but must be a multiple of 16 from 16 to 8192; use 832"),
        ("INT", {"min": 0, "max": 9}, [1], "x is [1], but must be a whole number from 0 to 9; use 832"),
        ("FLOAT", {"min": 1.0, "max": 2.0, "default": 1.5}, NAN, "x is nan, but must be a number from 1 to 2; use 1.5"),
        (
            "FLOAT",
            {"min": 1.0, "max": 2.0},
            10**400,
            "x is 100000000000000000...0000000000000000000, but must be a number from 1",
        ),
        ("STRING", {"default": ""}, 5, "x is 5, but must be a text; connect a node that gives one"),
        ("BOOLEAN", {"default": True}, 1, "x is 1, but must be true or false; use true"),
        ("COMBO", {"options": ["a", "b"]}, "c", "x is 'c', but must be one of a, b; choose one of these"),
        ("COMBO", {"options": [*map(str, range(99))]}, [], "x is [], but must be one of the 99 in its list; choose one"),
    ],
)
def test_one_sentence_about_a_value(widgets: Any, kind: str, declared: dict[str, Any], value: Any, said: str) -> None:
    found = widgets.complaint("x", kind, options(widgets, **declared), value)
    assert found is not None and found.startswith(said)


@pytest.mark.parametrize(
    ("kind", "declared", "value"),
    [("INT", {}, 832), ("FLOAT", {"min": 0.0, "max": 1.0}, 1), ("STRING", {}, ""), ("BOOLEAN", {}, False), ("MODEL", {}, None)],
)
def test_what_is_taken(widgets: Any, kind: str, declared: dict[str, Any], value: Any) -> None:
    assert widgets.complaint("x", kind, options(widgets, **declared), value) is None


def test_widgets_of_a_mode_are_looked_at_too(nodes: Any) -> None:
    node = importlib.import_module("comfyui_qvg.nodes.cache").QVGKVCache
    klt = {"bits_k": 1.5, "bits_v": 2.0, "clusters": 0, "transform": "klt", "spans_per_codebook": 8}
    pairs = {"cache": ("klt", "cache"), **{name: (value, f"cache.{name}") for name, value in klt.items()}}
    assert node.check_lazy_status(model=None, cache=pairs, sink_frames=1) == ["model"]
    for name, value, said in (
        ("bits_k", 2.03, "bits_k is 2.03, but must be a multiple of 0.0625 from 0.25 to 6; use 2"),
        ("clusters", "many", "clusters is 'many', but must be a whole number from 0 to 256; use 0"),
        ("cache", "magic", "cache is 'magic', but must be one of preset, custom, exact, klt"),
    ):
        with pytest.raises(ConfigError, match=f"^{said}"):
            node.check_lazy_status(model=None, cache={**pairs, name: (value, name)})


def test_every_number_of_every_node_refuses_what_is_none(nodes: Any, standin: Any) -> None:
    for node in nodes.NODES:
        for groups in node.INPUT_TYPES().values():
            for name, (kind, declared) in groups.items():
                if kind == "FLOAT":
                    assert declared["min"] > NAN, f"{node.__name__}.{name} is to be declared by `number`"
                if kind in ("INT", "FLOAT"):
                    assert declared["min"] <= declared["default"] <= declared["max"]


@pytest.mark.parametrize(
    ("shape", "left_out"),
    [
        ((1, 4, 6, 1), []),
        ((1, 4, 6, 2), ["image: its alpha is left out"]),
        ((1, 4, 6, 3), []),
        ((3, 4, 6, 4), ["image: its alpha is left out", "image: the first of 3 pictures is taken, 2 left out"]),
        ((4, 6, 3), []),
        ((1, 40, 60), []),
    ],
)
def test_pictures_become_one_in_colour(pictures: Any, shape: tuple[int, ...], left_out: list[str]) -> None:
    picture, said = pictures.first_picture("image", torch.full(shape, 0.5), (96, 64))
    assert picture.shape[0] == 1 and picture.shape[-1] == 3 and bool((picture == 0.5).all()) and said == left_out


@pytest.mark.parametrize("shape", [(4,), (1, 4, 6, 5), (0, 4, 6, 3), (1, 0, 6, 3), (1, 1, 4, 6, 3)])
def test_what_is_no_picture(pictures: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^image is \["):
        pictures.first_picture("image", torch.zeros(shape), (96, 64))
    with pytest.raises(ConfigError, match="^image holds NaN"):
        pictures.first_picture("image", torch.full((1, 4, 6, 3), NAN), (96, 64))


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (64, 64)])
@pytest.mark.parametrize("shape", [(1, 1, 3000, 3), (1, 3000, 1, 3), (1, 1, 1, 3), (1, 2, 3, 3), (1, 999, 2, 3)])
def test_cutting_leaves_something(pictures: Any, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """By ComfyUI's own arithmetic (comfy.utils.common_upscale, crop center)."""
    picture, _ = pictures.first_picture("image", torch.rand(shape), size)
    height, width = picture.shape[1:3]
    aspect, wanted = width / height, size[0] / size[1]
    x = round((width - width * (wanted / aspect)) / 2) if aspect > wanted else 0
    y = round((height - height * (aspect / wanted)) / 2) if aspect < wanted else 0
    assert width - 2 * x >= 1 and height - 2 * y >= 1


def test_a_conditioning_carries_what_is_read(nodes: Any, caplog: pytest.LogCaptureFixture) -> None:
    check = importlib.import_module("comfyui_qvg.nodes.comfy.conditioning").check_conditioning
    plain = {"cross_attn": 1, "model_conds": {}, "uuid": 2, "pooled_output": None, "qvg_cameras": 3, "start_percent": 0.0}
    said = ("causal Wan", "and give a first picture to 'Causal Video Start'")
    with caplog.at_level(logging.WARNING):
        check({"positive": [plain]}, frozenset(), *said)
        check({"positive": [{**plain, "clip_vision_output": 1}]}, frozenset({"clip_vision_output"}), *said)
    assert not caplog.records
    for key in ("concat_latent_image", "clip_vision_output", "reference_latents"):
        with pytest.raises(ConfigError, match=rf"\({key}\), which causal Wan does not read"):
            check({"positive": [plain], "negative": [{**plain, key: 1}]}, frozenset(), *said)
    for more in ({"end_percent": 0.9}, {"start_percent": 0.1}, {"clip_end_percent": 0.5}, {"area": (1, 1, 0, 0)}, {"mask": 1}):
        with pytest.raises(ConfigError, match="^the prompt holds f"):
            check({"positive": [{**plain, **more}]}, frozenset(), *said)
    with caplog.at_level(logging.WARNING):
        check({"positive": [{**plain, "seconds_total": 5}]}, frozenset(), *said)
    assert "does not read this of its conditioning: seconds_total" in caplog.text


def test_room_is_asked_for_before_it_is_taken(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    room = importlib.import_module("comfyui_qvg.nodes.comfy.room")
    monkeypatch.setattr(room, "_main_memory", lambda: 16 * 10**9)
    room.require_room(16 * 10**9, "a latent", "fewer frames")
    with pytest.raises(
        ConfigError, match="^a latent would take 16.8 PB of main memory, and this machine has 16 GB; use fewer frames$"
    ):
        room.require_room(168 * 10**14, "a latent", "fewer frames")


def test_a_latent_is_of_numbers(nodes: Any) -> None:
    room = importlib.import_module("comfyui_qvg.nodes.comfy.room")
    room.require_numbers("the latent", torch.zeros(2, 3))
    for odd in (NAN, float("inf")):
        with pytest.raises(ConfigError, match="^the latent holds NaN or infinity, which no video does; check the node"):
            room.require_numbers("the latent", torch.tensor([0.0, odd]))
