"""The README's Python examples run, and its commands and pictures exist."""

from __future__ import annotations

import csv
import re
import runpy
from pathlib import Path

import pytest
from comfyui_qvg.qvg.bench.settings import settings_table
from comfyui_qvg.qvg.models.table import models_table

from .helpers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = EXAMPLES[number]
    assert len([line for line in source.splitlines() if line.strip() and not line.startswith("#")]) <= 14
    example = tmp_path / "example.py"
    example.write_text(source, encoding="utf-8")
    runpy.run_path(str(example))
    assert capsys.readouterr().out.strip(), "an example shows what it does"


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README) + re.findall(r'src="(?!https?:)([^"]+)"', README)
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_the_two_commands_are_there() -> None:
    for command in ("python install.py --demo", "python install.py --test"):
        assert command in README


def test_the_table_of_models_is_the_registry_s() -> None:
    assert models_table() in README


def test_the_table_of_settings_is_the_measured_one() -> None:
    with (ROOT / "benchmarks" / "results" / "codecs_presets.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert settings_table(rows) in README


def test_the_table_of_cache_bytes_is_the_counted_one() -> None:
    with (ROOT / "benchmarks" / "results" / "cache_bytes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for preset in {row["preset"] for row in rows}:
        cells = [
            f"{int(row['counted_end_bytes']) / 1e9:.2f} / {int(row['counted_peak_bytes']) / 1e9:.2f}"
            for row in sorted(rows, key=lambda row: int(row["frames"]))
            if row["preset"] == preset
        ]
        name = "`exact`, 16 bits" if preset == "exact" else f"`{preset}`"
        assert f"| {name} | {' | '.join(cells)} |" in README
