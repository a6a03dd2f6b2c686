"""The study's own table of methods (arXiv 2603.27469 publishes it; it is not in our repository), as a set beside ours."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, shown
from .metrics import cautions

# Its columns, and what they are here. GiB and seconds per prompt are its own.
COLUMNS = {
    "compression_ratio": "compression",
    "peak_vram_gb": "peak",
    "peak_compressed_kv_gb": "cache",
    "avg_runtime_s_per_prompt": "runtime",
    "imaging_quality": "imaging",
    "drift_last_imaging_quality": "drift",
    "psnr": "psnr",
    "ssim": "ssim",
    "lpips": "lpips",
}
_NEEDED = ("method", "ssim")
_MB = 2**30 / 1e6
MOST_BYTES = 32 << 20


def read_published(path: Path) -> dict[str, Any]:
    """A set of methods as `page_data` makes ours. ConfigError for a file that is not such a table."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path} has more than {MOST_BYTES >> 20} MiB, which no table of methods has; give the study's CSV")
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give the study's CSV of methods") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is no CSV ({error}); give the study's CSV of methods") from None
    if not rows or any(name not in rows[0] for name in _NEEDED):
        raise ConfigError(f"{path} has no columns {' and '.join(_NEEDED)}; give the study's CSV of methods")
    methods = [_method(row) for row in rows]
    exact: dict[str, float | None] = next((each["values"] for each in methods if each["name"].upper() == "BF16"), {})
    for each in methods:
        each["cautions"] = [*cautions(each["values"], exact, 0), *each["cautions"]]
    return {
        "id": f"published:{path.name}",
        "name": f"published: {shown(path.stem, 60)}",
        "published": True,
        "about": "The study's numbers as it gives them, of its own model and machine: its PSNR and SSIM compare lossy videos, "
        "its drift is VBench's imaging quality, its memory is the whole card's. Not to be compared with ours cell by cell.",
        "exact": next((each["name"] for each in methods if each["name"].upper() == "BF16"), ""),
        "baseline": "",
        "cases": [],
        "units": {"runtime": "seconds a prompt", "peak": "peak VRAM, MB", "drift": "imaging quality, last prefix"},
        "missing": {},
        "methods": methods,
    }


def _method(row: Mapping[str, str]) -> dict[str, Any]:
    values = {ours: _number(row.get(theirs)) for theirs, ours in COLUMNS.items()}
    for key in ("peak", "cache"):
        if (value := values[key]) is not None:
            values[key] = round(value * _MB, 1)
    notes = ["its PSNR is infinite: one frame was the same"] if row.get("psnr") == "inf" and row["method"] != "BF16" else []
    return {
        "name": shown(row["method"], 80),
        "family": shown(row.get("method_family") or "", 40),
        "form": "published",
        "cases": int(_number(row.get("prompt_count")) or 0),
        "values": values,
        "low": {},
        "high": {},
        "cautions": notes,
        "remarks": [],
        "rows": [],
    }


def _number(text: str | None) -> float | None:
    """None for what is no number, or infinite."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
