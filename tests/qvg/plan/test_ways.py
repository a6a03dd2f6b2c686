"""What a plan proposes, one change at a time: each is the plan of that change, and its price is said."""

from __future__ import annotations

import json
import re

import pytest
from comfyui_qvg.qvg import PRESETS, QVGConfig
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.plan import Plan, Video, Weights, plan
from comfyui_qvg.qvg.plan.ways import QUALITY_DB, Way, ways

from ...helpers import ROOT

MODEL = networks()["self-forcing-1.3b"]
GB = 10**9


def planned(room: int | None, frames: int, config: QVGConfig, weights: Weights) -> Plan:
    return plan(MODEL, Video(832, 480, frames), config, room, weights, triton=False)


def found(room: int | None, frames: int = 2877, preset: str = "balanced") -> dict[str, Way]:
    return {
        way.change: way
        for way in ways(lambda *args: planned(room, frames, *args), PRESETS[preset], Weights(), 4 / 16, MODEL.chunk_frames)
    }


def test_each_way_is_the_plan_of_that_change() -> None:
    room = 12 * GB
    made = found(room)
    config = PRESETS["balanced"]
    changes = {
        "preset fewest-bytes": (PRESETS["fewest-bytes"], Weights()),
        "offload cpu": (config.with_changes(offload="cpu"), Weights()),
        "weights fp8": (config, Weights("fp8")),
    }
    for change, (changed, weights) in changes.items():
        of_it = planned(room, 2877, changed, weights)
        assert (made[change].peak_bytes, made[change].longest_frames) == (of_it.peak_bytes, of_it.longest_frames)
    (window,) = (int(change.split()[1]) for change in made if change.startswith("window_frames"))
    for frames, fits in ((window, True), (window + MODEL.chunk_frames, False)):
        assert planned(room, 2877, config.with_changes(window_frames=frames), Weights()).fits is fits
    assert f"older than {window / 4:.0f} s" in made[f"window_frames {window}"].costs
    assert "preset balanced" not in made and "copies" in made["offload cpu"].costs


def test_where_it_fits_no_window_is_proposed_and_without_a_card_nothing() -> None:
    assert not any(change.startswith("window") for change in found(24 * GB, 81))
    assert found(None) == {}
    assert "offload cpu" not in found(24 * GB, 81, "exact") and "preset balanced" in found(24 * GB, 81, "exact")


def test_the_decibels_are_those_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `([\w-]+)` \|.*\| ([\d.]+) dB \(", text, re.MULTILINE))
    assert {name: float(said[name]) for name in QUALITY_DB} == QUALITY_DB


def test_the_command_says_them(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--model", "self-forcing-1.3b", "--width", "832", "--height", "480", "--frames", "717", "--vram-gb", "8"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "One change at a time, and its price:" in said and "dB against exact on the demo world" in said
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["ways"]
    assert {way["change"].split()[0] for way in told} == {"preset", "offload", "window_frames", "weights"}
