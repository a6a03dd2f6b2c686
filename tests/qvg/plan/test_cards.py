"""`qvg cards`: cells are what `qvg plan` says of the same card, and grow where more is there."""

from __future__ import annotations

import json

import pytest
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.config import PRESETS
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.plan import Video, Weights, plan
from comfyui_qvg.qvg.plan.cards import CARDS_GB, Asked, cards_table, longest_videos, usable_bytes

MODEL = "self-forcing-1.3b"


@pytest.mark.parametrize("preset", ["exact", "balanced"])
def test_a_cell_is_what_the_plan_says(preset: str) -> None:
    cell = longest_videos(Asked([MODEL], [24], ["fp8"], ["nothing"], [preset]))[0]
    assert cell.pictures
    for pictures, fits in ((cell.pictures, True), (cell.pictures + 12, False)):
        found = plan(networks()[MODEL], Video(832, 480, pictures), PRESETS[preset], weights=Weights("fp8"), triton=False)
        assert (found.sampling_bytes <= usable_bytes(24)) is fits


def test_more_room_is_never_a_shorter_video() -> None:
    cells = longest_videos(Asked(["krea-14b"]))
    found = {cell[1:5]: 10**9 if cell.pictures is None else cell.pictures for cell in cells}
    for (card, weights, waiting, preset), pictures in found.items():
        larger = [other for other in CARDS_GB if other > card]
        assert all(found[other, weights, waiting, preset] >= pictures for other in larger[:1])
        assert found[card, "fp8", waiting, preset] >= found[card, "bf16", waiting, preset]
        assert found[card, weights, "weights and memory", preset] >= found[card, weights, "weights", preset]
        assert found[card, weights, "weights", preset] >= found[card, weights, "nothing", preset]


def test_something_is_left_for_driver_and_fragments() -> None:
    assert 23.5e9 < usable_bytes(24) < 24 * 2**30 - 10**9
    assert 7e9 < usable_bytes(8) < 7.6e9


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cards", "--model", MODEL, "--gb", "12", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)
    assert len(cells) == 18 and {cell["model"] for cell in cells} == {MODEL}
    assert main(["cards", "--model", MODEL, "--gb", "12"]) == 0
    shown = capsys.readouterr().out
    table = cards_table(longest_videos(Asked([MODEL], [12])))
    assert table in shown and "| 12 GB |" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "sora"], "there is no model 'sora' to plan for; choose from self-forcing-1.3b"),
        (["--gb", "0"], "--gb is 0, but must be"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cards", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
