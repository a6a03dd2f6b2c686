#!/usr/bin/env python3
"""How far the tests' numbers stay from their bounds on other processors: a tolerance that holds here must hold everywhere.

    .venv/bin/python tools/margins.py [--least N] [--way WORDS] tests/qvg/attention/test_prompt.py   and more arguments of pytest

Runs the tests once for each way in which torch can add up: its loops for old and new processors (ATEN_CPU_CAPABILITY; those that
this one does not have are left out, by name), one and two threads, and MKL's and oneDNN's products as on any processor. Compared
is what `<`, `<=`, `>` and `>=` of an `assert` compare, `assert_close`, `allclose` and `approx`. Printed is every bound that comes
nearer than twice the number, and by how much the number moved between the ways: an error of rounding moves by about itself, and
its bound is to be derived anew (float64 reference, epsilon, length of the sum), while a finding about data hardly moves. What an
`assert` hides in `all(...)` is not seen. Exit code 1: a number moved by more than half of what was left.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import operator
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = "QVG_MARGINS_OUT"
_ANYWHERE = {"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
_WAYS = {
    f"{capability}, {threads} thread{'s' * (threads > 1)}": {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": str(threads)}
    for capability in ("default", "avx2", "avx512")
    for threads in (1, 2)
} | {"any processor, 1 thread": {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1", **_ANYWHERE}}

# key: where, test, how often it came by -> number, bound, whether the number is to be smaller
Seen = dict[tuple[str, str, int], tuple[float, float, bool]]


# ---------------------------------------------------------------------------------------------- inside pytest, as a plugin of it


class Recorder:
    """Everything that was compared in one run of the tests."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int, float, float, bool]] = []
        self.times: dict[tuple[str, str], int] = defaultdict(int)
        self.test = ""

    def add(self, where: str, number: float, bound: float, below: bool = True) -> None:
        """A number that is to stay below (or above) a bound."""
        self.times[where, self.test] += 1
        if math.isfinite(number) and math.isfinite(bound):
            self.seen.append((where, self.test, self.times[where, self.test], number, bound, below))


_RECORDER = Recorder()
_TYPES = re.compile(r"\b(?:tensor|(?:np\.)?float\d+)\((-?[\d.]+(?:e[+-]?\d+)?)(?:, dtype=[\w.]+)?\)")


def pytest_configure(config: Any) -> None:
    """Listen to what compares tensors and numbers."""
    import numpy as np
    import pytest
    import torch

    _listen(torch, "allclose", lambda a, b, rtol=1e-5, atol=1e-8, **_: _worst(a, b, rtol, atol))
    _listen(np, "allclose", lambda a, b, rtol=1e-5, atol=1e-8, **_: _worst(a, b, rtol, atol))
    _listen(np.testing, "assert_allclose", lambda a, b, rtol=1e-7, atol=0.0, **_: _worst(a, b, rtol, atol))
    scalar: Any = type(pytest.approx(1.0))
    equal = scalar.__eq__

    def listening(self: Any, actual: Any) -> bool:
        if isinstance(actual, float) and isinstance(self.expected, (int, float)):
            _RECORDER.add(_where(), abs(actual - self.expected), self.tolerance)
        return bool(equal(self, actual))

    scalar.__eq__ = listening


def pytest_runtest_setup(item: Any) -> None:
    """Whose numbers come next."""
    _RECORDER.test = item.nodeid


def pytest_collection_finish(session: Any) -> None:
    """Test modules have imported `assert_close` by now, of two kinds, each under that name."""

    def relative(_name: str, reference: Any, estimate: Any, allowed: float) -> tuple[float, float]:
        wanted = reference.double()
        return float((estimate.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()), allowed

    def default(a: Any, b: Any, rtol: float | None = None, atol: float | None = None, **_: Any) -> tuple[float, float]:
        few = {"torch.float32": (1.3e-6, 1e-5), "torch.float64": (1e-7, 1e-7), "torch.bfloat16": (1.6e-2, 1e-5)}
        usual = few.get(str(getattr(a, "dtype", "")), (1e-3, 1e-5))
        return _worst(a, b, usual[0] if rtol is None else rtol, usual[1] if atol is None else atol)

    import torch

    _listen(torch.testing, "assert_close", default)
    modules = [module for module in sys.modules.values() if str(getattr(module, "__file__", "")).startswith(str(ROOT / "tests"))]
    for module in modules:
        if "helpers" in module.__name__ and hasattr(module, "assert_close"):
            _listen(module, "assert_close", relative)
            for other in modules:
                if hasattr(other, "assert_close"):
                    other.assert_close = module.assert_close  # type: ignore[attr-defined]


def pytest_assertion_pass(item: Any, lineno: int, orig: str, expl: str) -> None:
    """Numbers that an `assert` has compared, as pytest writes them; whole ones are counts."""
    try:
        tree = ast.parse(_TYPES.sub(r"\1", expl.partition("\n")[0]), mode="eval")
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [_value(each) for each in (node.left, *node.comparators)]
            for left, sign, right in zip(sides, node.ops, sides[1:], strict=False):
                if left is None or right is None or (isinstance(left, int) and isinstance(right, int)):
                    continue
                if isinstance(sign, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)):
                    where = f"{item.path.relative_to(ROOT)}:{lineno} {' '.join(orig.split())[:90]}"
                    _RECORDER.add(where, left, right, isinstance(sign, (ast.Lt, ast.LtE)))


_OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def _value(node: ast.expr) -> float | None:
    """Of an expression of numbers alone."""
    try:
        return _computed(node)
    except (TypeError, ArithmeticError, KeyError):
        return None


def _computed(node: ast.expr) -> float:
    """KeyError, TypeError: it is no such expression."""
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_computed(node.left), _computed(node.right))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_computed(node.operand))
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    raise TypeError(type(node).__name__)


def pytest_sessionfinish(session: Any) -> None:
    """For the program below."""
    Path(os.environ[OUT]).write_text(json.dumps(_RECORDER.seen), encoding="utf-8")


def _listen(place: Any, name: str, measure: Callable[..., tuple[float, float]]) -> None:
    real = getattr(place, name)

    def listening(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)  # first: what it refuses is no number
        _RECORDER.add(_where(), *measure(*arguments, **options))
        return result

    setattr(place, name, listening)


def _worst(a: Any, b: Any, rtol: float, atol: float) -> tuple[float, float]:
    """The largest difference, in units of what is allowed there."""
    import numpy as np

    one, other = (np.asarray(x.detach().double().cpu() if hasattr(x, "detach") else x, dtype=np.float64) for x in (a, b))
    far = np.abs(one - other)
    allowed = atol + rtol * np.abs(other)
    return float(np.max(np.where(far > 0, far / np.maximum(allowed, 1e-300), 0), initial=0)), 1.0


def _where() -> str:
    """The line of a test that is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "tests") and path.name not in ("helpers.py", "conftest.py"):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


# ------------------------------------------------------------------------------------------------------------- the program


def runs(arguments: list[str], wanted: str) -> Iterator[tuple[str, Seen]]:
    """What each way of adding up has given."""
    with tempfile.TemporaryDirectory() as folder:
        for way, settings in _WAYS.items():
            if wanted not in way:
                continue
            out = Path(folder, "seen.json")
            environment = {**os.environ, **settings, OUT: str(out), "PYTHONPATH": str(ROOT / "tools")}
            environment |= {"PYTHONPYCACHEPREFIX": folder}  # asserts are compiled anew, with pytest's report on each
            command = [str(Path(sys.executable).with_name("pytest")), "-q", "-p", "margins", *arguments]
            command += ["-o", "enable_assertion_pass_hook=true"]
            done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
            summary = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-200:]]
            if done.returncode == -signal.SIGILL:
                print(f"{way}: this processor cannot", flush=True)
                continue
            if not out.exists():
                raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
            print(f"{way}: {summary[0]}", flush=True)
            if done.returncode == 1:
                print("\n".join(line for line in done.stdout.splitlines() if line.startswith(("FAILED", "E  "))), flush=True)
            yield way, {(row[0], row[1], row[2]): (row[3], row[4], row[5]) for row in json.loads(out.read_text(encoding="utf-8"))}
            out.unlink()


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--least", type=float, default=2.0, metavar="N", help="times that a number is to fit below its bound; 2")
    parser.add_argument("--way", default="", metavar="WORDS", help=f"only ways with these words, of: {'; '.join(_WAYS)}")
    options, arguments = parser.parse_known_args()
    ways = dict(runs(arguments, options.way))
    found: dict[str, tuple[float, float, str]] = {}
    for key in {key for seen in ways.values() for key in seen}:
        rows = {way: seen[key] for way, seen in ways.items() if key in seen}
        margin, way = min((_margin(*row), way) for way, row in rows.items())
        if margin >= options.least or margin <= 0:
            continue
        number, bound, _ = rows[way]
        numbers = [row[0] for row in rows.values()]
        moved = (max(numbers) - min(numbers)) / max(abs(bound - number), 1e-300)
        line = f"margin {margin:5.2f}  {number:9.3g} against {bound:9.3g}, moved {moved:7.2%} of what is left"
        line += f"  {key[0]}  [{way}; {key[1]}]"
        found[key[0]] = min(found.get(key[0], (math.inf, 0.0, "")), (margin, -moved, line))
    for _, _, line in sorted(found.values(), key=lambda each: (each[1], each[0])):
        print(line)
    print(
        f"{sum(map(len, ways.values()))} comparisons in {len(ways)} ways, {len(found)} places nearer than {options.least:g} times"
    )
    return int(any(-moved > 0.5 for _, moved, _ in found.values()))


def _margin(number: float, bound: float, below: bool) -> float:
    """How many times the number fits below its bound; bounds that are not positive have none."""
    small, large = (number, bound) if below else (bound, number)
    return math.inf if small <= 0 or large <= 0 else large / small


if __name__ == "__main__":
    raise SystemExit(main())
