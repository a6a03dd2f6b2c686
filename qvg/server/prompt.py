"""A workflow in ComfyUI's API format: read, checked, and changed by `--set`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import ConfigError, shown
from ..file_names import same_file
from ..json_text import read_json
from .carried import MOST_FILE_BYTES, graphs, is_page_format, texts_of_media

Prompt = dict[str, dict[str, Any]]
MOST_DEPTH = 100
_NAME_ONE = "name a workflow saved in API format"


def load_prompt(path: Path) -> Prompt:
    """{id: {"class_type": str, "inputs": {name: value or [id, output]}, "_meta": {"title": str}}} for each node, out of a
    workflow in API format or of what carries one (`carried.py`). ConfigError."""
    data: Any = texts_of_media(path)
    carrier = data is not None
    if not carrier:
        data = _read(path)
    if isinstance(data, dict) and sum(isinstance(each, dict) and "prompt" in each for each in data.values()) > 1:
        raise ConfigError(f"{path} holds {len(data)} runs of a server's history; keep the entry of one")
    found = next(graphs(data), None)
    if found is None and is_page_format(data):
        raise ConfigError(_page_format(path))
    if found is None and carrier:
        raise ConfigError(f"{path} carries no workflow; name a picture or video as ComfyUI saved it, which other programs strip")
    found = data if found is None else found
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path} holds no nodes; a workflow in API format is an object with an entry for each node")
    for node, step in found.items():
        _check_node(path, found, node, step)
    return found


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise ConfigError(f"{path} has more than {MOST_FILE_BYTES >> 20} MiB, which no workflow has; {_NAME_ONE}")
        return read_json(path.read_text(encoding="utf-8-sig"))  # some editors put a mark in front
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); {_NAME_ONE}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file; {_NAME_ONE}, a .json file") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); save the workflow again in API format") from None


def _page_format(path: Path) -> str:
    """What to do with a workflow as the page saves it."""
    twin = path.parent / "api" / path.name
    way_out = f"its form for programs is {twin}" if twin.is_file() else "save it with Workflow > Export (API) in ComfyUI's page"
    return f"{path} is a workflow as ComfyUI's page saves it, and a server runs the API format only; {way_out}"


def _check_node(path: Path, data: dict[str, Any], node: str, step: Any) -> None:
    if not isinstance(step, dict) or not isinstance(step.get("class_type"), str) or not isinstance(step.get("inputs"), dict):
        rule = "every entry of a workflow in API format is a node with 'class_type' and 'inputs'"
        raise ConfigError(f"entry {shown(node)!r} of {path} is not a node; {rule}")
    for name, value in step["inputs"].items():
        if is_link(value) and str(value[0]) not in data:
            link = f"input {shown(name)!r} of {label(data, node)} is linked to node {shown(value[0])}"
            raise ConfigError(f"{link}, which {path} does not hold; link it to a node that is there, or give it a value")


def is_link(value: Any) -> bool:
    """Whether an input is another node's output: [node id, number of the output]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def title(prompt: Prompt, node: str) -> str:
    """A node's name for people: its title, or else its class. A node made while running has its maker's."""
    step = prompt.get(node) or prompt.get(node.split(".")[0]) or {}
    meta = step.get("_meta")
    given = meta.get("title") if isinstance(meta, dict) else None
    return str(given or step.get("class_type") or "")


def label(prompt: Prompt, node: str) -> str:
    """`node 3 (QVG Camera Path)`."""
    name = title(prompt, node)
    return f"node {shown(node)} ({shown(name)})" if name else f"node {shown(node)}"


def override(prompt: Prompt, setting: str) -> tuple[str, str]:
    """Apply `NODE.INPUT=VALUE`. -> (node id, input). ConfigError.

    NODE is an id, a title or a class. VALUE stays text where the file has text; elsewhere it is JSON if it can be read as such.
    """
    target, equals, text = setting.partition("=")
    if not equals or "." not in target:
        raise ConfigError(f"--set {shown(setting)!r} is not NODE.INPUT=VALUE; for example --set 3.frames=20")
    found = _targets(prompt, target)
    if not found:
        nodes = _listed([f"{node} ({title(prompt, node)})" for node in prompt])
        raise ConfigError(f"--set {shown(setting)!r} names no node of the workflow; its nodes are {nodes}")
    # A title may hold dots: `a.b.c` is input c of "a.b" if such a node has one, else input b.c of "a".
    known = [(node, name) for node, name in found if name in prompt[node]["inputs"]]
    chosen = known or found
    if len({node for node, _ in chosen}) > 1:
        several = _listed([node for node, _ in chosen])
        raise ConfigError(f"--set {shown(setting)!r} could be any of the nodes {several}; name one by its number")
    node, name = chosen[0]
    inputs = prompt[node]["inputs"]
    inputs[name] = text if isinstance(inputs.get(name), str) else _value(text)
    return node, name


