"""`qvg check-gpu`: refuses without a GPU, rehearses on any machine, and writes nothing where a result is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import KVCache
from comfyui_qvg.qvg.bench.gpu.command import PAGE, ROW, check_gpu
from comfyui_qvg.qvg.bench.gpu.correctness import Checked, configurations, relative_error
from comfyui_qvg.qvg.cli import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusal of a machine without a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-gpu", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: torch sees no GPU here") and printed.err.count("\n") == 1 and not printed.out
    assert not (tmp_path / "out").exists()


def test_a_rehearsal_writes_one_row_and_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-gpu", "--rehearse", "--out", str(tmp_path)]) == 0
    (line,) = (tmp_path / ROW).read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    assert row["rehearsal"] and row["check"] == 1 and {"device", "system", "date", "versions", "seconds"} <= row.keys()
    assert all(one["error"] <= one["allowed"] for one in row["checks"])
    names = [one["name"] for one in row["checks"]]
    for preset in ("balanced", "qvg"):
        assert {f"{preset}: encoded", f"{preset}: decoded keys", f"{preset}: decoded values"} <= set(names)
        for read in ("exact", "direct", "fast"):
            assert {f"{preset}: read {read}", f"{preset}: read {read}, by cameras"} <= set(names)
        ways = [one["way"] for one in row["attention"] if one["preset"] == preset]
        assert ways == ["bf16", "exact", "fast", "direct"]
    assert all(one["ms"] > 0 and "predicted_ms" in one and "wrong" not in one for one in row["attention"])
    assert [one["what"] for one in row["coding"]] == ["copy", "encode", "decode", "encode", "decode"]
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "A rehearsal" in text and "Send us this row" in text and "balanced: read fast, by cameras" in text
    assert "Send us this row" in capsys.readouterr().out


def test_a_wrong_result_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = KVCache.attend

    def spoiled(cache: KVCache, *arguments: Any, **options: Any) -> torch.Tensor:
        return attend(cache, *arguments, **options) * (1.05 if cache.config.read == "fast" else 1)

    monkeypatch.setattr(KVCache, "attend", spoiled)
    said: list[str] = []
    assert check_gpu(tmp_path / "out", rehearse=True, say=said.append) == 1
    assert any(line.startswith("wrong: balanced: read fast: WRONG, off by 5") for line in said)
    assert "no row is written" in said[-1] and not (tmp_path / "out").exists()


def test_nan_is_wrong_and_every_preset_is_tried() -> None:
    assert not Checked("x", float("nan"), 1.0).is_right and Checked("x", 0.5, 1.0).is_right
    assert relative_error(torch.full((2,), torch.nan), torch.ones(2)) != 0
    codecs = {name: config.codec for name, config in configurations().items()}
    assert {"exact", "qvg", "qvg-pro", "fewest-bytes", "balanced", "near-exact"} <= codecs.keys()
