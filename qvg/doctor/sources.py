"""What a folder of Python sources defines, found by reading them."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Name:
    """What a module binds a name to: another module's name (`module`, `attribute`), or something of its own (None)."""

    module: str | None = None
    attribute: str | None = None


@dataclass
class Sources:
    """Modules below `root`, by dotted name; each is parsed once."""

    root: Path
    _known: dict[str, dict[str, Name] | None] = field(default_factory=dict)

    def file(self, module: str) -> Path | None:
        """Where a module is, or None."""
        path = self.root.joinpath(*module.split("."))
        return next((each for each in (path / "__init__.py", path.with_suffix(".py")) if each.is_file()), None)

    def has(self, module: str, chain: tuple[str, ...] = ()) -> bool:
        """Whether `module.a.b` is there. What is no module is not looked into: an attribute of a class may come from anywhere."""
        if self.file(module) is None:  # a folder without __init__.py, such as `comfy`, or nothing
            is_folder = self.root.joinpath(*module.split(".")).is_dir()
            return is_folder and (not chain or self.has(f"{module}.{chain[0]}", chain[1:]))
        return not chain or self._resolves(module, chain, frozenset())

    def _resolves(self, module: str, chain: tuple[str, ...], seen: frozenset[tuple[str, str]]) -> bool:
        first, rest = chain[0], chain[1:]
        if (module, first) in seen:
            return False
        names = self._names(module)
        found = names.get(first)
        if found is None:
            inner = f"{module}.{first}"
            if self.file(inner) is not None or self.root.joinpath(*inner.split(".")).is_dir():
                return not rest or self.has(inner, rest)
            stars = [each.module for key, each in names.items() if key.startswith("*") and each.module]
            return any(self._resolves(star, chain, seen | {(module, first)}) for star in stars if self.file(star))
        if found.module is None or (self.file(found.module) is None and found.attribute is not None):
            return True  # its own, or from a package that is not part of this folder
        if found.attribute is None:
            return self.has(found.module, rest)
        return self._resolves(found.module, (found.attribute, *rest), seen | {(module, first)})

    def _names(self, module: str) -> dict[str, Name]:
        if module not in self._known:
            file = self.file(module)
            names: dict[str, Name] = {}
            if file is not None:
                package = module if file.name == "__init__.py" else module.rpartition(".")[0]
                for node in _statements(ast.parse(file.read_bytes())):
                    names = _bound(node, package) | names  # the first: what stands in for it in an `except` is less
            self._known[module] = names
        return self._known[module] or {}


def _statements(tree: ast.AST) -> list[ast.stmt]:
    """All that run when a module is imported: those within functions and classes do not bind a name of it."""
    found: list[ast.stmt] = []
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.stmt):
            found.append(child)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found += _statements(child)
    return found


def _bound(node: ast.stmt, package: str) -> dict[str, Name]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name: Name()}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {each.id: Name() for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    if isinstance(node, ast.Import):
        return {each.asname: Name(each.name) for each in node.names if each.asname} | {
            each.name.partition(".")[0]: Name(each.name.partition(".")[0]) for each in node.names if not each.asname
        }
    if isinstance(node, ast.ImportFrom):
        module = absolute(node, package)
        return {
            f"*{module}" if each.name == "*" else each.asname or each.name: Name(module, None if each.name == "*" else each.name)
            for each in node.names
        }
    return {}


def absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that a `from ... import` names, dots resolved."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    above = parts[: len(parts) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])