def require_shallow(prompt: Prompt) -> None:
    """ConfigError for values in values in values without end: what is read may be too deep to be written again."""
    level: list[Any] = [prompt]
    for _ in range(MOST_DEPTH):
        level = [each for value in level for each in (value.values() if isinstance(value, dict) else value)]
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return
    raise ConfigError(
        f"the workflow has values more than {MOST_DEPTH} deep inside of one another, as no node's are; take them out"
    )


def _targets(prompt: Prompt, target: str) -> list[tuple[str, str]]:
    """Every (node id, input) that the left side of a setting can mean; an id outweighs titles and classes."""
    dots = [place for place, letter in enumerate(target) if letter == "."]
    splits = [(target[:place], target[place + 1 :]) for place in reversed(dots)]
    by_id = [(who, name) for who, name in splits if who in prompt and name]
    if by_id:
        return by_id
    return [
        (node, name)
        for who, name in splits
        for node, step in prompt.items()
        if name and who in (title(prompt, node), step["class_type"])
    ]


def _value(text: str) -> Any:
    try:
        return read_json(text)  # NaN and Infinity are not JSON, whatever Python says
    except ValueError:
        return text


def check_input(prompt: Prompt, node: str, name: str, info: Any) -> None:
    """ConfigError for an input that the node's class has not: a server ignores it silently. `info`: /object_info/CLASS."""
    about = info.get(prompt[node]["class_type"]) if isinstance(info, dict) else None
    if not isinstance(about, dict):
        return  # the server has no such class and will say so
    names, prefixes = _input_names(about.get("input"), "")
    if name in names or any(name.startswith(prefix) for prefix in prefixes):
        return
    raise ConfigError(f"{label(prompt, node)} has no input {shown(name)!r}; it has {_listed(names)}")


def named_files(prompt: Prompt) -> list[str]:
    """Classes of nodes with inputs that may name a file in a folder."""
    return sorted({step["class_type"] for step in prompt.values() if any(map(_may_name_a_file, step["inputs"].values()))})


def use_listed_names(prompt: Prompt, kind: str, info: Any) -> None:
    """Give the files that nodes of class `kind` name the separators that this server lists them with. `info`:
    /object_info/CLASS."""
    inputs = _about_inputs(info.get(kind) if isinstance(info, dict) else None)
    for step in (step for step in prompt.values() if step["class_type"] == kind):
        for name, value in step["inputs"].items():
            if _may_name_a_file(value) and (listed := same_file(value, _choices(inputs.get(name)))) is not None:
                step["inputs"][name] = listed


def _may_name_a_file(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[^\r\n]*[/\\][^/\\\r\n]*\.\w+", value) is not None


def _about_inputs(about: Any) -> dict[str, Any]:
    """What is said of each input of a class."""
    groups = about.get("input") if isinstance(about, dict) else None
    found = [groups.get(group) for group in ("required", "optional")] if isinstance(groups, dict) else []
    return {name: declared for group in found if isinstance(group, dict) for name, declared in group.items()}


def _choices(declared: Any) -> list[str]:
    """What a combo box offers, declared in the old way or the new."""
    if not isinstance(declared, (list, tuple)) or not declared:
        return []
    options = declared[1].get("options") if len(declared) > 1 and isinstance(declared[1], dict) else None
    listed = declared[0] if isinstance(declared[0], list) else options
    return [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []


def _input_names(inputs: Any, prefix: str, depth: int = 8) -> tuple[list[str], list[str]]:
    """(names, beginnings of names that are made while editing) of a class's inputs, those inside of dynamic combos dotted."""
    names, prefixes = dict[str, None](), list[str]()  # in order, each once
    for name, declared in _about_inputs({"input": inputs}).items():
        kind, *options = declared if isinstance(declared, list) and declared else (None,)
        names[prefix + name] = None
        if kind == "COMFY_DYNAMICCOMBO_V3":
            offered = options[0].get("options") if options and isinstance(options[0], dict) else None
            for choice in offered if isinstance(offered, list) and depth else ():
                inner, more = _input_names(
                    choice.get("inputs") if isinstance(choice, dict) else None, f"{prefix}{name}.", depth - 1
                )
                names |= dict.fromkeys(inner)
                prefixes += more
        elif isinstance(kind, str) and kind.startswith("COMFY_"):
            prefixes.append(f"{prefix}{name}.")
    return list(names), prefixes


def _listed(names: list[str], most: int = 60) -> str:
    """Names for a sentence; of very many, the first."""
    return ", ".join([*(shown(name) for name in names[:most]), *(["..."] if len(names) > most else [])]) or "none"
