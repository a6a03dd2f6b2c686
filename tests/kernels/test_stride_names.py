"""Strides have names in every kernel (`kernels/launch.py`): nobody has to count what `strides[6]` is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..helpers import ROOT

FILES = sorted((ROOT / "kernels").glob("*/triton_kernel.py"))
AXES = {"batch", "head", "row", "block", "token", "channel", "group", "stage", "cluster", "part", "outer"}
# Run-time integers that are no strides.
OTHERS = {
    "query_count",
    "key_count",
    "value_count",
    "listed_count",
    "tile_count",
    "most_spread",
    "k_clusters",
    "v_clusters",
    "split_keys",
    "k_strides",
    "v_strides",
}


def _kernels(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions that `triton.jit` compiles."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(each) == "triton.jit" for each in node.decorator_list):
            yield node


def _launched(function: ast.FunctionDef) -> bool:
    """Whether this one is a kernel, not a part of one."""
    return "tl.program_id" in ast.unparse(function)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_strides_have_names(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for function in _kernels(tree):
        arguments = {each.arg for each in function.args.args}
        counted = {
            ast.unparse(node)
            for node in ast.walk(function)
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Constant)
            if node.value.id in arguments and isinstance(node.slice.value, int)
        }
        assert not counted, f"{function.name}: {sorted(counted)}; give the tuple names, see CodeStrides"
        plain = {each.arg for each in function.args.args if each.annotation is None and each.arg.islower() and "_" in each.arg}
        if _launched(function):
            nameless = {each for each in plain - OTHERS if each.rpartition("_")[2] not in AXES}
            assert not nameless, f"{function.name}: {sorted(nameless)} end in no axis; use one of {sorted(AXES)}"


def test_so_have_those_of_an_operand() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Strides"):
                fields = [
                    each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
                ]
                assert fields and all(field.rpartition("_")[2] in AXES for field in fields), f"{node.name}: {fields}"
