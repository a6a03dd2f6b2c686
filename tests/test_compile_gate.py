"""The compile gate: a real compile through it, what it must refuse, and a compiler that crashes or hangs."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from comfyui_qvg.kernels.compile_case import Tile

from .helpers import ROOT
from .triton_interpreter import why_not

PROGRAM = ROOT / "tools" / "compile_gate.py"


@pytest.fixture
def gate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_gate", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compile_gate"] = module
    spec.loader.exec_module(module)
    return module


def _pair(gate: ModuleType, target: str = "sm_90", tensor_cores: bool = True, default: bool = True) -> Any:
    return gate.Pair(
        "op", SimpleNamespace(name="case", tensor_cores=tensor_cores, default=default, warps=4, tile=Tile(64)), target
    )


BUDGET = {"registers": 100, "shared": 4096, "spills": 0, "instructions": 500}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ((100, 4096, 0, 500, "HGMMA"), []),
        ((90, 1024, 0, 400, "HGMMA"), []),
        ((101, 4096, 0, 500, "HGMMA"), ["registers 101, allowed 100"]),
        ((100, 4096, 8, 500, "HGMMA"), ["spills 8, allowed 0"]),
        ((100, 4097, 0, 500, "HGMMA"), ["shared 4097, allowed 4096"]),
        ((100, 4096, 0, 501, "HGMMA"), ["instructions 501, allowed 500"]),
        ((100, 4096, 0, 500, ""), ["no matrix instructions"]),
    ],
    ids=["at_its_budget", "below", "registers", "spills", "shared", "instructions", "no_matrix_instructions"],
)
def test_budgets_are_held(gate: ModuleType, found: tuple[Any, ...], says: list[str]) -> None:
    assert gate.judge(_pair(gate), gate.Measured(*found), BUDGET) == says


def test_instructions_are_held_where_ci_counts_them(gate: ModuleType) -> None:
    many, without = gate.Measured(100, 4096, 0, 501, "HGMMA"), {name: BUDGET[name] for name in ("registers", "shared", "spills")}
    assert gate.judge(_pair(gate), many, without) == ["no budget for instructions; run with --freeze and read the diff"]
    assert gate.judge(_pair(gate, "sm_100"), many, without) == gate.judge(_pair(gate, default=False), many, without) == []


def test_a_pair_without_a_budget_and_a_card_without_room(gate: ModuleType) -> None:
    small = gate.Measured(100, 4096, 0, 500, "HMMA")
    assert "no budget" in gate.judge(_pair(gate), small, None)[0]
    large = gate.Measured(100, 110_000, 0, 500, "HMMA")
    assert "do not fit the card's 101376" in gate.judge(_pair(gate, "sm_86"), large, large._asdict())[0]
    assert gate.judge(_pair(gate, "sm_90"), large, large._asdict()) == []


def test_freezing_reads_back_and_keeps_other_pairs(gate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BUDGETS", tmp_path)
    gate.freeze([(_pair(gate), gate.Measured(1, 2, 3, 4, "HGMMA"))])
    gate.freeze([(_pair(gate, "sm_86"), gate.Measured(5, 6, 7, 8, "HMMA"))])
    expected = {
        "sm_90": {"registers": 1, "shared": 2, "spills": 3, "instructions": 4, "per_value": 8.0},
        "sm_86": {"registers": 5, "shared": 6, "spills": 7, "instructions": 8, "per_value": 16.0},
    }
    assert gate.read_budgets(["op"]) == {"op/case": expected}


def test_a_budget_without_a_kernel_is_found(gate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "all_cases", lambda: [("op", _pair(gate).case)])
    budgets = {"op/case": {"sm_90": BUDGET, "sm_86": BUDGET}, "op/gone": {"sm_90": BUDGET}}
    found = gate._stale(budgets, [_pair(gate)], complete=False)
    assert found == ["op/case sm_86: a budget without a kernel", "op/gone sm_90: a budget without a kernel"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="compiles are forked, and this system cannot")
def test_a_compiler_that_crashes_raises_or_hangs_is_one_pairs_matter(gate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_pair(pair: Any) -> Any:
        if pair.target == "sm_80":
            os.kill(os.getpid(), signal.SIGKILL)
        if pair.target == "sm_86":
            raise ValueError("an error\nof two lines")
        if pair.target == "sm_89":
            time.sleep(600)
        return gate.Measured(1, 2, 0, 3, "HGMMA")

    monkeypatch.setattr(gate, "compile_pair", compile_pair)
    monkeypatch.setattr(gate, "TIMEOUT_SECONDS", 2)
    pairs = [_pair(gate, target) for target in ("sm_80", "sm_86", "sm_89", "sm_90")]
    results = {pair.target: found for pair, found, _ in gate.measure_all(pairs, jobs=2)}
    assert results["sm_90"] == gate.Measured(1, 2, 0, 3, "HGMMA")
    assert results["sm_80"] == "the compiler crashed (exit code -9)"
    assert results["sm_86"] == "ValueError: an error | of two lines"
    assert results["sm_89"] == "not done after 2 s"


def test_one_kernel_for_two_cards() -> None:
    """The program itself, as CI starts it, on its smallest case; the whole set is CI's step `compile`."""
    if reason := why_not():
        pytest.skip(reason)
    command = [sys.executable, str(PROGRAM), "--only", "kmeans/subtract", "--targets", "sm_90", "gfx942"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 pairs of kernel and card: 2 compiled" in done.stdout


def test_every_budget_file_is_an_ops() -> None:
    for file in (ROOT / "tools" / "compile_budgets").glob("*.json"):
        assert (ROOT / "kernels" / file.stem / "triton_kernel.py").is_file(), file.name
        assert json.loads(file.read_text(encoding="utf-8"))
