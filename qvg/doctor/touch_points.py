"""What the nodes use of ComfyUI, read out of their own sources, so that the list is never behind."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from .sources import Sources

# Top-level modules of a ComfyUI folder.
COMFYUI = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "node_helpers", "nodes", "server")
PACK = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, order=True)
class TouchPoint:
    """`module.a.b`, the first of our files that uses it, and whether we go on without it."""

    module: str
    chain: tuple[str, ...]
    used_in: str
    optional: bool = False

    @property
    def name(self) -> str:
        """As one writes it."""
        return ".".join((self.module, *self.chain))


def touch_points(pack: Path = PACK) -> list[TouchPoint]:
    """All of them, by name."""
    found: dict[str, TouchPoint] = {}
    for file in sorted((pack / "nodes").rglob("*.py")):
        for point in _of_file(file, file.relative_to(pack).as_posix()):
            known = found.get(point.name)
            # Needed in one place is needed.
            if known is None or (known.optional and not point.optional):
                found[point.name] = point
    return sorted(found.values())


def _of_file(file: Path, name: str) -> list[TouchPoint]:
    tree = ast.parse(file.read_bytes())
    tried = {id(each) for node in ast.walk(tree) if isinstance(node, ast.Try) for part in node.body for each in ast.walk(part)}
    needed = file.name == "api.py"  # whose `try` says in a sentence that ComfyUI is too old
    aliases: dict[str, tuple[str, ...]] = {}
    points: list[TouchPoint] = []
    for node in ast.walk(tree):
        for alias, path in _imported(node):
            aliases[alias] = path
            if not isinstance(node, ast.Import):
                points.append(TouchPoint(path[0], path[1:], name, id(node) in tried and not needed))
    for node in ast.walk(tree):
        chain = _chain(node)
        if len(chain) > 1 and chain[0] in aliases:
            path = (*aliases[chain[0]], *chain[1:])
            points.append(TouchPoint(path[0], path[1:], name, id(node) in tried))
    return points


def _imported(node: ast.AST) -> list[tuple[str, tuple[str, ...]]]:
    if isinstance(node, ast.Import):
        return [
            (each.asname, (each.name,)) if each.asname else (each.name.partition(".")[0], (each.name.partition(".")[0],))
            for each in node.names
            if each.name.partition(".")[0] in COMFYUI
        ]
    if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] in COMFYUI:
        return [(each.asname or each.name, (node.module or "", each.name)) for each in node.names]
    return []


def _chain(node: ast.AST) -> tuple[str, ...]:
    """a.b.c -> its names; anything else: none."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        before = _chain(node.value)
        return (*before, node.attr) if before else ()
    return ()


def missing(comfyui: Path, pack: Path = PACK) -> list[TouchPoint]:
    """Those that the ComfyUI in this folder does not have."""
    sources = Sources(comfyui)
    return [point for point in touch_points(pack) if not sources.has(point.module, point.chain)]
