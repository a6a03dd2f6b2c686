"""benchmarks/evaluation_set: what is in it can be used, and makes plans that are read."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from comfyui_qvg.qvg.errors import ConfigError
from comfyui_qvg.qvg.harness.comfyui_target import ComfyUITarget
from comfyui_qvg.qvg.harness.plan import load_plan
from comfyui_qvg.qvg.harness.work import check

from ...helpers import ROOT

pytest.importorskip("tomllib", reason="plans in TOML need Python 3.11")
FOLDER = ROOT / "benchmarks" / "evaluation_set"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"evaluation_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def make(tmp_path: Path, *arguments: str) -> Path:
    out = tmp_path / "plan.toml"
    subprocess.run([sys.executable, str(FOLDER / "make_plan.py"), *arguments, "--out", str(out)], check=True, capture_output=True)
    return out


def test_walks_can_be_walked(tmp_path: Path) -> None:
    plan = load_plan(str(make(tmp_path, "walks", "--frames", "40")))
    check(plan)
    assert len(plan.cases()) == 8 * 3


@pytest.mark.parametrize(("what", "count"), [("short", 24), ("stories", 8)])
def test_prompts_go_through_a_workflow(tmp_path: Path, what: str, count: int) -> None:
    workflow = ROOT / "workflows" / "api" / "self_forcing_t2v.json"
    inputs = ("--prompt-input", "CLIPTextEncode.text", "--seed-input", "RandomNoise.noise_seed")
    plan = load_plan(str(make(tmp_path, what, "--workflow", str(workflow), *inputs)))
    check(plan)
    assert len(plan.targets[0].prompts) == count == len(set(plan.targets[0].prompts))


def test_start_pictures_are_painted_and_go_to_the_server(tmp_path: Path) -> None:
    workflow = ROOT / "workflows" / "api" / "causal_forcing_i2v.json"
    inputs = ("--prompt-input", "3.text", "--seed-input", "RandomNoise.noise_seed", "--size", "208", "120")
    plan = load_plan(str(make(tmp_path, "pictures", "--workflow", str(workflow), *inputs, "--picture-input", "LoadImage.image")))
    check(plan)
    names = list(module("pictures").SCENES)
    assert [target.name for target in plan.targets] == names and len(plan.cases()) == 8 * 3
    shown = set()
    for target in plan.targets:
        prompt = ComfyUITarget(target.options, target.name).prompt(plan.cases()[0][0], None)
        shown |= {step["inputs"]["image"] for step in prompt.values() if step["class_type"] == "LoadImage"}
    assert len(shown) == 8 and all(name.startswith("qvg-study-") for name in shown)
    options = dict(plan.targets[0].options)
    for changed, said in (({"picture": "none.png"}, "cannot be read"), ({"picture_input": None}, "has one of picture and")):
        with pytest.raises(ConfigError, match=said):
            ComfyUITarget(options | changed, "x")


def test_pictures_are_the_same_every_time_and_differ() -> None:
    pictures = module("pictures")
    painted = {name: pictures.paint(name, 208, 120) for name in pictures.SCENES}
    assert len(painted) == 8 and all(each.shape == (120, 208, 3) and each.std() > 15 for each in painted.values())
    again = pictures.paint("city", 208, 120)
    assert np.array_equal(again, painted["city"])
    names = list(painted)
    assert all(not np.array_equal(painted[a], painted[b]) for i, a in enumerate(names) for b in names[:i])
