"""The benchmark programs run: dry, with tiny shapes, on this machine. Their numbers are not looked at."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import PRESETS, KVCache
from comfyui_qvg.qvg.models.common.world_schedule import MODES

from .helpers import ROOT


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [sys.executable, str(ROOT / "benchmarks" / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_codec_rows_name_their_conditions() -> None:
    done = _run("codec.py", "--tiny")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {row["what"] for row in rows} == {"copy", "decode", "decode and rotate", "assign", "update", "encode"}
    for row in rows:
        assert row["ms"] > 0
        assert {"date", "device", "torch", "triton", "shape", "tokens", "repetitions"} <= set(row)
    assert {row["codec"] for row in rows if row["what"] == "encode"} == {"qvg", "qvg-pro", "balanced", "near-exact"}
    assert all(row["error"] <= 6e-3 for row in rows if row["what"] == "decode")


def test_attention_rows_name_the_way_that_ran_and_a_rehearsal_is_not_kept() -> None:
    kept = ROOT / "benchmarks" / "results" / "attention.jsonl"
    before = kept.read_bytes() if kept.exists() else None
    done = _run("attention.py", "--tiny", "--only", "few")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    ways: dict[str, list[str]] = {}
    for row in rows:
        ways.setdefault(row["preset"], []).append(row["way"])
        assert row["ms"] > 0 and row["attention"] and row["rehearsal"] and row["frames"] == 27
        assert {"date", "device", "versions", "cache_bytes", "predicted_ms"} <= set(row)
        assert row["way"] == "bf16" or row["relative_error"] <= (4e-2 if row["way"] == "fast" else 1e-2)
    plain = ["bf16", "exact", "fast", "direct"]
    assert ways == {"qvg": [*plain, "official"], "balanced": plain}
    assert (kept.read_bytes() if kept.exists() else None) == before


def test_wan_rows_compare_every_preset_with_exact() -> None:
    done = _run("wan.py", "--tiny")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    runs = {row["preset"]: row for row in rows if row["what"] == "run"}
    assert set(runs) == set(PRESETS) and all("failed" not in row for row in runs.values())
    for name, row in runs.items():
        assert set(row["seconds_per_block"]) == set(row["overhead_percent"]) == {"1", "20"}
        assert row["rehearsal"] and {"date", "device", "versions", "peak_bytes"} <= set(row)
        assert (row["spans"] > 0 and row["encode_ms"] > 0 and row["ratio_to_16_bits"] > 2) or name == "exact"
    (prompt,) = (row for row in rows if row["what"] == "prompt")
    assert (prompt["padded_rows"], prompt["merged_rows"]) == (512, 8) and prompt["relative_error"] < 1e-4


def test_wan_quality_is_written_as_a_table(tmp_path: Path) -> None:
    table = tmp_path / "wan.csv"
    done = _run("wan.py", "--quality", "--frames", "36", "--seeds", "1", "--presets", "exact", "balanced", "--table", str(table))
    assert done.returncode == 0, done.stderr
    exact, sixteen, balanced = csv.DictReader(table.read_text().splitlines())
    assert exact["psnr_db"] == "" and (sixteen["preset"], balanced["preset"]) == ("exact, 16 bits", "balanced")
    assert 30 < float(balanced["psnr_db"]) < float(sixteen["psnr_db"]) - 3


def test_offload_rows_say_what_is_where_and_what_it_costs() -> None:
    done = _run("offload.py", "--tiny")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(row["preset"], row["way"]) for row in rows] == [
        (name, way) for name in ("qvg", "balanced") for way in ("gpu", "cpu")
    ]
    for here, away in zip(rows[::2], rows[1::2], strict=True):
        assert here["rehearsal"] and min(here["ms"], away["ms"], away["copy_ms"]) > 0 and away["gb_per_s"] > 0
        assert here["device_bytes"] == away["device_bytes"] + away["home_bytes"] and not here["home_bytes"]
        assert 3 * away["copied_bytes"] == away["home_bytes"] and 2 * away["copied_bytes"] == away["visiting_bytes"]
        assert {"date", "device", "versions", "shape", "peak_bytes", "ratio"} <= set(away)


def test_cache_bytes_are_counted_and_a_rehearsal_is_not_kept() -> None:
    kept = ROOT / "benchmarks" / "results" / "cache_bytes.csv"
    before = kept.read_bytes()
    done = _run("cache_bytes.py", "--tiny", "--heads", "2", "--presets", "exact,balanced")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["exact", "exact", "balanced", "balanced"]
    refused = _run("cache_bytes.py", "--tiny", "--save")
    assert refused.returncode == 2 and "--tiny is a dry run" in refused.stderr
    assert kept.read_bytes() == before


def test_world_rows_compare_the_modes() -> None:
    done = _run("world.py", "--tiny")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    cases = [(mode, preset, chunk) for mode in MODES for preset in ("exact", "qvg") for chunk in (2, 12)]
    assert [(row["mode"], row["preset"], row["chunk"]) for row in rows] == cases
    for row in rows:
        assert "failed" not in row and row["rehearsal"] and row["context_frames"] == 4 * (row["chunk"] - 1)
        assert row["context_seconds"] > 0 and row["denoise_seconds"] > 0


def test_world_bytes_and_operations() -> None:
    """Exact bytes are the arithmetic of the shapes; ours at two bits is half of the official layout's."""
    done = _run("world.py", "--bytes", "--predict-only")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = {
        tuple(row[name] for name in ("variant", "frames", "layout", "settings", "mode")): row for row in rows if "mib" in row
    }
    for variant, frames, mib in (("5B", 48, 29_700), ("5B", 16, 9_900), ("8B", 20, 26_325)):
        assert found[variant, frames, "vendor", "exact", "persistent"]["mib"] == mib
        assert found[variant, frames, "once", "exact", "persistent"]["mib"] == mib / 2
    assert found["5B", 48, "vendor", "published, 2 bit", "persistent"]["mib"] == pytest.approx(5083, abs=1)
    assert found["5B", 48, "once", "published, 2 bit", "persistent"]["mib"] == pytest.approx(2570, abs=1)
    assert found["8B", 20, "once", "published, 2 bit", "vendor"]["mib"] == pytest.approx(1908, abs=1)
    (last,) = (row for row in rows if row["what"] == "work" and (row["mode"], row["chunk"]) == ("incremental", 12))
    assert last["times_less_than_vendor"] > 2.5


