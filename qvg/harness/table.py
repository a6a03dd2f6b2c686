"""methods.csv: what the page says of every method, a line for each set and method."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MediaError
from ..files import written_whole
from .metrics import METRICS

AGAINST = ("mean", "low", "high", "better", "worse", "chance")


def rows_of(sets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of `page_data.sets_of`; what was not measured is empty. `over_*`: PSNR of all generated frames over the baseline's, paired.
    `cache_peak`: of the cache alone, in MB, where `peak` has attention's workspace in it.
    `psnr_by_case`: in the plan's order of cases, so that any two methods can be paired."""
    return [
        {
            "set": each["name"],
            "method": method["name"],
            "family": method["family"],
            "form": method["form"],
            "cases": method["cases"],
            **{metric.key: method["values"].get(metric.key) for metric in METRICS},
            "cache_peak": method["cache_peak"],
            "baseline": each["baseline"],
            "psnr_by_case": " ".join(str(method["psnr_by_case"].get(number, "nan")) for number in range(len(each["cases"]))),
            **{f"over_{name}": (method["against"] or {}).get(name) for name in AGAINST},
        }
        for each in sets
        for method in each["methods"]
    ]


def write_table(sets: Sequence[dict[str, Any]], path: Path) -> None:
    """The file appears whole or not at all. MediaError."""
    rows = rows_of(sets)
    try:
        with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise MediaError(f"{path} cannot be written ({error.strerror}); free space, or choose another --out") from None
