"""The nodes in a real ComfyUI."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg.doctor.touch_points import missing
from comfyui_qvg.qvg.models.demo_world import load_demo_world
from comfyui_qvg.qvg.study import study_method
from comfyui_qvg.qvg.study.bytes import predict
from safetensors.torch import load_file

from ..nodes.standin import without_files
from .client import ROOT, Client, between, bypassed, node, with_mode, workflow
from .conftest import comfyui

GOLDEN = json.loads((Path(__file__).parents[1] / "nodes" / "object_info.json").read_text(encoding="utf-8"))


def test_schemas_equal_the_golden_file(server: Client) -> None:
    """Against the version that the file was made with; others may describe the same schema with other words."""
    version = server.get("/system_stats")["system"]["comfyui_version"]
    for name, golden in GOLDEN["nodes"].items():
        info = without_files(name, server.get(f"/object_info/{name}")[name])
        keys = golden if version == GOLDEN["comfyui_version"] else ("input_order", "output", "output_name", "category")
        assert {key: info[key] for key in keys} == {key: golden[key] for key in keys}


def test_the_workflow_is_a_template_with_a_thumbnail(server: Client) -> None:
    assert "demo_world" in server.get("/api/workflow_templates")["ComfyUI-QVG"]


def test_the_workflow_runs_as_it_is_shipped_but_shorter(client: Client) -> None:
    prompt = workflow()
    result = client.run(prompt)
    assert result.status == "success", result.messages
    (video,) = result.outputs[node(prompt, "SaveVideo")]["images"]
    assert (client.base / "output" / video["subfolder"] / video["filename"]).stat().st_size > 1000
    report = result.outputs[node(prompt, "QVGCacheReport")]
    assert "20 latent frames (4 given)" in report["text"][0] and "codes" in report["text"][0]
    assert report["images"] and result.outputs[node(prompt, "QVGCameraPath")]["images"]


def test_a_second_run_is_identical(client: Client) -> None:
    first = client.latent(workflow())
    client.forget()
    assert torch.equal(first, client.latent(workflow()))


def test_bypass_is_exact_bit_for_bit_and_two_bits_are_not(client: Client) -> None:
    prompt = workflow()
    exact = client.latent(bypassed(prompt))
    quantized = client.latent(prompt)
    assert torch.equal(exact, client.latent(with_mode(prompt, "exact")))
    # Frames before the first span is encoded: one sink, six in the span, three recent.
    assert torch.equal(exact[:, :, :10], quantized[:, :, :10]) and not torch.equal(exact, quantized)


# Mode, its widgets, and what the report says of it. Prompts of before klt are among them: the first two.
MODES: list[tuple[str, dict[str, Any], str]] = [
    ("preset", {"preset": "qvg"}, "qvg, 2 bits, 1 stage(s) of automatic clusters, groups of 64"),
    (
        "custom",
        {"bits": "2", "num_stages": 1, "clusters": 32, "group_size": "64"},
        "qvg, 2 bits, 1 stage(s) of 32 clusters, groups of 64",
    ),
    ("preset", {"preset": "fewest-bytes"}, "klt, keys in 1 and values in 1.5 bits, a learned basis, automatic clusters"),
    ("preset", {"preset": "near-exact"}, "klt, keys in 3 and values in 3.5 bits, a learned basis, automatic clusters"),
    (
        "klt",
        {"bits_k": 2, "bits_v": 2.5, "clusters": 20, "transform": "hadamard", "spans_per_codebook": 4},
        "klt, keys in 2 and values in 2.5 bits, a fixed basis (hadamard), 20 clusters, a codebook per 4 span(s)",
    ),
    ("kivi", {"bits": "4", "group_size": "32"}, "kivi, 4 bits, groups of 32"),
    ("quarot", {"bits": "3", "group_size": "64"}, "quarot, 3 bits, groups of 64"),
    ("rtn", {"bits": "4", "group_size": "16"}, "rtn, 4 bits, groups of 16"),
    ("study", {"method": "KIVI_K2_V4"}, "study-kivi, keys in 2 and values in 4 bits, groups of 16"),
    ("study", {"method": "NVFP4"}, "nvfp4, 4 bits, groups of 16"),
]


@pytest.mark.parametrize(
    ("mode", "widgets", "settings"), MODES, ids=[f"{mode} {list(given.values())}" for mode, given, _ in MODES]
)
def test_every_mode_runs_and_the_report_says_with_what(client: Client, mode: str, widgets: dict[str, Any], settings: str) -> None:
    prompt = with_mode(workflow(frames=12), mode, **widgets)
    del prompt[node(prompt, "SaveVideo")]
    result = client.run(prompt)
    assert result.status == "success", result.messages
    (text,) = result.outputs[node(prompt, "QVGCacheReport")]["text"]
    assert f"\ncache: {settings}, spans of 6 frames, first 1 and last 3 frames exact, all frames seen, seed 0\n" in text.replace(
        ", a codebook per 8 span(s)", ""
    )
    assert "codes" in text and "Nothing was encoded" not in text


@pytest.mark.parametrize("name", ["FLOWCACHE_SOFT_PRUNE_INT4", "SPATIAL_MIXED_FG_RTN_INT4_BG_RTN_INT2"])
def test_a_method_of_the_study_runs_and_takes_what_it_should(client: Client, name: str) -> None:
    prompt = with_mode(workflow(frames=12), "study", method=name)
    del prompt[node(prompt, "SaveVideo")]
    result = client.run(prompt)
    assert result.status == "success", result.messages
    (text,) = result.outputs[node(prompt, "QVGCacheReport")]["text"]
    size = predict(study_method(name), load_demo_world().config.cache_spec(), 12).total
    assert f"\ncache: {name}\n" in text and f"memory at the end {size / 1e6:.2f} MB" in text


def test_given_frames_stay_as_they_are(client: Client) -> None:
    prompt = workflow(frames=12)
    prompt[node(prompt, "RandomNoise")]["inputs"]["noise_seed"] = 5
    other = workflow(frames=12)
    a, b = client.latent(prompt), client.latent(other)
    assert torch.equal(a[:, :, :4], b[:, :, :4]) and not torch.equal(a[:, :, 4:], b[:, :, 4:])


def test_a_report_can_be_made_of_a_cached_video(client: Client) -> None:
    """The report node is added after sampling; the sampler is not run again for it."""
    prompt = workflow()
    report = prompt.pop(node(prompt, "QVGCacheReport"))
    assert client.run(prompt).status == "success"
    prompt["report"] = report
    later = client.run(prompt)
    assert later.status == "success", later.messages
    assert node(prompt, "SamplerCustomAdvanced") in later.cached() and "report" not in later.cached()
    assert "20 latent frames (4 given)" in later.outputs["report"]["text"][0]


def test_a_report_outlives_the_model_in_the_execution_cache(client: Client) -> None:
    """ComfyUI's default cache lets go of MODELs first when memory is short, and makes them again for the report."""
    prompt = workflow(frames=12)
    report = prompt.pop(node(prompt, "QVGCacheReport"))
    assert client.run(prompt).status == "success"
    forgotten = client.run(prompt | {"forget": {"class_type": "TestingForgetModels", "inputs": {}}})
    assert forgotten.status == "success", forgotten.error
    assert forgotten.outputs["forget"]["text"] == ["2"]  # the loader's and the cache node's
    later = client.run(prompt | {"report": report})
    assert later.status == "success", later.messages
    assert node(prompt, "SamplerCustomAdvanced") in later.cached()
    assert not {node(prompt, "QVGLoadDemoWorld"), node(prompt, "QVGKVCache")} & later.cached()
    assert "12 latent frames (4 given)" in later.outputs["report"]["text"][0]


