"""As much of `comfy_api.latest` as our nodes use, so that their schemas can be looked at without ComfyUI.

`object_info` gives what a server's /object_info says of a node, less what depends on the server; `tests/integration` holds both
against the same golden file, so a stand-in that is wrong about ComfyUI is found out where there is one.
"""

from __future__ import annotations

import copy
import types
from typing import Any

# Inputs that list files, and what they list on a server that has none.
FILE_LISTS: dict[tuple[str, str], list[str]] = {
    ("QVGLoadCausalWan", "file"): [],
    ("QVGLoadCausalWan", "lora"): ["none"],
    ("QVGLoadLongCat", "file"): [],
    ("QVGLoadLongCat", "lora"): ["none"],
    ("QVGLoadWorldPlay", "file"): [],
    ("QVGLoadCameraWorld", "file"): [],
}
COMPARED = (
    "input",
    "input_order",
    "output",
    "output_is_list",
    "output_name",
    "output_tooltips",
    "name",
    "display_name",
    "category",
    "description",
    "output_node",
    "search_aliases",
)


def _pruned(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


class Input:
    kind = ""

    def __init__(self, id: str, optional: bool = False, **options: Any):
        self.id, self.optional, self.options = id, optional, _pruned(options)

    def info(self) -> list[Any]:
        return [self.kind, self.options]


class Output:
    kind = ""

    def __init__(self, display_name: str | None = None, tooltip: str | None = None, is_output_list: bool = False):
        self.display_name, self.tooltip, self.is_output_list = display_name or self.kind, tooltip, is_output_list


def _type(kind: str, base: type = Input) -> Any:
    inputs, outputs = (type(name, (parent,), {"kind": kind}) for name, parent in (("Input", base), ("Output", Output)))
    return types.SimpleNamespace(Input=inputs, Output=outputs)


class _ComboInput(Input):
    def info(self) -> list[Any]:
        return [self.kind, {"multiselect": False, **self.options}]


class _StringInput(Input):
    def info(self) -> list[Any]:
        return [self.kind, {"multiline": False, **self.options}]


class _Option:
    def __init__(self, key: str, inputs: list[Input]):
        self.key, self.inputs = key, inputs

    def info(self) -> dict[str, Any]:
        return {"key": self.key, "inputs": _inputs(self.inputs)}


class _DynamicInput(Input):
    def info(self) -> list[Any]:
        return [self.kind, {**self.options, "options": [option.info() for option in self.options["options"]]}]


class Schema:
    """`io.Schema`; an unknown argument is an error here too."""

    def __init__(
        self,
        node_id: str,
        display_name: str,
        category: str,
        inputs: list[Input],
        outputs: list[Output],
        description: str = "",
        search_aliases: list[str] | None = None,
        is_output_node: bool = False,
        hidden: list[str] | None = None,
    ):
        self.node_id, self.display_name, self.category, self.description = node_id, display_name, category, description
        self.inputs, self.outputs, self.search_aliases, self.is_output_node = inputs, outputs, search_aliases, is_output_node
        self.hidden = hidden or []


class ComfyNode:
    """`io.ComfyNode`."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return _inputs(cls.define_schema().inputs)  # type: ignore[attr-defined]  # every node has one


class NodeOutput:
    """`io.NodeOutput`."""

    def __init__(self, *args: Any, ui: Any = None):
        self.args, self.ui = args, ui


class _PreviewImage:
    def __init__(self, image: Any, cls: Any = None):
        self.image = image

    def as_dict(self) -> dict[str, Any]:
        return {"images": [tuple(self.image.shape)], "animated": (False,)}


class _PreviewText:
    def __init__(self, value: str):
        self.value = value

    def as_dict(self) -> dict[str, Any]:
        return {"text": (self.value,)}


def _inputs(inputs: list[Input]) -> dict[str, Any]:
    found: dict[str, Any] = {"required": {}}
    for each in inputs:
        found.setdefault("optional" if each.optional else "required", {})[each.id] = each.info()
    return found


def object_info(node: Any) -> dict[str, Any]:
    """What a server would say of this node, as far as COMPARED."""
    schema = node.define_schema()
    inputs = _inputs(schema.inputs)
    if schema.is_output_node:
        inputs["hidden"] = {"prompt": ["PROMPT"], "extra_pnginfo": ["EXTRA_PNGINFO"]}
    return {
        "input": inputs,
        "input_order": {group: list(names) for group, names in inputs.items()},
        "output": [output.kind for output in schema.outputs],
        "output_is_list": [output.is_output_list for output in schema.outputs],
        "output_name": [output.display_name for output in schema.outputs],
        "output_tooltips": [output.tooltip for output in schema.outputs],
        "name": schema.node_id,
        "display_name": schema.display_name,
        "category": schema.category,
        "description": schema.description,
        "output_node": schema.is_output_node,
        "search_aliases": schema.search_aliases,
    }


def without_files(name: str, info: dict[str, Any]) -> dict[str, Any]:
    """What a server says of a node, as if there were no files."""
    info = copy.deepcopy(info)
    for inputs in info["input"].values():
        for key, declared in inputs.items():
            if (name, key) in FILE_LISTS:
                options = declared[1]["options"]
                declared[1]["options"] = [option for option in options if option in FILE_LISTS[name, key]]
    return info


def modules() -> dict[str, types.ModuleType]:
    """What to put into sys.modules."""
    api, latest = types.ModuleType("comfy_api"), types.ModuleType("comfy_api.latest")
    plain = {"Int": "INT", "Float": "FLOAT", "Boolean": "BOOLEAN"}
    links = ("Model", "Vae", "Latent", "Image", "Video", "Conditioning", "Sampler", "Sigmas")
    io = types.SimpleNamespace(
        Schema=Schema,
        ComfyNode=ComfyNode,
        NodeOutput=NodeOutput,
        Custom=_type,
        Hidden=types.SimpleNamespace(prompt="PROMPT", extra_pnginfo="EXTRA_PNGINFO"),
        Combo=_type("COMBO", _ComboInput),
        String=_type("STRING", _StringInput),
        DynamicCombo=types.SimpleNamespace(**vars(_type("COMFY_DYNAMICCOMBO_V3", _DynamicInput)), Option=_Option),
        **{name: _type(kind) for name, kind in plain.items()},
        **{name: _type(name.upper()) for name in links},
    )
    video = types.SimpleNamespace(VideoFromComponents=lambda components: components)
    latest.__dict__.update(
        io=io,
        ui=types.SimpleNamespace(PreviewImage=_PreviewImage, PreviewText=_PreviewText),
        ComfyExtension=object,
        InputImpl=video,
        Types=types.SimpleNamespace(VideoComponents=types.SimpleNamespace),
    )
    folders = types.ModuleType("folder_paths")
    folders.__dict__.update(get_filename_list=lambda folder: [], get_folder_paths=lambda folder: [])
    return {"comfy_api": api, "comfy_api.latest": latest, "folder_paths": folders}
