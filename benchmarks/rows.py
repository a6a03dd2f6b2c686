"""Rows of results: one JSON object per line, each with the conditions under which it was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comfyui_qvg.qvg.bench.gpu.timing import conditions, median_ms, peak_bytes

__all__ = ["RESULTS", "conditions", "median_ms", "peak_bytes", "report"]

RESULTS = Path(__file__).with_name("results")


def report(name: str, row: dict[str, Any], save: bool) -> None:
    """Print a row, and with `save` append it to `results/<name>.jsonl`."""
    line = json.dumps(row)
    print(line, flush=True)
    if not save:
        return
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
