"""How many instructions a compiled kernel runs for one tile, counted in its machine code (SASS, or AMD's assembly).

A kernel either walks over tiles in its outermost loop, and then that loop's body is one tile's, or its whole code is. Loops
are found in the graph of jumps, as what can reach itself: compilers move a loop's blocks about, so an address says nothing. Both
arms of a branch count, a function that is called counts where it is called, and padding, which nothing reaches, does not.
"""

from __future__ import annotations

import re
from collections.abc import Set
from typing import NamedTuple

_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?PT?\d*\s+)?([A-Z][\w.]*)([^;]*);")
_SASS_LABEL = re.compile(r"^\s*(\.L_\w+|\$?\w+\$\w+):")
_SASS_CONDITION = re.compile(r"^\s*!?U?P\d")  # of a jump that all threads take together: BRA.U !UP0, `(.L_x_0)
_SASS_PLACE = re.compile(r"`\(([^)]+)\)")
_AMD = re.compile(r"^\s+([a-z]+_\w+)([^;]*)")
_AMD_LABEL = re.compile(r"^(\.?LBB\w+):")


class Instruction(NamedTuple):
    """What an instruction is called, and the places in the list of all of them where the next one may be."""

    name: str
    following: tuple[int, ...]


def read_sass(text: str) -> list[Instruction]:
    """Instructions of one kernel as `nvdisasm -c` writes them."""
    lines, labels = [], {}
    for line in text.splitlines():
        if label := _SASS_LABEL.match(line):
            labels[label[1]] = len(lines)
        elif found := _SASS.match(line):
            lines.append((bool(found[1] or _SASS_CONDITION.match(found[3])), found[2], _SASS_PLACE.search(found[3])))
    instructions = []
    for index, (conditional, name, place) in enumerate(lines):
        kind, last = name.split(".")[0], index + 1 == len(lines)
        # BSSY and CALL name a place, too: the one is where threads meet again, the other comes back.
        jumps = kind in ("BRA", "CALL", "JMP") and place is not None and place[1] in labels
        goes_on = conditional or kind not in ("BRA", "JMP", "EXIT", "RET", "BRX")
        following = ((labels[place[1]],) if jumps and place else ()) + ((index + 1,) if goes_on and not last else ())
        instructions.append(Instruction(name, following))
    return instructions


def read_amd(text: str) -> list[Instruction]:
    """Instructions of one kernel in AMD's assembly."""
    lines: list[tuple[str, str]] = []
    labels = {}
    for line in text.splitlines():
        if label := _AMD_LABEL.match(line):
            labels[label[1]] = len(lines)
        elif found := _AMD.match(line):
            lines.append((found[1], found[2].strip()))
    instructions = []
    for index, (name, place) in enumerate(lines):
        jumps = name.startswith(("s_branch", "s_cbranch")) and place in labels
        goes_on = name not in ("s_branch", "s_endpgm", "s_setpc_b64") and index + 1 < len(lines)
        instructions.append(Instruction(name, ((labels[place],) if jumps else ()) + ((index + 1,) if goes_on else ())))
    return instructions


def instructions_per_tile(code: list[Instruction], walked: bool, turns: int, matrix: re.Pattern[str]) -> int:
    """Instructions that a warp runs for one tile.

    walked: the outermost loop with the most matrix instructions (of those without, the longest) walks over tiles; otherwise all
    code is one tile's. turns: how often a loop inside a tile runs. ValueError where a walking kernel has no loop.
    """
    inside = _reached(code)
    if walked:
        loops = _loops(code, inside)
        if not loops:
            raise ValueError("a kernel that walks over tiles has no loop")
        inside = max(loops, key=lambda loop: (sum(bool(matrix.match(code[at].name)) for at in loop), len(loop)))
        inner = _loops(code, inside, _entries(code, inside))
    else:
        inner = _loops(code, inside)
    return len(inside) + (turns - 1) * sum(map(len, inner))


def _reached(code: list[Instruction]) -> set[int]:
    """Everything that can run."""
    found, waiting = {0}, [0]
    while waiting:
        for at in code[waiting.pop()].following:
            if at not in found:
                found.add(at)
                waiting.append(at)
    return found


def _entries(code: list[Instruction], loop: set[int]) -> set[int]:
    """Where a loop is entered from outside: without these its own way round is cut, and what still goes round is inside it."""
    return {to for at, one in enumerate(code) if at not in loop for to in one.following if to in loop}


def _loops(code: list[Instruction], among: set[int], without: Set[int] = frozenset()) -> list[set[int]]:
    """Outermost loops: what can reach itself (strongly connected components, Tarjan 1972, without recursion)."""
    left = among - without
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    standing: set[int] = set()
    loops = []
    for root in sorted(left):
        if root in number:
            continue
        path = [(root, iter(code[root].following))]
        number[root] = low[root] = len(number)
        stack.append(root)
        standing.add(root)
        while path:
            at, ways = path[-1]
            to = next((to for to in ways if to in left), None)
            if to is None:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[at])
                if low[at] == number[at]:
                    cut = stack.index(at)
                    component = set(stack[cut:])
                    del stack[cut:]
                    standing -= component
                    if len(component) > 1 or at in code[at].following:
                        loops.append(component)
            elif to not in number:
                number[to] = low[to] = len(number)
                stack.append(to)
                standing.add(to)
                path.append((to, iter(code[to].following)))
            elif to in standing:
                low[at] = min(low[at], number[to])
    return loops
