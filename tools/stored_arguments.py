"""Which of a Triton kernel's arguments it stores to, read from its source."""

from __future__ import annotations

import ast
import textwrap
from functools import cache
from typing import Any

_STORES = ("store", "atomic_add", "atomic_max", "atomic_min")


@cache
def stored_arguments(kernel: Any) -> frozenset[str]:
    """Names of the arguments that an address is made of, and something is stored there; helpers that are called included."""
    function = next(node for node in ast.walk(ast.parse(textwrap.dedent(kernel.src))) if isinstance(node, ast.FunctionDef))
    reader = _Reader(kernel, {name: {name} for name in kernel.arg_names})
    for _ in range(2):  # what a loop carries on is seen the second time
        for statement in function.body:
            reader.visit(statement)
    return frozenset(reader.stored)


class _Reader(ast.NodeVisitor):
    """Follows, for every name, which arguments its value may be an address into. What was loaded is a value, no address."""

    def __init__(self, kernel: Any, origins: dict[str, set[str]]):
        self.kernel, self.origins, self.stored = kernel, origins, set[str]()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        found = self._origins(node.value)
        for target in node.targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    self.origins[name.id] = self.origins.get(name.id, set()) | found

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self.origins[node.target.id] = self.origins.get(node.target.id, set()) | self._origins(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if called in _STORES and isinstance(node.func, ast.Attribute) and _is_language(node.func.value):
            self.stored |= self._origins(node.args[0])
        helper = self._helper(node)
        if helper is not None:
            inside = stored_arguments(helper)
            given = dict(zip(helper.arg_names, node.args, strict=False))
            given |= {one.arg: one.value for one in node.keywords if one.arg}
            for name in inside & given.keys():
                self.stored |= self._origins(given[name])

    def _helper(self, node: ast.Call) -> Any:
        """The jitted function that is called, or None."""
        found = self.kernel.fn.__globals__.get(node.func.id) if isinstance(node.func, ast.Name) else None
        return found if hasattr(found, "arg_names") and hasattr(found, "src") else None

    def _origins(self, node: ast.AST) -> set[str]:
        if isinstance(node, ast.Call):
            language = isinstance(node.func, ast.Attribute) and _is_language(node.func.value)
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if self._helper(node) is not None or (language and name not in ("where", "broadcast_to", "multiple_of", "cast")):
                return set()
        if isinstance(node, ast.Name):
            return set(self.origins.get(node.id, ()))
        return {origin for child in ast.iter_child_nodes(node) for origin in self._origins(child)}


def _is_language(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "tl"
