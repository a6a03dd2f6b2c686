"""Workflow files, settings, addresses and messages, without a server."""

from __future__ import annotations

import copy
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.errors import ConfigError
from comfyui_qvg.qvg.server.address import is_on_this_machine, server_url
from comfyui_qvg.qvg.server.events import TEXT, Event, parse
from comfyui_qvg.qvg.server.outputs import free_names, safe_name
from comfyui_qvg.qvg.server.prompt import check_input, load_prompt, named_files, override, use_listed_names

from ...helpers import ROOT

GOLDEN = json.loads((ROOT / "tests" / "nodes" / "object_info.json").read_text(encoding="utf-8"))["nodes"]


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:8188", "http://127.0.0.1:8188"),
        ("gpu", "http://gpu:8188"),
        (" gpu:80 ", "http://gpu:80"),
        ("http://gpu", "http://gpu"),
        ("https://example.org/comfy/", "https://example.org/comfy"),
        ("[::1]:8188", "http://[::1]:8188"),
        ("http://gpu:9/", "http://gpu:9"),
        ("http://gpu/kü%20che", "http://gpu/k%C3%BC%20che"),
        ("сервер:1", "http://xn--b1afb6bcb:1"),
        ("http://пример.рф/猫", "http://xn--e1afmkfd.xn--p1ai/%E7%8C%AB"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert server_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":8188",
        "gpu:",
        "gpu:x",
        "gpu:0",
        "gpu:99999",
        "ftp://gpu",
        "a b",
        "gpu/comfy",
        "http://gpu?a=1",
        "[::1",
        "a..b",
        f"{'a' * 64}:8188",
        "\udcff",
    ],
)
def test_what_is_no_address(text: str) -> None:
    if text == "gpu:":
        assert server_url(text) == "http://gpu:8188"  # nothing after the colon: the default
        return
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        server_url(text)


def test_this_machine() -> None:
    assert all(is_on_this_machine(server_url(text)) for text in ("127.0.0.1", "localhost:1", "[::1]:1"))
    assert not any(is_on_this_machine(server_url(text)) for text in ("gpu", "10.0.0.1", "localhost.example.org"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"1": }', "line 1, column 7"),
        (b"\xff\xfe\x00", "is not a text file"),
        (b"[]", "holds no nodes"),
        (b"{}", "holds no nodes"),
        (b'{"nodes": [], "links": []}', "Workflow > Export"),
        (b'{"1": {"class_type": "A"}}', "entry '1' of"),
        (b'{"prompt": {"1": {}}}', "entry 'prompt' of"),
        (b'{"1": {"class_type": "A", "inputs": {"x": ["7", 0]}}}', "input 'x' of node 1 (A) is linked to node 7"),
    ],
)  # fmt: skip
def test_what_is_no_workflow(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    assert main(["run", str(file), "--server", "127.0.0.1:1"]) == 2
    said = capsys.readouterr().err
    assert message in said and str(file) in said and said.startswith("error: ") and said.count("\n") == 1


def test_a_byte_order_mark_is_no_part_of_a_workflow(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"1": {"class_type": "A", "inputs": {}}}', encoding="utf-8-sig")
    assert load_prompt(file) == {"1": {"class_type": "A", "inputs": {}}}


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_a_device_without_end_is_no_workflow() -> None:
    with pytest.raises(ConfigError, match="^/dev/zero has more than 64 MiB, which no workflow has"):
        load_prompt(Path("/dev/zero"))


def test_a_file_for_the_page_names_its_twin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(ROOT / "workflows" / "demo_world.json")]) == 2
    assert str(ROOT / "workflows" / "api" / "demo_world.json") in capsys.readouterr().err


