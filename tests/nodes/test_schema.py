"""Ids, order and kinds of widgets are for ever: workflows store them."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads(Path(__file__).with_name("object_info.json").read_text(encoding="utf-8"))


def test_schemas_are_as_a_real_server_saw_them(nodes: Any, standin: Any) -> None:
    found = {node.define_schema().node_id: standin.object_info(node) for node in nodes.NODES}
    assert json.loads(json.dumps(found)) == GOLDEN["nodes"]
    for name, info in found.items():
        # == does not look at the order of a dict, and saved widgets have nothing but their order.
        assert {group: list(names) for group, names in info["input"].items()} == GOLDEN["nodes"][name]["input_order"]


def test_golden_file_names_its_server() -> None:
    assert GOLDEN["comfyui_version"].count(".") == 2


def _all_inputs(inputs: Any) -> list[Any]:
    nested = [part for each in inputs for option in each.options.get("options", []) for part in getattr(option, "inputs", [])]
    return [*inputs, *nested]


def test_every_input_and_output_has_a_tooltip(nodes: Any) -> None:
    for node in nodes.NODES:
        schema = node.define_schema()
        bare = [each.id for each in _all_inputs(schema.inputs) if not each.options.get("tooltip")]
        assert bare == [] and all(output.tooltip for output in schema.outputs) and schema.description


def test_execute_takes_what_the_schema_names(nodes: Any) -> None:
    for node in nodes.NODES:
        assert set(inspect.signature(node.execute).parameters) == {each.id for each in node.define_schema().inputs}


def test_what_may_be_left_out_has_a_default(nodes: Any) -> None:
    """And it is the widget's; a link that may be left out is None."""
    for node in nodes.NODES:
        given = inspect.signature(node.execute).parameters
        for each in node.define_schema().inputs:
            if each.optional:
                assert given[each.id].default == each.options.get("default")


def test_ids_are_literal_and_ours(nodes: Any) -> None:
    """Tools that scan packs without running them read `node_id="..."` in the source."""
    literal = {
        keyword.value.value
        for file in (ROOT / "nodes").glob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "node_id" and isinstance(keyword.value, ast.Constant)
    }
    assert literal == {node.define_schema().node_id for node in nodes.NODES}
    assert all(name.startswith("QVG") for name in literal)
    assert {node.__name__ for node in nodes.NODES} == literal


def test_every_node_has_help(nodes: Any) -> None:
    for node in nodes.NODES:
        assert (ROOT / "web" / "docs" / f"{node.__name__}.md").is_file()


def test_importing_the_nodes_does_not_import_comfyui(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "comfy" not in sys.modules
    for name in [name for name in sys.modules if name.startswith("comfyui_qvg.nodes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "folder_paths")
    __import__("comfyui_qvg.nodes")
    assert "comfy" not in sys.modules and "folder_paths" not in sys.modules


def test_an_old_comfyui_is_named(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["comfy_api.latest"], "InputImpl")
    monkeypatch.delitem(sys.modules, "comfyui_qvg.nodes.api")
    with pytest.raises(ImportError, match=r"needs ComfyUI 0\.21 or newer"):
        __import__("comfyui_qvg.nodes.api")


def test_workflows_use_what_the_nodes_have(nodes: Any) -> None:
    schemas = {node.__name__: node.define_schema() for node in nodes.NODES}
    files = list((ROOT / "workflows" / "api").glob("*.json"))
    assert files
    for file in files:
        for step in json.loads(file.read_text(encoding="utf-8")).values():
            if step["class_type"] in schemas:
                inputs = schemas[step["class_type"]].inputs
                names = {name.split(".")[0] for name in step["inputs"]}
                assert {each.id for each in inputs if not each.optional} <= names <= {each.id for each in inputs}


# The page saves the values of widgets by position, those of the chosen option in between: one more in an option would move all
# that follow in every workflow that was ever saved. More options are welcome; add them here.
OPTIONS: dict[str, dict[str, list[tuple[str, str]]]] = {
    "QVGKVCache.cache": {
        "preset": [("preset", "COMBO")],
        "custom": [("bits", "COMBO"), ("num_stages", "INT"), ("clusters", "INT"), ("group_size", "COMBO")],
        "exact": [],
    },
}


def test_what_an_option_asks_for_never_changes(nodes: Any) -> None:
    found = {
        f"{node.__name__}.{each.id}": {
            option.key: [(part.id, part.kind) for part in option.inputs] for option in each.options["options"]
        }
        for node in nodes.NODES
        for each in node.define_schema().inputs
        if each.kind == "COMFY_DYNAMICCOMBO_V3"
    }
    assert found.keys() == OPTIONS.keys()
    for name, options in OPTIONS.items():
        assert {key: found[name].get(key) for key in options} == options


def test_every_workflow_has_a_program_form_and_a_thumbnail() -> None:
    for file in (ROOT / "workflows").glob("*.json"):
        assert file.with_suffix(".jpg").is_file() and (file.parent / "api" / file.name).is_file()
