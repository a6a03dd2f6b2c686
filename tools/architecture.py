"""The house in one picture: a mermaid graph of the rooms, and a table of what each does, made of the imports and the docstrings.

`tools/write_docs.py` puts both into docs/architecture.md.
"""

from __future__ import annotations

import ast
from pathlib import Path

import bootstrap_package  # noqa: F401  # names the package that is imported below
from comfyui_qvg.tests.imports import import_graph

ROOT = Path(__file__).resolve().parents[1]
FRONT = "__init__.py"
PUBLIC = "qvg/__init__.py"
# Files of qvg/ that are a way in; the others beside the rooms are words that everybody speaks.
PROGRAMS = ("qvg.cli", "qvg.convert")
SHARED = "qvg/*.py"
OUTSIDE = {
    FRONT: "What ComfyUI imports: `comfy_entrypoint` and the folder of the page's script.",
    PUBLIC: "Public names of the library.",
    SHARED: "Settings, errors, files, metrics: the words that all rooms speak.",
}


def room(module: str) -> str:
    """Which room of the house a module is in."""
    parts = module.split(".")
    if module in ("", "qvg"):
        return PUBLIC if module else FRONT
    if module in PROGRAMS:
        return f"{'/'.join(parts)}.py"
    if parts[0] != "qvg":
        return parts[0]
    return f"qvg/{parts[1]}" if (ROOT / "qvg" / parts[1]).is_dir() else SHARED


def rooms() -> dict[str, set[str]]:
    """Each room, and those whose files its own import."""
    found: dict[str, set[str]] = {}
    for module, targets in import_graph(ROOT).items():
        found.setdefault(room(module), set()).update(room(target) for target in targets)
    return {name: targets - {name} for name, targets in found.items()}


def beyond(name: str, graph: dict[str, set[str]]) -> set[str]:
    """All rooms that can be reached from one."""
    found: set[str] = set()
    waiting = list(graph[name])
    while waiting:
        following = waiting.pop()
        if following not in found:
            found.add(following)
            waiting.extend(graph[following])
    return found


def doors(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports between rooms, without those that a longer way says already."""
    return [
        (name, target)
        for name in sorted(graph)
        for target in sorted(graph[name])
        if not any(target in beyond(other, graph) for other in graph[name] - {target})
    ]


def picture() -> str:
    """A mermaid block, arrows from who imports to what is imported."""
    graph = rooms()
    names = {name: f"r{number}" for number, name in enumerate(sorted(graph))}
    lines = [f'    {names[name]}["{name}"]' for name in sorted(graph)]
    lines += [f"    {names[name]} --> {names[target]}" for name, target in doors(graph)]
    return "\n".join(["```mermaid", "flowchart LR", *lines, "```"])


def what(name: str) -> str:
    """The first sentence of a room's docstring."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    file = ROOT / name
    text = ast.get_docstring(ast.parse((file if file.is_file() else file / "__init__.py").read_text(encoding="utf-8")))
    assert text, f"{name} says nothing of itself"
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".:") + "."


def table() -> str:
    """A row per room, from the ways in to the bottom of the house."""
    graph = rooms()
    order = sorted(graph, key=lambda name: (-len(beyond(name, graph)), name))
    rows = ["| room | does |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{name}` | {what(name)} |" for name in order)])
