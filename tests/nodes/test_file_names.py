"""Names of files that nodes are given: of models, in the way of any system, and of videos, filled in and known to fit."""

from __future__ import annotations

import importlib
import json
import os
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from comfyui_qvg.qvg import ConfigError

NOW = datetime(2026, 3, 7, 4, 5, 9)
PROMPT = {
    "3": {"class_type": "QVGVideoStart", "inputs": {"width": 832, "seed": 7, "model": ["1", 0]}, "_meta": {"title": "Start"}},
    "4": {"class_type": "KSampler", "inputs": {"seed": 5, "cfg": 1.0, "on": True, "text": 'a/b:c*"d"\n', "none": None}},
    "5:6": {"class_type": "KSampler", "inputs": {"seed": 6}, "_meta": {"title": "Inner"}},
    "7": "broken",
}
WORKFLOW = {
    "nodes": [{"id": 3, "type": "QVGVideoStart", "properties": {"Node name for S&R": "Begin"}}, "broken"],
    "definitions": {"subgraphs": [{"nodes": [{"id": 6, "type": "KSampler", "properties": {"Node name for S&R": "Deep"}}]}]},
}


def comfy(name: str) -> Any:
    return importlib.import_module(f"comfyui_qvg.nodes.comfy.{name}")


@pytest.fixture
def folders(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """ComfyUI's folders as a test wants them: files by folder; the output folder is `tmp_path`/output."""
    (tmp_path / "output").mkdir()
    listed: dict[str, list[str]] = {"diffusion_models": [], "loras": []}
    fake = SimpleNamespace(
        get_output_directory=lambda: str(tmp_path / "output"),
        get_filename_list=lambda folder: listed[folder],
        get_full_path_or_raise=lambda folder, name: f"/{folder}/{name}",
    )
    for name in ("files", "output_names"):
        monkeypatch.setattr(comfy(name), "folder_paths", fake)
    return listed


def offered(node: Any, name: str) -> Any:
    """What a combo box of a node offers, as ComfyUI checks choices against it."""
    return next(each for each in node.define_schema().inputs if each.id == name).options["options"]


@pytest.mark.parametrize("chosen", ["world/model.pt", "world\\model.pt"])
@pytest.mark.parametrize("listed", ["world/model.pt", "world\\model.pt"])
def test_a_listed_file_is_chosen_in_the_way_of_any_system(nodes: Any, folders: Any, chosen: str, listed: str) -> None:
    folders["diffusion_models"], folders["loras"] = [listed], [listed]
    worldplay, causal = nodes.world.QVGLoadWorldPlay, nodes.causal_loaders.QVGLoadCausalWan
    lists = [offered(worldplay, "file"), offered(causal, "file"), offered(causal, "lora")]
    assert all(chosen in each for each in lists) and "none" in lists[2]
    assert json.loads(json.dumps(lists)) == [[listed], [listed], ["none", listed]]
    files = comfy("files")
    assert str(files.model_path(chosen)) == f"/diffusion_models/{listed}" and str(files.lora_path(chosen)) == f"/loras/{listed}"


def test_nothing_else_is_in_the_list(nodes: Any, folders: Any) -> None:
    folders["diffusion_models"] = ["a.pt", "b/c.pt"]
    choices = offered(nodes.causal_loaders.QVGLoadCausalWan, "file")
    assert [name for name in ("b/d.pt", "c.pt", "B/c.pt", "../a.pt", "", 7, None, ["a.pt"]) if name in choices] == []


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("QVG/%date:yyyy-MM-dd%/v", "QVG/2026-03-07/v"),
        ("%date:yy.M.d hh-mm-ss%", "26.3.7 04-05-09"),
        ("%date:yyy h:m:s%", "yyy 4:5:9"),
        ("%date:%x", "x"),
        ("%Start.width%", "832"),
        ("%Begin.seed%", "7"),
        ("%KSampler.seed% %Inner.seed% %Deep.seed%", "5 6 6"),
        ("%KSampler.cfg% %KSampler.on% %KSampler.none%", "1 true "),
        ("%KSampler.text%", "a_b_c__d__"),
        # What names nothing, is linked, or is ComfyUI's own, stays.
        ("%Nobody.seed%", "%Nobody.seed%"),
        ("%Start.nothing% %Start.model%", "%Start.nothing% %Start.model%"),
        ("%width%x%height% %year%", "%width%x%height% %year%"),
        ("100% of 5%", "100% of 5%"),
    ],
)
def test_placeholders(nodes: Any, text: str, made: str) -> None:
    filled = importlib.import_module("comfyui_qvg.nodes.placeholders").filled
    assert filled(text, PROMPT, WORKFLOW, NOW) == made


