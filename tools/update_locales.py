"""English texts of the nodes out of tests/nodes/object_info.json, and what the other languages lack or have too much of.

    python tools/update_locales.py [--schemas]

Writes locales/en/nodeDefs.json and, in every language, the verdicts of the study's menu, deletes from the other languages what is
of nothing any more, and lists what is to be translated.
With --schemas it first writes object_info.json anew from the nodes, whose menus and texts follow the models' registry.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = ROOT / "tests" / "nodes" / "object_info.json"
Texts = dict[str, Any]


def english() -> Texts:
    """What the nodes say of themselves, in the form that ComfyUI's page reads."""
    nodes = json.loads(SCHEMAS.read_text(encoding="utf-8"))["nodes"]
    return {name: _node(info) for name, info in nodes.items()}


def _node(info: dict[str, Any]) -> Texts:
    inputs = {key: {"name": name, "tooltip": tooltip} for key, name, tooltip in _inputs(info["input"])}
    outputs = zip(info["output_name"], info["output_tooltips"] or [], strict=False)
    texts: Texts = {"display_name": info["display_name"], "description": info["description"]}
    texts |= {"inputs": inputs} if inputs else {}
    return texts | {"outputs": {str(at): {"name": name, "tooltip": tooltip} for at, (name, tooltip) in enumerate(outputs)}}


def _inputs(groups: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, name and tooltip of every input. The page knows `cache.preset` by the key `cache_preset`: dots separate keys."""
    for group in ("required", "optional"):
        for name, (kind, options) in groups.get(group, {}).items():
            yield prefix + name, options.get("display_name", name), options["tooltip"]
            if kind == "COMFY_DYNAMICCOMBO_V3":
                for option in options["options"]:
                    yield from _inputs(option["inputs"], f"{prefix}{name}_")


def keys(texts: Texts, prefix: str = "") -> set[str]:
    """Paths of all texts, such as QVGSampler/outputs/0/name."""
    found: set[str] = set()
    for key, value in texts.items():
        found |= keys(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key}
    return found


def _without(texts: Texts, unknown: set[str], prefix: str = "") -> Texts:
    kept = {
        key: _without(value, unknown, f"{prefix}{key}/") if isinstance(value, dict) else value for key, value in texts.items()
    }
    return {key: value for key, value in kept.items() if value != {} and prefix + key not in unknown}


def write_schemas() -> None:
    """What the nodes say of themselves over the tests' stand-in for ComfyUI, which tests/integration holds against a server."""
    importlib.import_module("bootstrap_package")  # names the package that is imported below
    standin = importlib.import_module("comfyui_qvg.tests.nodes.standin")
    sys.modules.update(standin.modules())
    nodes = importlib.import_module("comfyui_qvg.nodes").NODES
    known = json.loads(SCHEMAS.read_text(encoding="utf-8"))
    found = {node.define_schema().node_id: json.loads(json.dumps(standin.object_info(node))) for node in nodes}
    # Options stay in the order in which a server gave them where nothing is new.
    known["nodes"] = {name: known["nodes"][name] if known["nodes"].get(name) == info else info for name, info in found.items()}
    SCHEMAS.write_text(json.dumps(known, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write English, prune the others, list what they lack."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--schemas", action="store_true", help="write tests/nodes/object_info.json first")
    if options.parse_args().schemas:
        write_schemas()
    truth = english()
    for folder in sorted((ROOT / "locales").iterdir()):
        file = folder / "nodeDefs.json"
        texts = truth if folder.name == "en" else json.loads(file.read_text(encoding="utf-8"))
        texts = _without(texts, keys(texts) - keys(truth))
        if folder.name != "en":
            texts["QVGKVCache"]["inputs"]["cache_method"]["tooltip"] = importlib.import_module("verdict_texts").tooltip(
                folder.name
            )
        file.write_text(json.dumps(texts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        for key in sorted(keys(truth) - keys(texts)):
            print(f"{folder.name}: {key} is to be translated")


if __name__ == "__main__":
    main()
