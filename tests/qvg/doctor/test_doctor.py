"""`qvg doctor`: what it reads out of the nodes' sources is what they use, and what a ComfyUI lacks is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.doctor.sources import Sources
from comfyui_qvg.qvg.doctor.touch_points import TouchPoint, missing, touch_points


def write(folder: Path, **files: str) -> Path:
    """Python files, by dotted name."""
    for name, text in files.items():
        file = folder.joinpath(*name.split("__")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


def test_names_are_found_wherever_a_module_binds_them(tmp_path: Path) -> None:
    sources = Sources(
        write(
            tmp_path,
            comfy__a="def f(): inner = 1\nclass C: pass\n"
            "if True:\n    x = 1\nelse:\n    y: int = 2\ntry:\n    import comfy.b as b\n"
            "except ImportError:\n    b = None\nfrom .b import g as h\nfrom comfy.c import *\nfrom torch import nn\n",
            comfy__b="from .a import f\ng = 1",
            comfy__c="p, (q, r) = 1, (2, 3)\nfrom .a import loop\n",
        )
    )
    there = ["f", "C", "C.anything", "x", "y", "b", "b.g", "b.f", "h", "p", "q", "r", "nn", "nn.Module"]
    gone = ["inner", "z", "b.q", "loop"]
    assert [name for name in there if not sources.has("comfy.a", tuple(name.split(".")))] == []
    assert [name for name in gone if sources.has("comfy.a", tuple(name.split(".")))] == []
    assert sources.has("comfy") and sources.has("comfy", ("a", "f")) and not sources.has("comfy", ("d",))
    assert not sources.has("comfy.d") and not sources.has("comfy.d", ("x",))


def test_what_the_nodes_use_is_read_out_of_them(tmp_path: Path) -> None:
    pack = write(
        tmp_path,
        nodes__one="import comfy.utils\nimport torch\n"
        "import comfy.model_management as mm\nmm.load(torch.ones(1))\ncomfy.utils.bar()",
        nodes__two="try:\n    from server import PromptServer\nexcept ImportError:\n    pass\nfrom ..qvg import KVCache\n",
    )
    found = touch_points(pack)
    assert {point.name: point.optional for point in found} == {
        "comfy.model_management.load": False,
        "comfy.utils": False,
        "comfy.utils.bar": False,
        "server.PromptServer": True,
    }
    comfyui = write(tmp_path / "comfyui", comfy__utils="def bar(): ...", comfy__model_management="", main="")
    assert missing(comfyui, pack) == [
        TouchPoint("comfy.model_management", ("load",), "nodes/one.py"),
        TouchPoint("server", ("PromptServer",), "nodes/two.py", True),
    ]


def test_the_nodes_themselves() -> None:
    found = {point.name: point for point in touch_points()}
    assert {"comfy_api.latest.io", "comfy.model_management.throw_exception_if_processing_interrupted"} <= found.keys()
    assert len(found) > 60 and found["server.PromptServer"].optional and not found["comfy_api.latest.io"].optional


def test_the_command_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comfyui = write(tmp_path, main="", comfyui_version='__version__ = "9.8.7"', comfy__utils="ProgressBar = 1")
    assert main(["doctor", "--comfyui", str(comfyui)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("ComfyUI 9.8.7, ") and "comfy.utils.ProgressBar" not in said
    assert "  comfy_api.latest.io: missing (nodes/api.py)" in said and "server.PromptServer: not there, done without" in said
    assert main(["doctor", "--comfyui", str(comfyui), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["comfyui"] == "9.8.7" and len(told["missing"]) < told["touch_points"]


def test_no_comfyui_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--comfyui", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert "no ComfyUI folder (one with main.py and comfy/)" in error and error.count("\n") == 1
