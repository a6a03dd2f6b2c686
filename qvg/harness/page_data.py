"""From rows to what the page knows: a set for every target and length, a method for every name, and what is missing and why."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from .choices import choices
from .metrics import cautions
from .plan import LEAST_SEEDS, Case, StudyPlan, Target
from .statistics import Row, mean, mean_curve, paired
from .store import Store
from .work import Job, job

_PHASES = ("denoise", "encode", "decode")


def sets_of(plan: StudyPlan, store: Store) -> list[dict[str, Any]]:
    """One for every target and length that has rows of this version."""
    found = []
    for target in plan.targets:
        for frames in target.frames:
            cases = [case for case, _ in plan.cases() if case.target == target.name and case.frames == frames]
            methods = {name: _rows(plan, store, cases, name) for name in target.methods}
            if any(methods.values()):
                found.append(_set(plan, store, target, cases, methods))
    return found


def _rows(plan: StudyPlan, store: Store, cases: Sequence[Case], name: str) -> dict[int, tuple[Job, Row]]:
    """By the number of the case."""
    found: dict[int, tuple[Job, Row]] = {}
    for number, case in enumerate(cases):
        work = job(plan, case, name)
        row = store.row(work.key, work.version)
        if row is not None:
            found[number] = (work, row)
    return found


def _set(
    plan: StudyPlan, store: Store, target: Target, cases: Sequence[Case], methods: Mapping[str, Mapping[int, tuple[Job, Row]]]
) -> dict[str, Any]:
    frames = cases[0].frames
    rows = {name: {number: row for number, (_, row) in found.items()} for name, found in methods.items() if found}
    summaries = [_method(name, found, rows.get(plan.baseline, {})) for name, found in rows.items()]
    seconds = _seconds_of_all(summaries)
    exact: dict[str, float | None] = next((each["values"] for each in summaries if each["name"] == "exact"), {})
    for each in summaries:
        seeds = len({cases[number].seed for number in rows[each["name"]]})
        each["cautions"] = [*cautions(each["values"], exact, seeds), *each["cautions"]]
    first = next(iter(next(iter(rows.values())).values()))
    wanted = len(cases) * len(target.methods)
    there = sum(len(found) for found in rows.values())
    others = sum(
        store.others(work.key, work.version) for case in cases for name in target.methods for work in [job(plan, case, name)]
    )
    notes = [f"{there} of {wanted} videos are there"] if there < wanted else []
    notes += [f"{others} rows of another version lie in the folder and are not among these"] if others else []
    notes += seconds
    notes += ["exploratory: fewer than three seeds"] if len(set(target.seeds)) < LEAST_SEEDS else []
    return {
        "id": f"{target.name}/{frames}",
        "name": f"{target.name}, {frames} frames",
        "published": False,
        "about": _conditions(first),
        "exact": "exact",
        "baseline": plan.baseline,
        "cases": [{"prompt": case.prompt, "seed": case.seed, "frames": case.frames} for case in cases],
        "units": {"runtime": "seconds a generated frame", "drift": "PSNR of the last window, dB"},
        "missing": dict(first["perceptual"]["missing"]),
        "notes": notes,
        "methods": summaries,
    }


def _seconds_of_all(methods: Sequence[dict[str, Any]]) -> list[str]:
    """Seconds of some are no comparison: they are left out of all where any method has none. -> what to say of it"""
    without = sum(each["values"]["runtime"] is None for each in methods)
    if not without:
        return []
    for each in methods:
        each["values"]["runtime"] = None
    return [f"seconds are left out: {without} of {len(methods)} methods have none"]


def _conditions(row: Row) -> str:
    where, versions = row["conditions"], row["conditions"]["versions"]
    memory = f"memory by phase: {row['memory']['how']}"
    peak = "Peak memory is the cache's at its worst block and its workspace, counted"
    return f"{where['device']}, torch {versions['torch']}, {where['date']}; {memory}. {peak}."


def _method(name: str, rows: Mapping[int, Row], baseline: Mapping[int, Row]) -> dict[str, Any]:
    values = {key: _rounded(mean([of(row) for row in rows.values()])) for key, of in _VALUES.items()}
    shared = [number for number in rows if number in baseline]
    against = None
    if shared:
        found = paired(*([row[number]["psnr_db"]["all"] for number in shared] for row in (rows, baseline)))
        against = {
            "mean": round(found.difference.mean, 2),
            "low": round(found.difference.low, 2),
            "high": round(found.difference.high, 2),
            "better": found.better,
            "worse": found.worse,
            "chance": round(found.chance, 4),
        }
    choice = choices()[name]
    last = list(rows.values())[-1]
    remarks = list(dict.fromkeys(text for row in rows.values() for text in row["remarks"]))
    return {
        "name": name,
        "family": choice.family,
        "form": "published" if choice.published else "",
        "cases": len(rows),
        "values": values,
        "against": against,
        "cautions": ["run as its authors run it: to compare with, not to use"] if choice.published else [],
        "remarks": remarks,
        "components": last["bytes"]["components"],
        "beside": last["bytes"]["beside"],
        "memory": {phase: last["memory"][phase] for phase in _PHASES if phase in last["memory"]},
        "seconds": {phase: _rounded(mean([row["seconds"].get(phase) for row in rows.values()])) for phase in _PHASES},
        "windows": [[each["first"], each["last"]] for each in last["drift"]["windows"]],
        "window_psnr": [
            _rounded(mean([row["drift"]["windows"][i]["psnr_db"] for row in rows.values()]))
            for i in range(min(len(row["drift"]["windows"]) for row in rows.values()))
        ],
        "curves": {
            key: [round(value, digits) for value in mean_curve([row["curves"][key] for row in rows.values()])]
            for key, digits in (("psnr_db", 1), ("ssim", 3), ("cache_bytes", 0))
        },
        "given": last["given_frames"],
        "cache_peak": _rounded(mean([row["bytes"]["peak_cache"] / 1e6 for row in rows.values()])),
        "psnr_by_case": {number: row["psnr_db"]["all"] for number, row in rows.items()},
        "rows": [[number, [round(value, 1) for value in row["curves"]["psnr_db"]]] for number, row in rows.items()],
    }


def _vbench(name: str) -> Any:
    return lambda row: row["perceptual"].get("vbench", {}).get(name)


_VALUES = {
    "compression": lambda row: row["bytes"]["ratio"],
    "peak": lambda row: (row["bytes"]["peak_cache"] + row["bytes"]["beside"].get("workspace", 0)) / 1e6,
    "cache": lambda row: row["bytes"]["cache"] / 1e6,
    "ssim": lambda row: row["ssim"]["all"],
    "ssim_first": lambda row: row["ssim"]["first_frame"],
    "ssim_divergent": lambda row: row["ssim"]["first_divergent"],
    "psnr": lambda row: row["psnr_db"]["all"],
    "psnr_first": lambda row: row["psnr_db"]["first_frame"],
    "psnr_divergent": lambda row: row["psnr_db"]["first_divergent"],
    # One that never diverges does so behind the end.
    "divergent_frame": lambda row: (
        row["first_divergent_frame"] if row["first_divergent_frame"] is not None else row["pictures"][0]
    ),
    "lpips": lambda row: row["perceptual"].get("lpips", {}).get("all"),
    "drift": lambda row: row["drift"]["windows"][-1]["psnr_db"],
    "slope": lambda row: row["drift"]["slope_psnr_db_per_100"],
    "visits": lambda row: row["visits_db"],
    "truth": lambda row: row["truth_db"],
    "imaging": _vbench("imaging_quality"),
    "runtime": lambda row: row["seconds"].get("per_generated_frame"),
}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def videos_of(plan: StudyPlan, store: Store, most_bytes: int) -> tuple[dict[str, str], int]:
    """{"set|method|case": data address} of as many videos as there is room for, the first cases first, so that every method has
    one before any has two; and how many are left out."""
    found, size, left = dict[str, str](), 0, 0
    for target in plan.targets:
        for frames in target.frames:
            cases = [case for case, _ in plan.cases() if case.target == target.name and case.frames == frames]
            for number, case in enumerate(cases):
                for name in target.methods:
                    work = job(plan, case, name)
                    try:
                        content = store.video(work.key, work.version).read_bytes()
                    except OSError:
                        continue
                    size += len(content) * 4 // 3
                    if size > most_bytes:
                        left += 1
                        continue
                    address = "data:video/mp4;base64," + base64.b64encode(content).decode()
                    found[f"{target.name}/{frames}|{name}|{number}"] = address
    return found, left