@pytest.mark.parametrize("depth", [50, 300, 900, 960, 980, 2000, 200_000])
def test_values_without_end(depth: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, deep = tmp_path / "a.json", "[" * depth + "]" * depth
    for text, settings in ((f'{{"1": {{"class_type": "A", "inputs": {{"x": {deep}}}}}}}', []), (NODE, ["--set", f"1.x={deep}"])):
        file.write_text(text, encoding="utf-8")
        assert main(["run", str(file), "--server", "127.0.0.1:1", "--out", str(tmp_path / "out"), *settings]) in (2, 3)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and (
            "more than 100 deep" in said or "nested too deeply" in said or "no server answers" in said
        )


NODE = '{"1": {"class_type": "A", "inputs": {"x": 1}}}'


@pytest.mark.parametrize("arguments", [["run"], ["run", "x.json", "--timeout", "soon"], ["run", "x.json", "--port", "1"]])
def test_wrong_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_a_timeout_must_end(capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    assert main(["run", "x.json", "--timeout", seconds]) == 2
    assert "must be a number of seconds" in capsys.readouterr().err


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"])
    text = capsys.readouterr().out
    assert all(f"  {code:<4}" in text for code in (0, 1, 2, 3, 130))


PROMPT: dict[str, Any] = {
    "1": {"class_type": "A", "inputs": {"steps": 3, "name": "x", "a.b": 1, "on": True}, "_meta": {"title": "v1.5 model"}},
    "5:2": {"class_type": "B", "inputs": {"model": ["1", 0]}, "_meta": {"title": "Twin"}},
    "6": {"class_type": "B", "inputs": {}, "_meta": {"title": "Twin"}},
}


@pytest.mark.parametrize(
    ("setting", "node", "name", "value"),
    [
        ("1.steps=4", "1", "steps", 4),
        ("1.steps=2.5", "1", "steps", 2.5),
        ("1.steps=many", "1", "steps", "many"),
        ("1.name=4", "1", "name", "4"),
        ("1.name=", "1", "name", ""),
        ("1.name=a=b", "1", "name", "a=b"),
        ("1.a.b=2", "1", "a.b", 2),
        ("1.c.d=2", "1", "c.d", 2),
        ("1.on=false", "1", "on", False),
        ("1.steps=NaN", "1", "steps", "NaN"),
        ("v1.5 model.steps=4", "1", "steps", 4),
        ("A.steps=4", "1", "steps", 4),
        ("5:2.x=1", "5:2", "x", 1),
        ('5:2.model=["1", 1]', "5:2", "model", ["1", 1]),
        ("B.model=1", "5:2", "model", 1),
    ],
)
def test_settings(setting: str, node: str, name: str, value: Any) -> None:
    prompt = copy.deepcopy(PROMPT)
    assert override(prompt, setting) == (node, name)
    assert prompt[node]["inputs"][name] == value and type(prompt[node]["inputs"][name]) is type(value)
    others = {other for other in PROMPT if other != node}
    assert all(prompt[other] == PROMPT[other] for other in others)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps=4", "is not NODE.INPUT=VALUE"),
        ("1.steps", "is not NODE.INPUT=VALUE"),
        ("9.steps=4", "its nodes are 1 .v1.5 model., 5:2 .Twin., 6 .Twin."),
        ("1.=4", "names no node"),
        ("Twin.x=1", "any of the nodes 5:2, 6; name one by its number"),
    ],
)
def test_settings_that_mean_nothing(setting: str, message: str) -> None:
    prompt = copy.deepcopy(PROMPT)
    with pytest.raises(ConfigError, match=message):
        override(prompt, setting)
    assert prompt == PROMPT


@pytest.mark.parametrize("name", ["cache", "cache.preset", "cache.bits", "span_frames", "model"])
def test_inputs_of_a_real_schema_are_known(name: str) -> None:
    check_input({"2": {"class_type": "QVGKVCache", "inputs": {}}}, "2", name, GOLDEN)


@pytest.mark.parametrize("name", ["cache.bit", "bits", "spans", "cache."])
def test_inputs_that_a_real_schema_has_not(name: str) -> None:
    with pytest.raises(ConfigError, match="has no input"):
        check_input({"2": {"class_type": "QVGKVCache", "inputs": {}}}, "2", name, GOLDEN)