@pytest.mark.parametrize("prompt", [None, [], {}, {"1": {"class_type": 3, "inputs": {}}}])
@pytest.mark.parametrize("workflow", [None, 3, {"nodes": 1, "definitions": []}, {"definitions": {"subgraphs": [None]}}])
def test_placeholders_without_a_workflow(nodes: Any, prompt: Any, workflow: Any) -> None:
    filled = importlib.import_module("comfyui_qvg.nodes.placeholders").filled
    assert filled("%date:yyyy%/%a.b%", prompt, workflow, NOW) == "2026/%a.b%"


@pytest.mark.parametrize(
    ("prefix", "made"),
    [
        ("QVG/video", "QVG/video"),
        ("QVG\\video", "QVG/video"),
        ("a//b/./c/../video/", "a/b/video"),
        ("12:30 <a>|b?*", "12_30 _a__b__"),
        ("C:\\Users\\video", "C_/Users/video"),
        ("AUX/con.video", "_AUX/_con.video"),
        ("folder. /video", "folder__/video"),
        ("猫" * 80, "猫" * 80),
        ("", "video"),
        ("%year%-%month%/%width%", "%year%-%month%/%width%"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="separators and drives of Linux and macOS")
def test_prefixes_that_every_system_takes(folders: Any, prefix: str, made: str) -> None:
    names = comfy("output_names")
    assert names.output_prefix(prefix, ".mp4") == made and names.complaint(prefix, ".mp4") is None


def test_a_prefix_with_the_whole_path(folders: Any, tmp_path: Path) -> None:
    names = comfy("output_names")
    assert names.output_prefix(str(tmp_path / "output" / "QVG" / "video"), ".mp4") == os.path.join("QVG", "video")


@pytest.mark.parametrize("prefix", ["../video", "a/../../video", "..\\video", "/etc/video", "\\video", "linked/video", ".."])
def test_a_prefix_that_leads_out_of_the_output_folder(folders: Any, tmp_path: Path, prefix: str) -> None:
    if os.name != "nt":
        (tmp_path / "output" / "linked").symlink_to(tmp_path)
    elif prefix == "linked/video":
        pytest.skip("links are for administrators there")
    said = comfy("output_names").complaint(prefix, ".mp4")
    assert said is not None and "leads out of the output folder; use a name in it, such as QVG/video" in said


@pytest.mark.parametrize("prefix", ["x" * 245, "猫" * 82, "x" * 256 + "/video", "x" * 240 + "%width%"])
def test_a_name_that_is_too_long_is_refused(nodes: Any, folders: Any, prefix: str) -> None:
    node = nodes.decode.QVGSaveVideo
    said = node.validate_inputs(filename_prefix=prefix)
    assert "use a shorter filename_prefix" in said and len(said) < 300
    with pytest.raises(ConfigError, match="takes no file or folder called"):
        comfy("output_names").output_prefix(prefix, ".mp4")
    assert node.validate_inputs(filename_prefix=None) is True
    assert node.validate_inputs(filename_prefix=prefix[:80].replace("/", "")) is True


def test_a_folder_that_is_a_file_is_refused(folders: Any, tmp_path: Path) -> None:
    (tmp_path / "output" / "QVG").write_text("")
    assert "QVG is a file, and no folder" in (comfy("output_names").complaint("QVG/video", ".mp4") or "")


def test_what_other_nodes_hold_is_not_known_before_they_are(nodes: Any, folders: Any) -> None:
    node = nodes.decode.QVGSaveVideo
    assert node.validate_inputs(filename_prefix="x" * 230 + "%Some Very Long Title.width%") is True
    node.hidden = type("Hidden", (), {"prompt": PROMPT, "extra_pnginfo": {"workflow": WORKFLOW}})
    try:
        assert node.check_lazy_status(filename_prefix="%Begin.width%", samples=None) == ["samples"]
        with pytest.raises(ConfigError, match="use a shorter filename_prefix"):
            node.check_lazy_status(filename_prefix="x" * 242 + "%Begin.width%", samples=None)
        node.hidden.extra_pnginfo = None
        assert node.check_lazy_status(filename_prefix="video", samples=None, vae=None, fps=16.0, crf=16) == ["samples", "vae"]
    finally:
        del node.hidden