def test_a_report_of_another_model_is_refused(client: Client) -> None:
    prompt = workflow(frames=8)
    # A seed of its own: no other test may have made this video with the loader's MODEL.
    prompt[node(prompt, "RandomNoise")]["inputs"]["noise_seed"] = 20_261_120
    report = prompt[node(prompt, "QVGCacheReport")]["inputs"]
    report["model"] = [node(prompt, "QVGLoadDemoWorld"), 0]
    assert "was not sampled with this MODEL" in client.run(prompt).error


def test_compare_of_exact_and_two_bits(client: Client) -> None:
    prompt = workflow()
    other = bypassed(prompt)
    for name in ("BasicScheduler", "BasicGuider", "SamplerCustomAdvanced", "VAEDecode", "QVGCacheReport"):
        prompt["exact " + name] = other[node(other, name)]
    renamed = {node(other, name): "exact " + name for name in ("BasicScheduler", "BasicGuider", "SamplerCustomAdvanced")}
    for name, step in prompt.items():
        if name.startswith("exact "):
            step["inputs"] = {
                key: [renamed.get(value[0], value[0]), value[1]] if isinstance(value, list) else value
                for key, value in step["inputs"].items()
            }
    inputs: dict[str, Any] = {"fps": 10.0, "scale": 2}
    inputs |= {"images_a": ["exact VAEDecode", 0], "report_a": ["exact QVGCacheReport", 0]}
    inputs |= {"images_b": [node(workflow(), "VAEDecode"), 0], "report_b": [node(workflow(), "QVGCacheReport"), 0]}
    prompt["compare"] = {"class_type": "QVGCompare", "inputs": inputs}
    prompt[node(workflow(), "SaveVideo")]["inputs"]["video"] = ["compare", 0]
    result = client.run(prompt)
    assert result.status == "success", result.messages
    text = result.outputs["compare"]["text"][0]
    assert "10 of 20 frames are identical" in text and "A: exact" in text and "B: KLT, 1.5/2 bits" in text
    # More of them: what is not connected is not asked for, and what is is waited for.
    inputs |= {"images_c": inputs["images_a"], "report_c": inputs["report_a"], "images_d": inputs["images_b"]}
    more = client.run(prompt)
    assert more.status == "success", more.messages
    (said,) = more.outputs["compare"]["text"]
    assert "C is identical to A.\n20 of 20 frames are identical" in said and "C: exact" in said and "D: " not in said
    assert said.count("10 of 20 frames are identical") == 2
    del inputs["images_c"]
    assert "report_c has no video to it; connect images_c" in client.run(prompt).error


