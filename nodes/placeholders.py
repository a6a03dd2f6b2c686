"""What a file name's `%...%` stand for: the date, and what is typed into other nodes, as the page fills them in for core's nodes.

Programs and linked names do not come by way of the page, so this is done on the server too. %width%, %year% and so on are
ComfyUI's own and left to it. Knows nothing of ComfyUI.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

_PLACEHOLDER = re.compile(r"%([^%]+)%")
_DATE = "date:"
_DATE_PART = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
# The name by which the page finds a node, if it was given another one than its class.
_SEARCHED_BY = "Node name for S&R"
# Of a value, letters that would make a folder of it, or that a disk refuses.
_REFUSED = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')


def filled(text: str, prompt: Any, workflow: Any, now: datetime) -> str:
    """`text` with %date:yyyy-MM-dd% and %Node.input% filled in; what names nothing stays as it is.

    prompt: the workflow as it is run, {id: {"class_type", "inputs", "_meta"}}; workflow: as the page saves it, or None.
    """

    def put_in(found: re.Match[str]) -> str:
        value = _value(found[1], prompt, workflow, now)
        return found[0] if value is None else value

    return _PLACEHOLDER.sub(put_in, text)


def _value(name: str, prompt: Any, workflow: Any, now: datetime) -> str | None:
    if name.startswith(_DATE):
        return _DATE_PART.sub(lambda part: _of_date(part[0], now), name[len(_DATE) :])
    node, dot, widget = name.partition(".")
    if not dot or "." in widget:
        return None
    names = list(_named(prompt, workflow))
    # As on the page: first by the name that a node is searched by, then by its title.
    for which in (0, 1):
        inputs = next((inputs for *called, inputs in names if called[which] == node), None)
        if inputs is not None:
            return _text(inputs[widget]) if widget in inputs and not isinstance(inputs[widget], list) else None
    return None


def _named(prompt: Any, workflow: Any) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Name to be searched by, title, and inputs of every node."""
    # Of a node in a subgraph, 5:3, the page's number is the last; another node, of another class, may have it too.
    on_page = {(str(node.get("id")), node.get("type")): node for node in _nodes(workflow)}
    for key, step in prompt.items() if isinstance(prompt, dict) else ():
        if not isinstance(step, dict) or not isinstance(step.get("inputs"), dict):
            continue
        node = on_page.get((str(key).rpartition(":")[2], step.get("class_type")), {})
        properties, meta = node.get("properties"), step.get("_meta")
        searched = properties.get(_SEARCHED_BY) if isinstance(properties, dict) else None
        title = meta.get("title") if isinstance(meta, dict) else node.get("title")
        yield str(searched or step.get("class_type")), str(title), step["inputs"]


def _nodes(workflow: Any) -> Iterator[dict[str, Any]]:
    """Of a graph and of the subgraphs in it."""
    if not isinstance(workflow, dict):
        return
    definitions = workflow.get("definitions")
    inside = definitions.get("subgraphs") if isinstance(definitions, dict) else None
    for graph in (*(inside if isinstance(inside, list) else ()), workflow):
        nodes = graph.get("nodes") if isinstance(graph, dict) else None
        yield from (node for node in (nodes if isinstance(nodes, list) else ()) if isinstance(node, dict))


def _text(value: Any) -> str:
    """As the page writes it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _REFUSED.sub("_", str(value))


def _of_date(part: str, now: datetime) -> str:
    if part[0] == "y":
        return {2: f"{now.year}"[2:], 3: part, 4: f"{now.year}"}[len(part)]
    number = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}[part[0]]
    return f"{number:0{len(part)}}"
