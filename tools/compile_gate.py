"""Compiles every Triton kernel for every card we mean to run on, without a GPU, and holds it to frozen budgets.

    python tools/compile_gate.py                 default configurations for sm_86, sm_89, sm_90, sm_120, gfx942
    python tools/compile_gate.py --all           every configuration, for more cards too
    python tools/compile_gate.py --freeze        write what was measured as the new budgets (read the diff before committing)
    python tools/compile_gate.py --missing       only pairs whose budget is not whole; with --freeze an earlier run goes on
    python tools/compile_gate.py --only kmeans   cases whose "op/name" holds the text

A kernel passes when it compiles, fits the card's shared memory, takes no more registers, shared memory, spills and instructions
per tile than its budget (`tools/compile_budgets/<op>.json`), and holds matrix instructions where it should. A pair without a
budget fails, and so does a budget without a pair: the set is frozen too. Every compile is a process of its own, because the
compiler may abort; what all need is made once, before they fork. Printed beside: what a value costs, and times 16-bit attention.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from loop_statistics import instructions_per_tile, read_amd, read_sass  # noqa: E402  (a script finds its neighbours by path)

BUDGETS = ROOT / "tools" / "compile_budgets"
TRITON_VERSION = "3.7.1"  # budgets are this compiler's
DEFAULT_TARGETS = ("sm_86", "sm_89", "sm_90", "sm_120", "gfx942")
ALL_TARGETS = (*DEFAULT_TARGETS, "sm_80", "sm_100", "gfx1100", "gfx1201")
# Bytes of shared memory (LDS) for one program.
SHARED_LIMITS = {"sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448, "sm_120": 101376}
LDS_LIMIT = 65536
NVIDIA_MATRIX = re.compile(r"\b(HMMA|IMMA|QMMA|HGMMA|IGMMA|QGMMA|UTC\w*MMA)\b")
AMD_MATRIX = re.compile(r"\bv_(mfma|wmma|swmmac)_")
TIMEOUT_SECONDS = 300
SAVED_EVERY = 8  # results that a run which freezes may lose
BASELINE = "bf16_d128_m128"  # the 16-bit attention that others are compared with


class Measured(NamedTuple):
    """What one compile took. `spills`: bytes of stack per thread on NVIDIA, spilled vector registers on AMD. `instructions`: of a
    warp, for one tile."""

    registers: int
    shared: int
    spills: int
    instructions: int
    matrix: str


HELD = ("registers", "shared", "spills", "instructions")


class Pair(NamedTuple):
    """One case on one target."""

    op: str
    case: Any
    target: str

    @property
    def label(self) -> str:
        return f"{self.op}/{self.case.name} {self.target}"

    @property
    def is_counted(self) -> bool:
        """Whether its instructions must be frozen: a default case on a default card. Others' are held where they are."""
        return self.case.default and self.target in DEFAULT_TARGETS

    def frozen(self, found: Measured) -> dict[str, int]:
        """What is held to a budget."""
        return {name: getattr(found, name) for name in HELD}

    def budget(self, found: Measured) -> dict[str, float]:
        """`frozen` as it is written down, with what a value takes for whoever reads it."""
        return {**self.frozen(found), "per_value": round(per_value(self.case, self.target, found.instructions), 1)}


# ------------------------------------------------------------------------------------------------------------------ one compile


def compile_pair(pair: Pair) -> Measured:
    """Compile one case for one target; the compiler's own errors pass through."""
    import triton
    from triton.backends.compiler import GPUTarget

    nvidia = pair.target.startswith("sm_")
    if nvidia:
        target = GPUTarget("cuda", int(pair.target.removeprefix("sm_")), 32)
    else:
        target = GPUTarget("hip", pair.target, 64 if pair.target.startswith("gfx9") else 32)
    options = {"num_warps": pair.case.warps, "num_stages": pair.case.stages}
    compiled = triton.compile(_source(pair.case), target=target, options=options)
    return _measure_nvidia(compiled, pair.case.tile) if nvidia else _measure_amd(compiled, pair.case.tile)


