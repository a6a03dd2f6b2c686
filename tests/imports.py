"""Who imports whom, read with `ast`, also inside functions; nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def module_name(file: Path, root: Path) -> str:
    """`qvg/codec/__init__.py` -> "qvg.codec"; the root's own __init__ -> ""."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exists(name: str, root: Path) -> bool:
    """Whether `name` is a module or package under root."""
    path = root.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(file: Path, root: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, module, whether it is ours) of every import in a file. Ours are named relative to the root."""
    name = module_name(file, root)
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or "", False
        elif isinstance(node, ast.ImportFrom):
            if node.level - 1 > len(package):
                yield node.lineno, "above the root", True
                continue
            base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield node.lineno, whole if exists(whole, root) else ".".join(base), True
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            target = node.args[0].value
            if called in ("import_module", "__import__") and isinstance(target, str) and not target.startswith("."):
                yield node.lineno, target, False


def import_graph(root: Path) -> dict[str, set[str]]:
    """Which file imports which, by names of modules: also where only a type checker does so, and inside functions. A package's
    `__init__` counts where names are taken from it. The adapters that `nodes.comfy.attach` imports by name are the registry's."""
    folders = (root / name for name in ("nodes", "qvg", "kernels"))
    files = [root / "__init__.py", *(file for folder in folders for file in sorted(folder.rglob("*.py")))]
    found = {module_name(file, root): imports(file, root) for file in files if file.is_file()}
    graph = {name: {target for _, target, ours in lines if ours} for name, lines in found.items()}
    adapters = {name for name in graph if name.startswith("nodes.comfy.") and name.endswith("adapter")}
    graph.get("nodes.comfy.attach", set()).update(adapters)
    return {name: {target for target in targets if target in graph and target != name} for name, targets in graph.items()}
