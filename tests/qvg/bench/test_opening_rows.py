"""Rows of openings: what is compared with what, what is said of it, and the command that walks them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from comfyui_qvg.qvg.bench.judge import WalkResult
from comfyui_qvg.qvg.bench.methods import REFERENCE
from comfyui_qvg.qvg.bench.opening_rows import OpeningRow, loss_text, opening_row, row_text, summary, write_openings
from comfyui_qvg.qvg.bench.openings import PATHS, Scene
from comfyui_qvg.qvg.cli import main


def _result(scene: Scene, given_error: float, error: float, size: int) -> WalkResult:
    """`error` in the frames that the model made, which are those that count."""
    made = scene.frames - scene.given_frames
    errors = [given_error] * scene.given_frames + [error] * made
    return WalkResult(errors, [1.0] * scene.frames, {"codes": size - 1, "exact": 1}, size, 1024, None, 0.5)


def test_a_row_compares_what_was_made_with_the_references() -> None:
    scene = Scene(3, "black", PATHS[0])
    row = opening_row("balanced", scene, _result(scene, 0.5, 1e-4, 900), _result(scene, 0.9, 1e-3, 1000))
    assert row == ("balanced", "black", 3, pytest.approx(40), pytest.approx(10), 900, 1000, 0.5 * scene.frames)
    assert row_text(row) == f"black     3  balanced                      40.0 dB  gain +10.0  bytes  90.0%  {row.seconds:.0f} s"


def _row(method: str, scenario: str, gain: float, size: int = 900) -> OpeningRow:
    return OpeningRow(method, scenario, 1, 30 + gain, gain, size, 1000, 2.0)


def test_the_summary_says_means_worst_worlds_and_most_bytes() -> None:
    rows = [
        _row("a", "ordinary", 12),
        _row("a", "black", 10, 950),
        _row("a", "black", 4),
        _row("a", "noise", 9),
        _row("b", "cut", 1),
    ]
    lines = summary(rows).splitlines()
    assert [line.split() for line in lines] == [
        ["a", "ordinary", "42.0", "dB", "gain", "+12.0,", "worst", "+12.0", "bytes", "90.0%"],
        ["a", "black", "37.0", "dB", "gain", "+7.0,", "worst", "+4.0", "bytes", "95.0%"],
        ["a", "noise", "39.0", "dB", "gain", "+9.0,", "worst", "+9.0", "bytes", "90.0%"],
        ["a", "openings:", "gain", "+8.0", "on", "average,", "+7.0", "at", "least", "(black);", "ordinary", "+12.0"],
        ["b", "cut", "31.0", "dB", "gain", "+1.0,", "worst", "+1.0", "bytes", "90.0%"],
        ["b", "openings:", "gain", "+1.0", "on", "average,", "+1.0", "at", "least", "(cut)"],
    ]
    assert loss_text({"ordinary": 3.0}) == "only ordinary walks"


def test_rows_are_written_whole(tmp_path: Path) -> None:
    rows = [_row("a", "black", 10 / 3), _row("b", "cut", 1)]
    write_openings(rows, tmp_path / "openings.csv")
    with (tmp_path / "openings.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "method": "a",
        "scenario": "black",
        "seed": "1",
        "psnr_db": "33.333",
        "gain_db": "3.333",
        "bytes": "900",
        "reference_bytes": "1000",
        "seconds": "2.0",
    }
    assert second["method"] == "b" and [path.name for path in tmp_path.iterdir()] == ["openings.csv"]


def test_the_command_walks_an_opening_and_goes_on_where_it_was_broken_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "codecs", "--out", str(tmp_path), "--parts", "openings", "--scenarios", "black", "--worlds", "1"]
    command += ["--methods", f"{REFERENCE};fewest-bytes", "--development"]
    assert main(command) == 0
    said = capsys.readouterr().out
    with (tmp_path / "openings.csv").open(encoding="utf-8", newline="") as file:
        reference, other = csv.DictReader(file)
    assert reference["method"] == REFERENCE and float(reference["gain_db"]) == 0
    assert float(other["gain_db"]) > 5 and int(other["bytes"]) < int(reference["bytes"])
    assert "at least (black)" in said and f"wrote {tmp_path / 'openings.csv'}" in said
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "walks").iterdir()}
    assert main(command) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "walks").iterdir()}
