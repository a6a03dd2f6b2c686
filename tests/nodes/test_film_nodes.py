"""The demo film's nodes, as far as they need no ComfyUI."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import ConfigError
from comfyui_qvg.qvg.models.demo_film.directions import DIRECTIONS, text_rows
from comfyui_qvg.qvg.sampling import place_blocks


@pytest.fixture
def film(nodes: Any) -> Any:
    return importlib.import_module("comfyui_qvg.nodes.film")


def test_the_menu_has_every_prompt_of_the_film(film: Any) -> None:
    prompt, following = film.QVGFilmPrompt.define_schema().inputs
    names = [direction.text for direction in DIRECTIONS]
    assert prompt.options["options"] == names == following.options["options"]
    for index, name in enumerate(names):
        first, second = film.QVGFilmPrompt.execute(name, names[-1 - index]).args
        for conditioning, at in ((first, index), (second, -1 - index)):
            ((tensor, entry),) = conditioning
            # ComfyUI's network adds no padding, which the film was trained with.
            assert tensor.shape == (1, 8, 64) and entry == {} and not tensor[0, 4:].any()
            assert torch.equal(tensor[0, :4], text_rows()[at])


def test_a_film_is_longer_than_its_beginning(film: Any) -> None:
    with pytest.raises(
        ConfigError, match="frames is 36, but 36 are given and at least one block must be generated; use 39 or more"
    ):
        film.QVGFilmStart.execute(None, None, "turn right, day", 1, 36, 36)


def test_prompt_at_frame_counts_pictures_where_a_latent_frame_is_one(nodes: Any) -> None:
    prompts = importlib.import_module("comfyui_qvg.nodes.prompts")
    places = place_blocks(60, 36, 3)
    entries = [{"qvg_from_frame": 0}, {"qvg_from_frame": 48}]
    (_, start) = prompts.prompt_starts(entries, places, 1)
    assert (start.block, places[start.block].first_frame) == (16, 48)
    with pytest.raises(ConfigError, match="the video ends with frame 59"):
        prompts.prompt_starts([{"qvg_from_frame": 0}, {"qvg_from_frame": 60}], places, 1)