def test_a_way_that_is_wrong_gets_no_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One way with keys that are not turned, one with NaN: no rows of theirs, the others' rows, exit code 1."""
    program = importlib.import_module("comfyui_qvg.benchmarks.attention")
    monkeypatch.setattr(program, "rotate", lambda keys, turn: keys)
    attend = KVCache.attend

    def spoiled(cache: KVCache, *arguments: Any, **options: Any) -> torch.Tensor:
        out = attend(cache, *arguments, **options)
        return out * torch.nan if cache.config.read == "direct" else out

    monkeypatch.setattr(KVCache, "attend", spoiled)
    assert program.main(["--tiny", "--only", "few", "--presets", "qvg"]) == 1
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["way"] for row in rows] == ["bf16", "exact", "fast"]
    assert "wrong: tiny, few queries, qvg, 27 frames, official, restated in torch: off by" in printed.err
    assert "27 frames, direct, direct (asked for), attention by torch" in printed.err and "off by nan" in printed.err


@pytest.mark.parametrize("program", ["codec.py", "attention.py", "offload.py", "wan.py", "world.py"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="refusals of a machine without a GPU")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [((), "there is no GPU here; --tiny is a dry run"), (("--tiny", "--save"), "--save keeps measurements of a GPU")],
    ids=["full_size", "save"],
)
def test_a_machine_without_a_gpu_measures_nothing(program: str, arguments: tuple[str, ...], says: str) -> None:
    done = _run(program, *arguments)
    assert done.returncode == 2 and says in done.stderr
    assert not done.stdout