def prepare(pairs: list[Pair]) -> None:
    """What every compile would do anew in its process: import the compiler, hash it (half a gigabyte), parse the kernels. The
    collector forgets what is there, so that no child touches, and copies, it all."""
    from triton.compiler import code_generator  # noqa: F401
    from triton.runtime.cache import triton_key

    triton_key()
    for kernel in {id(pair.case.kernel): pair.case.kernel for pair in pairs}.values():
        _ = kernel.cache_key
    gc.collect()
    gc.freeze()


def _source(case: Any) -> Any:
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    unknown = (set(case.types) | set(case.constants)) ^ set(names)
    if unknown or set(case.types) & set(case.constants):
        raise ValueError(f"arguments {sorted(unknown)} are not exactly those of the kernel {names}")
    signature = {name: case.types.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    # What a launch would find out about tensors from torch. Without it no load is wide and all counts mean nothing.
    aligned = []
    for i, name in enumerate(names):
        kind = case.types.get(name, "")
        if name in case.multiples and isinstance(kind, tuple):
            aligned += [(i, part) for part in range(len(kind))]
        elif name in case.multiples or str(kind).startswith("*"):
            aligned.append((i,))
    return ASTSource(case.kernel, signature, constants, {place: [["tt.divisibility", 16]] for place in aligned})


def _measure_nvidia(compiled: Any, tile: Any) -> Measured:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        # Its analysis of data flow is about jumps by a stack, which no card has had since sm_70, and takes as long as all else.
        code = _output("nvdisasm", "-c", "-ndf", file.name)
    registers, stack = (_number(pattern, usage) for pattern in (r"REG:(\d+)", r"STACK:(\d+)"))
    instructions = instructions_per_tile(read_sass(code), tile.walked, tile.turns, NVIDIA_MATRIX)
    return Measured(registers, compiled.metadata.shared, stack, instructions, _family(NVIDIA_MATRIX, code))


def _measure_amd(compiled: Any, tile: Any) -> Measured:
    code = compiled.asm["amdgcn"]
    registers, spills = (_number(pattern, code) for pattern in (r"\.vgpr_count:\s+(\d+)", r"\.vgpr_spill_count:\s+(\d+)"))
    instructions = instructions_per_tile(read_amd(code), tile.walked, tile.turns, AMD_MATRIX)
    return Measured(registers, compiled.metadata.shared, spills, instructions, _family(AMD_MATRIX, code))


def _output(tool: str, *arguments: str) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if not found:
        raise ValueError(f"the compiler's report has no {pattern}")
    return int(found[1])


def _family(pattern: re.Pattern[str], code: str) -> str:
    """The kind of matrix instruction that is most frequent; the empty string where there is none."""
    found = [str(match) for match in pattern.findall(code)]
    return max(sorted(set(found)), key=found.count) if found else ""


# ---------------------------------------------------------------------------------------------------------- all of them, forked


def measure_all(pairs: list[Pair], jobs: int) -> Iterator[tuple[Pair, Measured | str, float]]:
    """(pair, result or what went wrong, seconds), as they finish. A compiler that aborts or hangs takes its own process along."""
    context = multiprocessing.get_context("fork")
    waiting, running = list(reversed(pairs)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            pair = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(sender, pair))
            process.start()
            sender.close()
            running[receiver] = (process, pair, time.monotonic())
        for receiver in wait(list(running), timeout=1):
            process, pair, started = running.pop(receiver)  # type: ignore[index]
            yield pair, _received(receiver, process), time.monotonic() - started  # type: ignore[arg-type]
        for receiver, (process, pair, started) in list(running.items()):
            if time.monotonic() - started > TIMEOUT_SECONDS:
                process.kill()
                process.join()
                del running[receiver]
                yield pair, f"not done after {TIMEOUT_SECONDS} s", TIMEOUT_SECONDS


def _child(sender: Connection, pair: Pair) -> None:
    gc.disable()  # it does not live long
    try:
        sender.send(tuple(compile_pair(pair)))
    except Exception as error:  # whatever the compiler raises is this pair's result
        text = str(error).strip().splitlines()
        sender.send(f"{type(error).__name__}: {' | '.join(text[-4:])}"[:600])
    sender.close()


def _received(receiver: Connection, process: Any) -> Measured | str:
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    process.join()
    if result is None:
        return f"the compiler crashed (exit code {process.exitcode})"
    return result if isinstance(result, str) else Measured(*result)


# ---------------------------------------------------------------------------------------------------------------------- budgets


def judge(pair: Pair, found: Measured, budget: dict[str, int] | None) -> list[str]:
    """What is wrong with one result, in words."""
    limit = SHARED_LIMITS.get(pair.target, LDS_LIMIT)
    wrong = [f"{found.shared} bytes of shared memory do not fit the card's {limit}"] if found.shared > limit else []
    if pair.case.tensor_cores and not found.matrix:
        wrong.append("no matrix instructions")
    if budget is None:
        return [*wrong, "no budget; run with --freeze and read the diff"]
    for name, value in pair.frozen(found).items():
        if name not in budget and (name != "instructions" or pair.is_counted):
            wrong.append(f"no budget for {name}; run with --freeze and read the diff")
        elif value > budget.get(name, value):
            wrong.append(f"{name} {value}, allowed {budget[name]}")
    return wrong


def per_value(case: Any, target: str, instructions: int) -> float:
    """Instructions of single lanes that one value of a tile takes: in attention once for each block of queries."""
    lanes = 64 if target.startswith("gfx9") else 32
    return instructions * case.warps * lanes / case.tile.values


def read_budgets(ops: list[str]) -> dict[str, dict[str, dict[str, int]]]:
    """{"op/case": {target: budget}} of these ops."""
    budgets = {}
    for op in ops:
        file = BUDGETS / f"{op}.json"
        for name, targets in json.loads(file.read_text(encoding="utf-8")).items() if file.is_file() else ():
            budgets[f"{op}/{name}"] = targets
    return budgets


def without_budget(pairs: list[Pair]) -> list[Pair]:
    """Those that have none, and then those whose budget lacks something."""
    frozen = read_budgets(sorted({pair.op for pair in pairs}))
    budgets = [(pair, frozen.get(f"{pair.op}/{pair.case.name}", {}).get(pair.target, {})) for pair in pairs]
    return [pair for pair, budget in sorted(budgets, key=lambda one: len(one[1])) if not set(HELD) <= budget.keys()]


def freeze(results: list[tuple[Pair, Measured]]) -> None:
    """Write what was measured, per op; pairs that were not measured keep what they have."""
    for op in sorted({pair.op for pair, _ in results}):
        file = BUDGETS / f"{op}.json"
        frozen = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for pair, found in results:
            if pair.op == op:
                frozen.setdefault(pair.case.name, {})[pair.target] = pair.budget(found)
        BUDGETS.mkdir(exist_ok=True)
        rows = [
            f"  {json.dumps(name)}: {{\n"
            + ",\n".join(f"    {json.dumps(target)}: {json.dumps(budget)}" for target, budget in sorted(targets.items()))
            + "\n  }"
            for name, targets in sorted(frozen.items())
        ]
        file.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------------ the program


@cache
def all_cases() -> list[tuple[str, Any]]:
    """(op, case) of every kernel that has some."""
    importlib.import_module("bootstrap_package")
    found = []
    for file in sorted((ROOT / "kernels").glob("*/triton_kernel.py")):
        module = importlib.import_module(f"comfyui_qvg.kernels.{file.parent.name}.triton_kernel")
        found += [(file.parent.name, case) for case in getattr(module, "compile_cases", list)()]
    return found


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 all well, 1 something is wrong, 3 there is no compiler to ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every configuration and card")
    parser.add_argument("--freeze", action="store_true", help="make what is measured the budget")
    parser.add_argument("--missing", action="store_true", help="only pairs whose budget is not whole")
    parser.add_argument("--only", default="", help='only cases whose "op/name" holds this text')
    parser.add_argument("--targets", nargs="+", choices=ALL_TARGETS, help="only these cards")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compiles at the same time")
    options = parser.parse_args(arguments)
    if reason := _no_compiler():
        print(f"skipped: {reason}")
        return 3
    targets = options.targets or (ALL_TARGETS if options.all else DEFAULT_TARGETS)
    pairs = [
        Pair(op, case, target)
        for op, case in all_cases()
        for target in targets
        if options.only in f"{op}/{case.name}" and (options.all or case.default) and target not in case.without
    ]
    if options.missing:
        pairs = without_budget(pairs)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # a warm cache would hide a compiler that fails
        prepare(pairs)
        return _run(pairs, options, whole=not options.only and not options.targets and not options.missing)


def _no_compiler() -> str | None:
    os.environ.pop("TRITON_INTERPRET", None)
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported ({error}); pip install triton=={TRITON_VERSION}"
    if triton.__version__ != TRITON_VERSION:
        return f"triton is {triton.__version__}, budgets are for {TRITON_VERSION}; pip install triton=={TRITON_VERSION}"
    return None


def _run(pairs: list[Pair], options: argparse.Namespace, whole: bool) -> int:
    budgets = read_budgets(sorted({pair.op for pair in pairs}))
    started = time.monotonic()
    results: list[tuple[Pair, Measured]] = []
    wrong: list[str] = []
    for pair, found, seconds in measure_all(pairs, options.jobs):
        name = f"{pair.op}/{pair.case.name}"
        if isinstance(found, str):
            wrong.append(f"{pair.label}: {found}")
            print(f"{name:44s} {pair.target:8s} FAILED {found}", flush=True)
            continue
        results.append((pair, found))
        if options.freeze and len(results) % SAVED_EVERY == 0:
            freeze(results[-SAVED_EVERY:])
        faults = judge(pair, found, pair.frozen(found) if options.freeze else budgets.get(name, {}).get(pair.target))
        wrong += [f"{pair.label}: {fault}" for fault in faults]
        print(
            f"{name:44s} {pair.target:8s} registers {found.registers:3d}  shared {found.shared:6d}  spills {found.spills:4d}  "
            f"instructions {found.instructions:5d}  {found.matrix or '-':8s} {_against_bf16(pair, found)}{seconds:4.1f} s"
            f"{'  FAILED' if faults else ''}",
            flush=True,
        )
    if options.freeze:
        freeze(results[len(results) // SAVED_EVERY * SAVED_EVERY :])
    elif whole:
        wrong += _stale(budgets, pairs, complete=options.all)
    took = f"{len(results)} compiled in {time.monotonic() - started:.0f} s"
    print(f"\n{len(pairs)} pairs of kernel and card: {took}, {len(wrong)} wrong", *(f"  {fault}" for fault in wrong), sep="\n")
    return 1 if wrong else 0


def _against_bf16(pair: Pair, found: Measured) -> str:
    """A value's instructions, and as a multiple of what 16-bit attention on this card takes, as that was frozen."""
    own = per_value(pair.case, pair.target, found.instructions)
    return f"{own:6.1f} a value" + (f", {own / baseline:5.2f} x bf16  " if (baseline := _baseline(pair.target)) else "  ")


@cache
def _baseline(target: str) -> float | None:
    """What a value takes in 16-bit attention, as that was frozen; None where it was not."""
    frozen = read_budgets(["attention"]).get("attention/" + BASELINE, {}).get(target, {}).get("instructions")
    case = next(case for op, case in all_cases() if (op, case.name) == ("attention", BASELINE))
    return None if frozen is None else per_value(case, target, frozen)


def _stale(budgets: dict[str, dict[str, dict[str, int]]], pairs: list[Pair], complete: bool) -> list[str]:
    """Budgets of pairs that are no longer compiled. The default run knows nothing of the cards and cases it leaves out."""
    known = {(f"{pair.op}/{pair.case.name}", pair.target) for pair in pairs}
    names = {f"{op}/{case.name}" for op, case in all_cases() if complete or case.default}
    every = {f"{op}/{case.name}" for op, case in all_cases()}
    frozen = {(name, target) for name, targets in budgets.items() for target in targets}
    gone = {entry for entry in frozen if entry[0] not in every}
    left_out = {entry for entry in frozen - known if entry[0] in names and (complete or entry[1] in DEFAULT_TARGETS)}
    return [f"{name} {target}: a budget without a kernel" for name, target in sorted(gone | left_out)]


if __name__ == "__main__":
    sys.exit(main())