def test_interrupt_frees_the_cache_keeps_the_frames_and_leaves_a_working_server(client: Client) -> None:
    before = client.latent(workflow(frames=12))
    seen = len(client.log())
    with client.new_files("output/QVG") as files:
        prompt_id = client.queue(between(workflow(frames=2000), "TestingPasses"))
        client.until_logged("testing: pass 20", seen)  # four frames are given, a pass each, and four passes make one
        assert client.post("/interrupt", {})[0] == 200
        result = client.wait(prompt_id)
    assert any(kind == "execution_interrupted" for kind, _ in result.messages)
    assert "the cache holds 0 bytes now" in client.log()[seen:]
    (file,) = files
    kept = load_file(str(file))["latent_tensor"]
    assert 4 <= kept.shape[2] < 2000 and kept.isfinite().all()
    assert torch.equal(kept[:, :, :4], before[:, :, :4])
    client.forget()
    assert torch.equal(before, client.latent(workflow(frames=12)))


def test_camera_errors_come_before_queueing_and_name_the_node(server: Client) -> None:
    prompt = workflow()
    camera = node(prompt, "QVGCameraPath")
    prompt[camera]["inputs"]["path"] = "d-14,x-3"
    code, answer = server.post("/prompt", {"prompt": prompt})
    assert code == 400
    assert "part 2 of the camera path, 'x-3'" in json.dumps(answer["node_errors"][camera])


def test_inputs_that_are_linked_are_checked_when_they_are_there(client: Client) -> None:
    prompt = workflow(frames=12)
    camera, cache = (prompt[node(prompt, kind)]["inputs"] for kind in ("QVGCameraPath", "QVGKVCache"))
    text = prompt["text"] = {"class_type": "PrimitiveString", "inputs": {"value": camera["path"]}}
    camera["path"] = ["text", 0]
    del cache["cache.preset"]
    cache |= {"cache": "custom", "cache.bits": "2", "cache.num_stages": 2, "cache.clusters": 0, "cache.group_size": "64"}
    typed = copy.deepcopy(prompt)
    typed[node(prompt, "QVGCameraPath")]["inputs"]["path"] = text["inputs"]["value"]
    prompt["stages"] = {"class_type": "PrimitiveInt", "inputs": {"value": 2}}
    cache["cache.num_stages"] = ["stages", 0]
    assert torch.equal(client.latent(prompt), client.latent(typed))
    text["inputs"]["value"] = "d-14,x-3"
    assert "part 2 of the camera path, 'x-3', has the unknown key 'x'" in client.run(prompt).error


def test_ordinary_samplers_and_cfg_are_refused_with_a_sentence(client: Client) -> None:
    prompt = workflow(frames=6)
    prompt[node(prompt, "QVGSampler")] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    assert "connect 'QVG Sampler'" in client.run(prompt).error
    prompt = workflow(frames=6)
    guider = prompt[node(prompt, "BasicGuider")]
    conditioning = guider["inputs"].pop("conditioning")
    guider["class_type"] = "CFGGuider"
    guider["inputs"] |= {"positive": conditioning, "negative": conditioning, "cfg": 3.0}
    assert "cfg is 3.0" in client.run(prompt).error


def test_two_videos_at_once(client: Client) -> None:
    prompt = workflow(frames=12)
    prompt[node(prompt, "QVGDemoWorldStart")]["inputs"]["batch_size"] = 2
    both = client.latent(prompt)
    assert both.shape[:3] == (2, 3, 12) and not torch.equal(both[0], both[1])


def test_another_shift_works(client: Client) -> None:
    """Core's own shift node replaces the model's sampling; the model must bear it."""
    prompt = workflow(frames=8)
    prompt["shift"] = {"class_type": "ModelSamplingSD3", "inputs": {"model": [node(prompt, "QVGLoadDemoWorld"), 0], "shift": 3.0}}
    prompt[node(prompt, "QVGKVCache")]["inputs"]["model"] = ["shift", 0]
    assert torch.equal(client.latent(prompt), client.latent(workflow(frames=8)))


def test_texts_in_other_languages_are_served(server: Client) -> None:
    served = server.get("/i18n")
    for folder in (ROOT / "locales").iterdir():
        ours = json.loads((folder / "nodeDefs.json").read_text(encoding="utf-8"))
        assert {name: served[folder.name]["nodeDefs"][name] for name in ours} == ours


def test_this_comfyui_has_all_that_the_nodes_touch() -> None:
    home, _ = comfyui()
    assert missing(home) == []
