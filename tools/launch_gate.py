"""Counts what one layer asks of a GPU, without one, and holds it to frozen numbers: kernels started, bytes read and written.

    python tools/launch_gate.py                    what CI holds: Self-Forcing at 180 latent frames, `balanced` read everywhere
    python tools/launch_gate.py --all              every model, preset and way to read
    python tools/launch_gate.py --only balanced    cases whose name holds the text
    python tools/launch_gate.py --freeze           write what was counted as the new numbers (explain the diff in the commit)
    python tools/launch_gate.py --kernels          name the kernels of every case, most frequent first

A case is "layout/preset/read" or "layout/preset/commit" (`launch_cases.py`); the reads `sparse` and `counted`, FAST-AR's, are
counted of one layout and preset. Of a read, the first call after a commit is counted
and the ones that follow; of commits, those that only keep a block exactly, those that begin a codebook and those that go on with
one. Counting is exact, so any difference fails, a smaller number too: what became better is frozen, or it is soon lost again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import bootstrap_package  # noqa: F401
import torch
from comfyui_qvg.qvg import PRESETS
from launch_cases import LAYOUTS, MODULES, READS, count_commits, count_reads

FROZEN = Path(__file__).with_name("launch_counts.json")
TORCH_VERSION = "2.13.0"  # other versions may split operations otherwise
SAMPLE_LAYOUT, SAMPLE_PRESETS = "Self-Forcing, 180 frames", ("exact", "qvg", "balanced")

# Of every moment of a case (the first call, the ones that follow, ...) its launches, bytes read, bytes written, synchronisations.
Numbers = dict[str, dict[str, int]]


class Case(NamedTuple):
    """One line of the table. `what`: a way to read, or "commit"."""

    layout: str
    preset: str
    what: str

    @property
    def name(self) -> str:
        """As it is frozen."""
        return "/".join(self)

    @property
    def is_sample(self) -> bool:
        """Whether CI counts it: one layout with three presets, and how all read the default preset; `sparse`, whose tiles take a
        minute to make, is for `--all`."""
        of_layout = self.layout == SAMPLE_LAYOUT and self.preset in SAMPLE_PRESETS and self.what != "sparse"
        return of_layout or (self.preset == SAMPLE_PRESETS[-1] and self.what in READS)


def all_cases() -> list[Case]:
    """Every one that there is."""
    whats = (*READS, "commit")
    cases = [Case(layout, preset, what) for layout in LAYOUTS for preset in PRESETS for what in whats]
    return [*cases, *(Case(SAMPLE_LAYOUT, SAMPLE_PRESETS[-1], what) for what in MODULES)]


def count(case: Case, kernels: bool = False) -> Numbers:
    """Count one case, and with `kernels` print which there were."""
    layout = LAYOUTS[case.layout]
    found = count_commits(layout, case.preset) if case.what == "commit" else count_reads(layout, case.preset, case.what)
    if kernels:
        for moment, counts in found.items():
            named = (f"{name} {times} ({counts.traffic[name] / 1e6:.0f} MB)" for name, times in counts.kernels.most_common())
            print(f"  {moment}: {', '.join(named)}")
    return {moment: counts.row() for moment, counts in found.items()}


def judge(name: str, found: Numbers, frozen: Numbers | None) -> list[str]:
    """What is wrong with one case, in sentences."""
    way_out = f"python tools/launch_gate.py --only '{name}' --freeze, and explain the diff in the commit"
    if frozen is None:
        return [f"{name} has no frozen numbers; {way_out}"]
    wrong = []
    for moment in sorted(found.keys() | frozen.keys()):
        new, old = found.get(moment, {}), frozen.get(moment, {})
        changed = [f"{what} {old.get(what)} -> {new.get(what)}" for what in {**old, **new} if old.get(what) != new.get(what)]
        if changed:
            wrong.append(f"{name}, {moment}: {', '.join(changed)}; if that is meant: {way_out}")
    return wrong


def read_frozen() -> dict[str, Numbers]:
    """By the cases' names."""
    return json.loads(FROZEN.read_text(encoding="utf-8")) if FROZEN.is_file() else {}  # type: ignore[no-any-return]


def freeze(found: dict[str, Numbers]) -> None:
    """Write what was counted; cases that were not counted keep what they have, cases that are gone leave."""
    names = [case.name for case in all_cases()]
    kept = {name: numbers for name, numbers in {**read_frozen(), **found}.items() if name in names}
    rows = []
    for name in sorted(kept, key=names.index):
        moments = ",\n".join(f"    {json.dumps(moment)}: {json.dumps(row)}" for moment, row in kept[name].items())
        rows.append(f"  {json.dumps(name)}: {{\n{moments}\n  }}")
    FROZEN.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 all well, 1 something is wrong, 3 there is nothing to count with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every model")
    parser.add_argument("--freeze", action="store_true", help="make what is counted the frozen numbers")
    parser.add_argument("--only", default="", help="only cases whose name holds this text, of all models")
    parser.add_argument("--kernels", action="store_true", help="name the kernels")
    options = parser.parse_args(arguments)
    if missing := _nothing_to_count_with():
        print(f"skipped: {missing}")
        return 3
    torch.set_grad_enabled(False)
    cases = [case for case in all_cases() if options.only in case.name and (options.all or options.only or case.is_sample)]
    return _run(cases, options)


def _nothing_to_count_with() -> str | None:
    if torch.__version__.split("+")[0] != TORCH_VERSION:
        return f"torch is {torch.__version__}, numbers are for {TORCH_VERSION}; pip install torch=={TORCH_VERSION}"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported ({error}), and its kernels' arguments are what is counted"
    return None


def _run(cases: list[Case], options: argparse.Namespace) -> int:
    frozen, found, wrong, began = read_frozen(), dict[str, Numbers](), list[str](), time.monotonic()
    for case in cases:
        started = time.monotonic()
        numbers = found[case.name] = count(case, options.kernels)
        faults = [] if options.freeze else judge(case.name, numbers, frozen.get(case.name))
        wrong += faults
        print(f"{case.name:50s} {_text(numbers)}  {time.monotonic() - started:4.1f} s{'  FAILED' if faults else ''}", flush=True)
        if options.freeze:
            freeze(found)
    if not options.freeze and not options.only:
        known = {case.name for case in all_cases()}
        wrong += [f"{name} is frozen, but there is no such case; --freeze takes it out" for name in frozen if name not in known]
    print(f"\n{len(cases)} cases counted in {time.monotonic() - began:.0f} s, {len(wrong)} wrong")
    for fault in wrong:
        print(f"  {fault}")
    return 1 if wrong else 0


def _text(numbers: Numbers) -> str:
    def one(moment: str, row: dict[str, Any]) -> str:
        waits = f", {row['syncs']} waits" if row["syncs"] else ""
        return f"{moment} {row['launches']} launches, {(row['read'] + row['written']) / 1e6:.0f} MB{waits}"

    return "; ".join(one(moment, row) for moment, row in numbers.items())


if __name__ == "__main__":
    sys.exit(main())
