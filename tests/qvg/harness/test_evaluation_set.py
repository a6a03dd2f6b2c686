"""benchmarks/evaluation_set: what is in it can be used, and makes plans that are read."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
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


def test_pictures_are_the_same_every_time_and_differ() -> None:
    pictures = module("pictures")
    painted = {name: pictures.paint(name, 208, 120) for name in pictures.SCENES}
    assert len(painted) == 8 and all(each.shape == (120, 208, 3) and each.std() > 15 for each in painted.values())
    again = pictures.paint("city", 208, 120)
    assert np.array_equal(again, painted["city"])
    names = list(painted)
    assert all(not np.array_equal(painted[a], painted[b]) for i, a in enumerate(names) for b in names[:i])
