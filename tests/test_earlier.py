"""What people have from an earlier version still works: saved caches, workflows, and what programs know of the nodes."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg.session import load_cache, save_cache
from safetensors.torch import load_file

from .earlier import CACHES, EARLIER, ROPE, SAVED, SPEC, attended, configs, saved_after
from .helpers import assert_close
from .nodes import standin

WORKFLOWS = EARLIER / "workflows"
# Keys and values are random and no sum is long: another machine's float32 differs in the last bits.
SAME_SUM = 1e-5


@pytest.mark.parametrize(("version", "kind"), SAVED)
def test_a_cache_goes_on(version: int, kind: str) -> None:
    cache = load_cache(CACHES[version] / f"{kind}.safetensors", ROPE)
    assert (cache.spec, cache.config, cache.frames_committed) == (SPEC, configs(version)[kind], saved_after(kind))
    stored = load_file(CACHES[version] / "read.safetensors")[kind]
    assert_close(kind, stored, attended(cache, range(saved_after(kind), saved_after(kind) + 1)), SAME_SUM)
    assert attended(cache, range(saved_after(kind) + 1, saved_after(kind) + 8)).isfinite().all()
    assert cache.frames_committed == saved_after(kind) + 8


@pytest.mark.parametrize(("version", "kind"), SAVED)
def test_a_cache_is_saved_as_it_was(version: int, kind: str, tmp_path: Path) -> None:
    """The same tensors; a basis has a name of its own since version 2 of the format."""
    file = CACHES[version] / f"{kind}.safetensors"
    save_cache(load_cache(file), tmp_path / "again.safetensors")
    before, again = load_file(file), load_file(tmp_path / "again.safetensors")
    renamed = {re.sub(r"^basis\.", "codebook.", name) if version == 1 else name: each for name, each in again.items()}
    assert before.keys() == renamed.keys()
    assert all(torch.equal(tensor, renamed[name]) for name, tensor in before.items())
    assert load_cache(tmp_path / "again.safetensors").nbytes() == load_cache(file).nbytes()


@pytest.fixture(scope="module")
def schemas() -> Any:
    """What a server says of each node now."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in standin.modules().items():
            patch.setitem(sys.modules, name, module)
        nodes = importlib.import_module("comfyui_qvg.nodes")
        yield {node.__name__: json.loads(json.dumps(standin.object_info(node))) for node in nodes.NODES}
        for name in [name for name in sys.modules if name.startswith("comfyui_qvg.nodes")]:
            del sys.modules[name]


def test_nodes_keep_their_inputs(schemas: Any) -> None:
    """The same ids in the same places, of the same kinds, and nothing that must be given and was not."""
    for name, before in json.loads((EARLIER / "object_info.json").read_text(encoding="utf-8"))["nodes"].items():
        now = schemas[name]
        for group in before["input"]:
            order = before["input_order"][group]
            assert list(now["input"][group])[: len(order)] == order, name
            kinds = {each: before["input"][group][each][0] for each in order}
            assert {each: now["input"][group][each][0] for each in order} == kinds, name
        assert list(now["input"].get("required", {})) == before["input_order"].get("required", []), name
        assert now["output"][: len(before["output"])] == before["output"], name


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("api/*.json")), ids=lambda file: file.stem)
def test_programs_ask_for_what_there_is(schemas: Any, file: Path) -> None:
    for step in json.loads(file.read_text(encoding="utf-8")).values():
        if step["class_type"] in schemas:
            given = {name.split(".")[0]: value for name, value in step["inputs"].items()}
            inputs = {name: each for group in schemas[step["class_type"]]["input"].values() for name, each in group.items()}
            assert given.keys() <= inputs.keys()
            for name, value in given.items():
                options = inputs[name][1].get("options") if len(inputs[name]) > 1 else None
                if inputs[name][0] == "COMBO" and options and not isinstance(value, list):
                    assert value in options, f"{file.stem}: {step['class_type']}.{name}"


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("*.json")), ids=lambda file: file.stem)
def test_graphs_of_the_page_open(schemas: Any, file: Path) -> None:
    """Widgets are saved by position: no more values than there are widgets, each of its widget's kind."""
    ours = [node for node in json.loads(file.read_text(encoding="utf-8"))["nodes"] if node["type"].startswith("QVG")]
    assert ours
    for node in ours:
        inputs = {name for group in schemas[node["type"]]["input"].values() for name in group}
        assert {each["name"].split(".")[0] for each in node["inputs"]} <= inputs, f"{file.stem}: {node['type']}"
