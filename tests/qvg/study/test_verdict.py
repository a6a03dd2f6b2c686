"""What the menu says of its methods: every one of them, by its row."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from comfyui_qvg.qvg.study import study_method
from comfyui_qvg.qvg.study.bytes import ratio
from comfyui_qvg.qvg.study.shipped import SHIPPED
from comfyui_qvg.qvg.study.verdict import MEASURED, MENU, Measured, by_verdict, verdict, with_bits

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"


def rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_method_of_the_menu_is_there_once() -> None:
    assert tuple(MEASURED) == MENU
    assert sorted(name for names in by_verdict().values() for name in names) == sorted(MENU)
    assert sum(with_bits(names).count(", ") + 1 for names in by_verdict().values()) >= len(MENU)


@pytest.mark.parametrize("name", MENU)
def test_bits_and_decibels_are_those_of_the_rows(name: str) -> None:
    bits, psnr_db = MEASURED[name]
    if name in SHIPPED:
        (row,) = (row for row in rows("shipped") if row["preset"] == name)
        assert bits == pytest.approx(float(row["bits_per_value_amortised"]), abs=0.006)
    else:
        method = study_method(name)
        walked = {row["form"]: row for row in rows("study") if (row["model"], row["method"]) == ("demo world", name)}
        assert bits == pytest.approx(16 / ratio(method), abs=0.006)
        # Where a method decides itself what is exact, both forms are the same run.
        known = [walked[form] for form in (("node",) if method.plain else ("node", "corrected")) if form in walked]
        assert bool(known) == (psnr_db is not None)
        row = next(iter(known), {"psnr_db": "nan"})
    assert psnr_db == pytest.approx(float(row["psnr_db"]), abs=0.06) if psnr_db is not None else row["psnr_db"] == "nan"


def test_verdicts_by_their_limits() -> None:
    assert [verdict(Measured(2.0, decibels)) for decibels in (45.0, 44.9, 35.0, 34.9, 30.0, 29.9, None)] == [
        "hardly different",
        "a little different",
        "a little different",
        "plainly different",
        "plainly different",
        "another picture",
        "not walked yet",
    ]
    found = by_verdict({"a": Measured(4.0, 50.0), "b": Measured(2.0, 46.0), "c": Measured(1.0, None)})
    assert found == {"hardly different": ["b", "a"], "not walked yet": ["c"]}