def test_every_workflow_of_ours_is_read() -> None:
    files = sorted((ROOT / "workflows" / "api").glob("*.json"))
    assert files and all(load_prompt(file) for file in files)


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ('{"type": "executing", "data": {"node": "1"}}', Event("executing", {"node": "1"})),
        (struct.pack(">II", 3, 2) + b"12block 3/9", Event(TEXT, {"node": "12", "text": "block 3/9"})),
        (struct.pack(">II", 1, 1) + b"JPEG", None),
        (b"\0\0\0", None),
        ("not json", None),
        ('{"type": "status"}', None),
        ('{"type": "a node\'s text", "data": {}}', None),
        ("[" * 200_000, None),
        ('{"type": "x", "data": 3}', None),
        ("[]", None),
    ],
)
def test_messages(message: str | bytes, event: Event | None) -> None:
    assert parse(message) == event


def test_names_are_taken_in_turn(tmp_path: Path) -> None:
    names = itertools.islice(free_names(tmp_path, "a.b.png"), 3)
    assert [name.name for name in names] == ["a.b.png", "a.b-2.png", "a.b-3.png"]
    assert [safe_name(name) for name in ("x\x00y?.txt", "...", "")] == ["x_y_.txt", "output", "output"]


def test_names_fit_into_what_disks_take(tmp_path: Path) -> None:
    longest = "猫" * 83 + ".mp4"
    assert safe_name(longest) == longest and len(longest.encode()) == 253
    assert safe_name("猫" * 300 + ".mp4") == longest
    assert safe_name("x" * 100_000) == "x" * 255
    names = [path.name for path in itertools.islice(free_names(tmp_path, longest), 12)]
    assert names[0] == longest and names[11] == "猫" * 82 + "-12.mp4"
    assert safe_name("a\ud800b.png") == "a_b.png" and safe_name("con.png") == "_con.png"


FILES = {
    "required": {"file": ["COMBO", {"options": ["world\\model.pt", "b.pt"]}], "text": ["STRING", {}]},
    "optional": {"lora": [["none", "a\\b\\c.pt"], {}]},
}


@pytest.mark.parametrize(
    ("inputs", "sent"),
    [
        ({"file": "world/model.pt"}, {"file": "world\\model.pt"}),
        ({"file": "world\\model.pt", "lora": "a/b\\c.pt"}, {"file": "world\\model.pt", "lora": "a\\b\\c.pt"}),
        ({"file": "b.pt", "text": "world/model.pt"}, {"file": "b.pt", "text": "world/model.pt"}),
        ({"file": "other/model.pt", "lora": ["1", 0]}, {"file": "other/model.pt", "lora": ["1", 0]}),
    ],
)
def test_files_get_the_separators_that_the_server_lists_them_with(inputs: dict[str, Any], sent: dict[str, Any]) -> None:
    prompt: dict[str, dict[str, Any]] = {"1": {"class_type": "Load", "inputs": dict(inputs)}}
    use_listed_names(prompt, "Load", {"Load": {"input": FILES}})
    assert prompt["1"]["inputs"] == sent
    for odd in ({}, [], None, {"Load": 3}, {"Load": {"input": {"required": {"file": []}, "optional": 3}}}):
        use_listed_names(prompt, "Load", odd)
    assert prompt["1"]["inputs"] == sent


def test_only_what_may_name_a_file_in_a_folder_is_asked_for() -> None:
    values = ["QVG/video", "a cat / a dog, 3.5 m away", "one\ntwo/three.pt", "model.pt", 3, ["1", 0], ""]
    prompt = {str(at): {"class_type": f"Class{at}", "inputs": {"x": value}} for at, value in enumerate(values)}
    assert named_files(prompt) == []
    prompt["9"] = {"class_type": "Load", "inputs": {"x": "folder/model.pt", "y": "a\\b.safetensors"}}
    assert named_files(prompt) == ["Load"]
