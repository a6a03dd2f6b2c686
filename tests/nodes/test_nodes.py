"""What the nodes do, as far as it needs no ComfyUI."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_qvg.qvg import PRESETS, CacheBytes, CacheSpec, ConfigError, QVGConfig, UnsupportedModelError
from comfyui_qvg.qvg.cache.offload import Placement
from comfyui_qvg.qvg.errors import CameraPathError
from comfyui_qvg.qvg.models.wan.variants import VARIANTS
from comfyui_qvg.qvg.sampling import place_blocks
from comfyui_qvg.qvg.study import STUDY, StudyCache, study_method
from comfyui_qvg.qvg.study.shipped import SHIPPED

ADVANCED = {
    "sink_frames": 1,
    "recent_frames": 3,
    "window_frames": None,
    "span_frames": 24,
    "seed": 0,
    "backend": "auto",
    "merge": 0.0,
}


@pytest.fixture
def part(nodes: Any) -> Any:
    """A module of `nodes` by name."""
    return lambda name: importlib.import_module(f"comfyui_qvg.nodes.{name}")


class Model:
    """What `attach` asks of a MODEL."""

    def __init__(self, base: Any, options: dict[str, Any] | None = None):
        self.model, self.model_options = base, options or {"transformer_options": {}}

    def clone(self) -> Model:
        return Model(self.model, {name: dict(value) for name, value in self.model_options.items()})


def with_memory() -> Model:
    return Model(SimpleNamespace(qvg_name="demo world", qvg_cache_spec=lambda batch: CacheSpec(2, 1, 64, 4, batch=batch)))


def run(frames: int, config: QVGConfig = PRESETS["exact"], codes: int = 0) -> dict[str, Any]:
    sizes = tuple(1000 * (frame + 1) for frame in range(frames))
    seconds = tuple(1.0 for _ in range(frames))
    parts = CacheBytes(exact=sizes[-1] - codes, codes=codes)
    exact = tuple(4 * size for size in sizes)
    return {
        "model": "demo world",
        "device": "cpu",
        "config": config,
        "span_frames": 16,
        "cache_bytes": sizes,
        "exact_bytes": exact,
        "seconds": seconds,
        "components": parts,
        "workspace_bytes": 0,
        "given_frames": 1,
    }


def widgets(nodes: Any, mode: str) -> dict[str, Any]:
    """What the page sends of a mode nobody has touched."""
    (combo,) = (each for each in nodes.NODES[1].define_schema().inputs if each.id == "cache")
    (option,) = (option for option in combo.options["options"] if option.key == mode)
    return {"cache": mode} | {each.id: each.options["default"] for each in option.inputs}


PLAIN = {"bits": 2, "group_size": 64, "symmetric": False}
MODES: dict[str, QVGConfig] = {
    "preset": PRESETS["balanced"],
    "custom": PRESETS["qvg"],
    "exact": PRESETS["exact"],
    "klt": PRESETS["balanced"],
    "kivi": QVGConfig("kivi", **PLAIN),
    "quarot": QVGConfig("quarot", **PLAIN),
    "rtn": QVGConfig("rtn", **PLAIN),
    "study": study_method("FLOWCACHE_SOFT_PRUNE_INT4").coding.config(),
}


def test_every_mode_is_here(part: Any) -> None:
    assert tuple(MODES) == part("cache").CHOICES


@pytest.mark.parametrize("mode", MODES)
def test_untouched_widgets_are_settings_that_a_model_takes(nodes: Any, part: Any, mode: str) -> None:
    schema = nodes.NODES[1].define_schema()
    untouched = {each.id: each.options["default"] for each in schema.inputs if each.optional}
    (model,) = nodes.NODES[1].execute(with_memory(), widgets(nodes, mode), **untouched).args
    assert part("comfy.settings").settings_of(model.model_options).config == MODES[mode]


@pytest.mark.parametrize("mode", MODES)
def test_what_a_program_may_leave_out_is_as_untouched_widgets_are(nodes: Any, part: Any, mode: str) -> None:
    (model,) = nodes.NODES[1].execute(with_memory(), widgets(nodes, mode)).args
    assert part("comfy.settings").settings_of(model.model_options).config == MODES[mode]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_arrive_with_the_node_s_own_span(nodes: Any, part: Any, name: str) -> None:
    """A preset says how frames are encoded; the advanced widgets, which are always there, say which."""
    make_config = part("cache").make_config
    choice = {"cache": "exact"} if name == "exact" else {"cache": "preset", "preset": name}
    assert make_config(choice, **{**ADVANCED, "span_frames": PRESETS[name].span_frames}) == PRESETS[name]


def test_exact_looks_at_the_window_alone(part: Any) -> None:
    make_config = part("cache").make_config
    assert make_config({"cache": "exact"}, **{**ADVANCED, "span_frames": 6, "seed": 3}) == PRESETS["exact"]
    assert make_config({"cache": "exact"}, **{**ADVANCED, "window_frames": 9}).window_frames == 9


@pytest.mark.parametrize(
    ("mode", "given", "expected"),
    [
        (
            "custom",
            {"bits": "4", "num_stages": 2, "clusters": 16, "group_size": "32"},
            QVGConfig(bits=4, num_stages=2, clusters=16, group_size=32),
        ),
        (
            "klt",
            {"bits_k": 3.0, "bits_v": 1.25, "clusters": 40, "transform": "hadamard", "spans_per_codebook": 2},
            QVGConfig("klt", 3, 1.25, clusters=40, transform="hadamard", iterations=4, spans_per_codebook=2),
        ),
        ("kivi", {"bits": "4", "group_size": "32"}, QVGConfig("kivi", 4, group_size=32, symmetric=False)),
        ("quarot", {"bits": "3", "group_size": "16"}, QVGConfig("quarot", 3, group_size=16, symmetric=False)),
        ("rtn", {"bits": "8", "group_size": "128"}, QVGConfig("rtn", 8, group_size=128, symmetric=False)),
    ],
)
def test_every_widget_of_a_mode_arrives(nodes: Any, part: Any, mode: str, given: dict[str, Any], expected: QVGConfig) -> None:
    assert {"cache", *given} == set(widgets(nodes, mode))
    config = part("cache").make_config({"cache": mode, **given}, **{**ADVANCED, "window_frames": 40, "seed": 7})
    assert config == expected.with_changes(window_frames=40, span_frames=24, seed=7)


@pytest.mark.parametrize("widget", ["bits_k", "bits_v"])
@pytest.mark.parametrize("bits", [2.03, 0.0, 6.25, float("nan"), float("inf"), True])
def test_bits_that_klt_cannot_keep_are_named_as_the_widget_is(nodes: Any, part: Any, widget: str, bits: float) -> None:
    """ComfyUI sees to the range of a Float, not to its step."""
    with pytest.raises(ConfigError, match=rf"^{widget} is {bits!r}, but codec 'klt' takes multiples of 1/16 from 0.25 to 6; "):
        part("cache").make_config({**widgets(nodes, "klt"), widget: bits}, **ADVANCED)


@pytest.mark.parametrize(
    ("mode", "given", "sentence"),
    [
        ("klt", {"bits_v": 2.0625}, "bits_v 2.0625 times head_dim 64 is not a whole number of bytes; use a multiple of 0.125"),
        ("klt", {"clusters": 200}, "clusters is 200, but a span holds only 96 tokens"),
        ("kivi", {"group_size": "128"}, "group_size 128 does not divide head_dim 64; use one of"),
    ],
)
def test_settings_of_a_mode_that_do_not_fit_the_model(
    nodes: Any, part: Any, mode: str, given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{sentence}"):
        part("comfy.attach").with_cache(with_memory(), part("cache").make_config({**widgets(nodes, mode), **given}, **ADVANCED))


@pytest.mark.parametrize("name", [*(method.name for method in STUDY), *SHIPPED])
def test_the_study_s_menu_makes_the_method_s_own_cache(part: Any, name: str) -> None:
    """Those that reuse the denoiser are not in the menu, and what keeps everything exact has a mode of its own."""
    offered = name in SHIPPED or not (study_method(name).reuse or name == "BF16")
    assert (name in part("cache").MENU) == offered
    if not offered:
        return
    choice = {"cache": "study", "method": name}
    config, method = part("cache").make_config(choice, **ADVANCED), part("cache").study_of(choice)
    spec = CacheSpec(2, 1, 64, 256)
    model = Model(SimpleNamespace(qvg_name="demo world", qvg_cache_spec=lambda batch: spec))
    clone = part("comfy.attach").with_cache(model, config, study=method)
    settings = part("comfy.settings").settings_of(clone.model_options)
    cache = settings.cache(spec, None)
    if name in SHIPPED:
        assert not method and cache.config == SHIPPED[name].with_changes(**ADVANCED)
    else:
        assert isinstance(cache, StudyCache) == bool(method) == (not study_method(name).plain)
        assert cache.config.codec == study_method(name).coding.codec
    record = part("records").RunRecord(**run(5, config), study=method)
    assert (record.label() == name) == bool(method) == (f"cache: {name}\n" in record.text())


def test_a_method_that_forgets_by_itself_takes_no_window(part: Any) -> None:
    choice = {"cache": "study", "method": "FLOWCACHE_PRUNE_INT4"}
    for widget, value in (("window_frames", 9), ("merge", 0.99)):
        with pytest.raises(ConfigError, match=f"{widget} is {value}, but FLOWCACHE_PRUNE_INT4 decides itself what is forgotten"):
            part("cache").make_config(choice, **{**ADVANCED, widget: value})
    plain = part("cache").make_config({"cache": "study", "method": "RTN_INT2"}, **{**ADVANCED, "window_frames": 9})
    assert plain.window_frames == 9 and plain.codec == "study-rtn"


def test_a_mode_of_a_newer_version_is_refused_with_those_that_are_here(part: Any) -> None:
    """By ComfyUI's own lookup, which drops a mode that it does not find, and the input with it."""
    node, known = part("cache").QVGKVCache, "one of preset, custom, exact, klt, kivi, quarot, rtn, study; choose one of these"
    assert node.validate_inputs(cache={"cache": "klt"}) is True
    modes = node.INPUT_TYPES()["required"]["cache"][1]["options"]
    assert node.validate_inputs(cache={"cache": [1, 2, 3]}) is True  # ComfyUI has a sentence for that
    for typed in ("lossless", "", None, 3, {"a": 1}, "another mode"):
        (found,) = (mode for mode in modes if mode["key"] == typed)
        assert found["inputs"] == {} and node.validate_inputs(cache={"cache": typed}).endswith(f"but must be {known}")
    for mode in ("preset", "exact", "rtn"):
        (found,) = (found for found in modes if found["key"] == mode)
    with pytest.raises(ConfigError, match="^cache is None, but must be one of preset, "):
        node.check_lazy_status(model=None)  # ComfyUI does not miss it


def test_a_model_without_memory_is_refused_and_those_with_one_are_named(part: Any) -> None:
    class WAN21:
        pass

    with pytest.raises(UnsupportedModelError, match="WAN21 has no KV cache.*demo world"):
        part("comfy.attach").with_cache(Model(WAN21()), PRESETS["qvg"])


def test_settings_go_to_the_clone_alone(part: Any) -> None:
    attach, model = part("comfy.attach"), with_memory()
    clone = attach.with_cache(model, PRESETS["qvg"])
    assert part("comfy.settings").settings_of(clone.model_options).config == PRESETS["qvg"]
    assert part("comfy.settings").settings_of(model.model_options).config == PRESETS["exact"]
    assert clone.model is model.model


def test_settings_that_do_not_fit_the_model_are_refused_on_the_node(part: Any) -> None:
    with pytest.raises(ConfigError, match="group_size 128 does not divide head_dim 64"):
        part("comfy.attach").with_cache(with_memory(), QVGConfig(group_size=128))


@pytest.mark.parametrize("path", ["", "x-3", "d-14,,a-3", "w+s-2", "d-0"])
def test_camera_errors_show_before_queueing(part: Any, path: str) -> None:
    complaint = part("camera").QVGCameraPath.validate_inputs(path)
    assert isinstance(complaint, str) and "write comma separated parts" in complaint


def test_a_linked_camera_path_is_checked_when_it_is_there(part: Any) -> None:
    """ComfyUI gives None for what is linked."""
    node = part("camera").QVGCameraPath
    assert node.validate_inputs(path=None) is True
    with pytest.raises(CameraPathError, match="has the unknown key 'x'"):
        node.execute("d-14,x-3", 20)


def test_camera_path_comes_with_a_picture(part: Any) -> None:
    node = part("camera").QVGCameraPath
    assert node.validate_inputs("d-14,s-11,a-14,w-11") is True
    out = node.execute("d-14,s-11,a-14,w-11", 101)
    assert out.args[0].path == "d-14,s-11,a-14,w-11" and out.args[0].frames == 101
    assert out.ui.image.shape == (1, 384, 384, 3) and out.ui.image.std() > 0


def test_looking_around_is_drawn_without_moving(part: Any) -> None:
    camera = part("camera").QVGCameraPath.execute("left-4", 5).args[0]
    assert camera.from_above().tolist() == [[0, 0]] * 5
    # Forward along a line that has turned left by three degrees, and by six.
    turning = part("camera").QVGCameraPath.execute("w+left-2,right-2", 5).args[0].from_above()
    turns = np.deg2rad([3, 6])
    assert np.allclose(turning[:, 0], [0, *-np.cumsum(np.cos(turns)), *[-np.cos(turns).sum()] * 2])
    assert np.allclose(turning[:, 1], [0, *-np.cumsum(np.sin(turns)), *[-np.sin(turns).sum()] * 2])


def test_start_gives_four_frames_and_room_for_the_rest(part: Any) -> None:
    camera = part("camera").QVGCameraPath.execute("d-3", 9).args[0]
    conditioning, latent = part("sampling").QVGDemoWorldStart.execute(camera, 1, 2).args
    samples, mask = latent["samples"], latent["noise_mask"]
    assert samples.shape == (2, 3, 9, 64, 64) and mask.shape == (1, 1, 9, 64, 64)
    assert mask.amax((0, 1, 3, 4)).tolist() == [0] * 4 + [1] * 5
    assert not samples[:, :, 4:].any() and -1 <= samples.min() < samples.max() <= 1
    # The camera goes right by four pixels a frame, so what it shows moves left by as many.
    assert torch.equal(samples[0, :, 1, :, :-4], samples[0, :, 0, :, 4:])
    assert len(conditioning[0][1]["qvg_origins"]) == 9


def test_start_refuses_keys_the_demo_world_does_not_know(part: Any) -> None:
    camera = part("camera").QVGCameraPath.execute("w-4,left-4", 9).args[0]
    with pytest.raises(ConfigError, match="looks straight down"):
        part("sampling").QVGDemoWorldStart.execute(camera, 1, 1)


def test_records_find_a_run_by_its_video_and_forget_the_oldest(part: Any) -> None:
    records = part("records")
    book, made = records.Records(), records.RunRecord(**run(3))
    video = torch.rand(1, 3, 3, 4, 4)
    book.add(video, made)
    which = ("demo world", PRESETS["exact"])
    assert book.find(video.clone(), *which) is made
    assert book.find(video + 1, *which) is None and book.find(video[:, :, :2], *which) is None
    assert book.find(video, "another", PRESETS["exact"]) is None and book.find(video, "demo world", PRESETS["qvg"]) is None
    for index in range(records.MAX_RECORDS):
        book.add(torch.full((1, 1), float(index)), made)
    assert book.find(video, *which) is None


def test_a_report_outlives_its_model(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When memory is short, ComfyUI drops the MODEL, keeps the LATENT, and makes another MODEL for the report."""
    attach, report, records = part("comfy.attach"), part("report"), part("records")
    monkeypatch.setattr(report, "RECORDS", records.Records())
    video = torch.rand(1, 3, 5, 4, 4)
    report.RECORDS.add(video, records.RunRecord(**run(5, PRESETS["qvg"])))
    out = report.QVGCacheReport.execute(attach.with_cache(with_memory(), PRESETS["qvg"]), {"samples": video.clone()})
    assert "ratio 4.00x over all 5 frames" in out.args[1] and out.ui["text"] == (out.args[1],)
    (card,) = out.ui["qvg_card"]
    assert card["figures"][0] == ["4.0×", "less memory"] and card["details"] == out.args[1]
    assert [len(curve["values"]) for curve in card["charts"][0]["curves"]] == [5, 5]
    json.dumps(card)  # it goes to the page
    with pytest.raises(ConfigError, match="was not sampled with this MODEL .* since ComfyUI started; connect"):
        report.QVGCacheReport.execute(with_memory(), {"samples": video})


def test_the_report_counts_in_the_open(part: Any) -> None:
    record = part("records").RunRecord(**run(5, PRESETS["qvg"]))
    assert record.ratio == 4.0 and record.seconds_per_frame == 1.0
    assert "ratio 4.00x over all 5 frames, exact frames included" in record.text()
    assert "Nothing was encoded" in record.text()
    assert "Nothing was encoded" not in part("records").RunRecord(**run(5, PRESETS["qvg"], codes=10)).text()
    in_a_window = part("records").RunRecord(**run(5, PRESETS["qvg"].with_changes(window_frames=5))).text()
    assert "No encoded frames are left at the end" in in_a_window and "too short" not in in_a_window
    assert "too short" in part("records").RunRecord(**run(5, PRESETS["qvg"].with_changes(window_frames=6))).text()


@pytest.mark.parametrize(
    ("config", "label", "settings"),
    [
        (PRESETS["qvg"], "QVG, 2 bits", "qvg, 2 bits, 1 stage(s) of automatic clusters, groups of 64, spans of 16 frames"),
        (QVGConfig(clusters=32), "QVG, 2 bits", "1 stage(s) of 32 clusters"),
        (
            PRESETS["balanced"],
            "KLT, 1.5/2 bits",
            "klt, keys in 1.5 and values in 2 bits, a learned basis, automatic clusters, a codebook per 8 span(s), spans of 16",
        ),
        (QVGConfig("klt", 2, 2.0, transform="hadamard"), "KLT, 2 bits", "klt, 2 bits, a fixed basis (hadamard), 256 clusters"),
        (QVGConfig("kivi", 3), "KIVI, 3 bits", "kivi, 3 bits, groups of 64, spans of 16 frames, first 1 and last 3 frames exact"),
        (QVGConfig("quarot", 4), "QUAROT, 4 bits", "quarot, 4 bits, groups of 64,"),
        (QVGConfig("rtn", 2, 4), "RTN, 2/4 bits", "rtn, keys in 2 and values in 4 bits, groups of 64,"),
        (PRESETS["exact"], "exact", "cache: exact, all frames seen"),
    ],
)
def test_every_method_is_named_in_captions_and_report(part: Any, config: QVGConfig, label: str, settings: str) -> None:
    record = part("records").RunRecord(**run(5, config))
    assert record.label() == label
    (line,) = (line for line in record.text().splitlines() if line.startswith("cache: "))
    assert settings in line


def test_charts_are_pictures(part: Any) -> None:
    pictures = part("pictures")
    for values in ([0.0], [1.0, 5.0, 2.0], [1e-3] * 4, [4000.0, 1.0]):
        picture = pictures.chart("title", [pictures.Curve("a", values), pictures.Curve("b", values[:1])])
        assert picture.shape == (320, 768, 3) and picture.dtype == np.uint8 and picture.std() > 0


def test_compare_says_identical_and_how_far(part: Any) -> None:
    page, records = part("compare"), part("records")
    a = torch.rand(6, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    psnr = page.psnr_against_first({"A": a, "B": a})
    made = records.RunRecord(**run(6))
    assert "identical" in page.comparison(psnr, {}).splitlines()[0]
    text = page.comparison(page.psnr_against_first({"A": a, "B": (a + 0.1).clamp(0, 1)}), {"A": made})
    assert "dB" in text.splitlines()[0] and "A: exact" in text
    assert page._row({"A": a, "B": a}, {"A": made}, 2, 4).shape[-1] == 3
    panels = page._panels(psnr, {"A": made, "B": made})
    assert [(title.split()[0], unit) for title, unit, _ in panels] == [("PSNR", "dB"), ("Cache", "MB")]
    assert page._figures(psnr, {"A": made, "B": made})[0] == ("1.0×", "less memory in B")
    assert page._figures(psnr, {}) == [("identical", "B against A"), ("6", "of 6 frames identical")]


@pytest.fixture
def compare(part: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """QVG Compare of two videos, at 10 frames per second."""
    monkeypatch.setitem(sys.modules, "comfyui_qvg.nodes.comfy.progress", SimpleNamespace(say=lambda text: None))
    return lambda a, b, scale=0, **more: part("compare").QVGCompare.execute(a, b, 10.0, scale, **more)


@pytest.mark.parametrize(
    ("height", "width", "scale", "shown"),
    [(64, 64, 0, 4), (64, 64, 4, 4), (64, 64, 1, 1), (32, 128, 0, 2), (240, 416, 0, 1), (416, 240, 2, 2), (200, 200, 0, 1)],
)
def test_small_frames_are_enlarged_unless_told(compare: Any, height: int, width: int, scale: int, shown: int) -> None:
    frames = torch.zeros(1, height, width, 3)
    once, video = (compare(frames, frames, each).args[1] for each in (shown, scale))
    assert video.shape == once.shape and 2 * shown * width < video.shape[2] < 2.2 * shown * width + 8


def test_alpha_is_no_difference(compare: Any) -> None:
    a = torch.rand(2, 16, 16, 4, generator=torch.Generator().manual_seed(0))
    assert compare(a, a[..., :3].clone()).args[3].startswith("The two videos are identical.")
    changed = torch.cat([a[..., :3], 1 - a[..., 3:]], -1)
    assert compare(a, changed).args[3].startswith("The two videos are identical.")


def test_videos_that_cannot_be_compared_say_what_differs(compare: Any) -> None:
    with pytest.raises(ConfigError, match=r"^images_a are 32 x 16 pixels and images_b 16 x 16; give videos of one width"):
        compare(torch.zeros(1, 16, 32, 4), torch.zeros(1, 16, 16, 3))
    with pytest.raises(ConfigError, match=r"^images_b is \[1, 16, 16, 5\], but pictures are \[pictures, height, width, 1 to 4"):
        compare(torch.zeros(1, 16, 16, 3), torch.zeros(1, 16, 16, 5))
    assert compare(torch.zeros(1, 16, 16, 3), torch.zeros(1, 16, 16, 1)).args[3].startswith("The two videos are identical.")
    longer = compare(torch.zeros(3, 16, 16, 3), torch.zeros(1, 16, 16, 3)).args[3]
    assert longer.endswith("A goes on for 2 frames more, which are left out")


def test_three_and_four_videos_are_compared_with_the_first(compare: Any, part: Any) -> None:
    a = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(0)) / 2
    near, far = a + 1 / 100, a + 1 / 10
    made = part("records").RunRecord(**run(3))
    three = compare(a, near, scale=1, images_c=far, report_c=made).args
    lines = three[3].splitlines()
    assert lines[:4:2] == [
        "PSNR of B against A, error pooled over all frames: 40.0 dB",
        "PSNR of C against A, error pooled over all frames: 20.0 dB",
    ]
    assert lines[4].startswith("C: exact, ") and len(lines) == 5
    two, four = (compare(a, near, scale=1, **more).args[1] for more in ({}, {"images_c": far, "images_d": a}))
    width, height = two.shape[2], two.shape[1]
    assert three[1].shape[2] > 1.4 * width and three[1].shape[1] == height  # one row
    assert four.shape[2] == width and four.shape[1] > 1.9 * (height - 2)  # two rows of two
    assert "D is identical to A.\n3 of 3 frames are identical" in compare(a, near, images_d=a).args[3]


def test_every_video_has_one_colour_in_all_curves(part: Any) -> None:
    page, made = part("compare"), part("records").RunRecord(**run(2))
    panels = page._panels({"B": torch.tensor([1.0]), "C": torch.tensor([2.0]), "D": torch.tensor([3.0])}, {"A": made, "C": made})
    (title, _, psnr), (_, _, memory) = panels
    assert title.startswith("PSNR of B, C and D against A")
    assert [(curve.name[0], curve.colour) for curve in (*psnr, *memory)] == [("B", 1), ("C", 2), ("D", 3), ("A", 0), ("C", 2)]


def test_videos_beyond_two_that_cannot_be_compared_say_why(compare: Any, part: Any) -> None:
    a, made = torch.zeros(2, 16, 16, 3), part("records").RunRecord(**run(2))
    with pytest.raises(ConfigError, match=r"^images_a are 16 x 16 pixels and images_d 8 x 16; give videos of one width"):
        compare(a, a, images_d=torch.zeros(2, 16, 8, 3))
    with pytest.raises(ConfigError, match=r"^report_c has no video to it; connect images_c, or leave both out"):
        compare(a, a, report_c=made)
    longer = compare(a, a[:1], images_c=torch.zeros(4, 16, 16, 3)).args[3].splitlines()
    assert longer[-2:] == [
        f"{letter} goes on for {more} frames more, which are left out" for letter, more in (("A", 1), ("C", 3))
    ]


def test_trained_sigmas_fall_from_one_to_zero(part: Any) -> None:
    settings = part("comfy.settings")
    for variant in VARIANTS.values():
        model = Model(None, {"transformer_options": {settings.VARIANT_KEY: variant}})
        (sigmas,) = part("causal_loaders").QVGTrainedSigmas.execute(model).args
        assert sigmas.dtype == torch.float32 and sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        assert variant.frames_per_block in (1, 3)
        if variant.name != "causvid":  # whose steps are not bent by its shift
            bent = variant.shift
            steps = torch.tensor([round((sigma / (bent - (bent - 1) * sigma)) * 1000) for sigma in variant.sigmas])
            assert (steps % 250 == 0).all()


def test_sigmas_of_a_model_of_which_nothing_is_known(part: Any) -> None:
    with pytest.raises(
        ConfigError, match="Load Camera World or Load LongCat, its variant chosen, or connect BasicScheduler, simple"
    ):
        part("causal_loaders").QVGTrainedSigmas.execute(Model(None))


def _entry(name: str) -> list[Any]:
    return [[torch.zeros(1, 1, 1), {"name": name}]]


def _holds(part: Any, entries: Any, places: Any) -> list[tuple[int, int, bool]]:
    return [(start.block, start.frame, start.recache) for start in part("prompts").prompt_starts(entries, places)]


def test_prompts_hold_from_the_block_that_their_frame_is_in(part: Any) -> None:
    node, places = part("prompts").QVGPromptAtFrame, place_blocks(21, 0, 3)
    first = _entry("a")
    (chain,) = node.execute(first, _entry("b"), 60).args
    (chain,) = node.execute(chain, _entry("c"), 30, True).args
    entries = [entry for _, entry in chain]
    assert [(entry["name"], entry["qvg_from_frame"]) for entry in entries] == [("a", 0), ("b", 60), ("c", 30)]
    assert first[0][1] == {"name": "a"}, "what another node made is left alone"
    # Pixel frames 29 to 32 are latent frame 8, in block 2 (6 to 8); 57 to 60 are latent frame 15, the first of block 5.
    assert _holds(part, entries, places) == [(0, 0, False), (2, 30, True), (5, 60, False)]
    assert _holds(part, entries, place_blocks(21, 1, 1))[1:] == [(8, 30, True), (15, 60, False)]
    assert _holds(part, [entry for _, entry in first], places) == []


@pytest.mark.parametrize(("frame", "block"), [(1, 0), (8, 0), (9, 1), (20, 1), (21, 2), (80, 6)])
def test_the_first_latent_frame_is_one_pixel_frame(part: Any, frame: int, block: int) -> None:
    """Blocks of 3 latent frames end with pixel frames 8, 20, 32, ..."""
    prompts = part("prompts")
    assert prompts._block_of(frame, place_blocks(21, 0, 3)) == block


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        ([81], "the first prompt begins at frame 81, and nothing says what comes before; connect a prompt"),
        ([0, 81], "a prompt begins at frame 81, but the video ends with frame 80; choose"),
        ([0, 22, 32], "prompts begin at frames 22 and 32, which are made together in the block of frames 21 to 32; let"),
        ([0, 4], "prompts begin at frames 0 and 4, which are made together in the block of frames 0 to 8; let"),
    ],
)
def test_prompts_that_do_not_cover_the_video(part: Any, frames: list[int], sentence: str) -> None:
    entries = [{"qvg_from_frame": frame} for frame in frames]
    places = place_blocks(25 if 81 in frames and 0 not in frames else 21, 0, 3)
    with pytest.raises(ConfigError, match=f"^{sentence}"):
        part("prompts").prompt_starts(entries, places)


def test_a_prompt_is_added_at_a_frame_of_its_own(part: Any) -> None:
    node = part("prompts").QVGPromptAtFrame
    (chain,) = node.execute(_entry("a"), _entry("b"), 60).args
    with pytest.raises(ConfigError, match="a prompt begins at frame 60 already; choose another frame than 0, 60"):
        node.execute(chain, _entry("c"), 60)
    with pytest.raises(ConfigError, match="next_conditioning holds prompts that begin at frames of their own; connect"):
        node.execute(_entry("c"), chain, 30)


@pytest.mark.parametrize(("side", "use"), [("width", 848), ("height", 848)])
def test_sides_of_a_video_are_multiples_of_16(part: Any, side: str, use: int) -> None:
    node = part("causal").QVGVideoStart
    given = {"width": 832, "height": 480, "frames": 81, "batch_size": 1}
    with pytest.raises(ConfigError, match=f"^{side} is 850, but must be a multiple of 16 from 16 to 8192; use {use}$"):
        node.check_lazy_status(**given | {side: 850})
    assert node.check_lazy_status(**given) == []


@pytest.mark.parametrize(
    ("pixels", "use"),
    [(0, 16), (-16, 16), (8208, 8192), (1_000_000, 8192), ("abc", 832), (float("nan"), 832), (10**20, 8192), (True, 832)],
)
def test_a_side_that_comes_over_a_link_is_in_range(part: Any, pixels: Any, use: int) -> None:
    node = part("causal").QVGVideoStart
    with pytest.raises(ConfigError, match=f"^width is {pixels!r}, but must be a multiple of 16 from 16 to 8192; use {use}$"):
        node.check_lazy_status(width=pixels, height=480, frames=81, batch_size=1, vae=None)


def test_a_video_begins_with_an_image_or_a_video(part: Any) -> None:
    node, picture = part("causal").QVGVideoStart, torch.zeros(1, 16, 16, 3)
    with pytest.raises(ConfigError, match="a start image and a video to extend are both connected"):
        node.execute(16, 16, 9, 1, vae=object(), start_image=picture, extend={"samples": picture})
    with pytest.raises(ConfigError, match="a start image needs the VAE"):
        node.execute(16, 16, 9, 1, start_image=picture)


def test_a_noise_mask_keeps_whole_frames_at_the_beginning(part: Any) -> None:
    kept_frames = part("comfy.noise_mask").kept_frames
    mask = torch.ones(1, 1, 5, 2, 2)
    assert kept_frames(None) == 0 and kept_frames(mask) == 0 and kept_frames(0 * mask) == 5
    mask[:, :, :2] = 0
    assert kept_frames(mask.expand(2, 16, -1, -1, -1)) == 2
    mask[:, :, 3] = 0
    with pytest.raises(ConfigError, match="keeps frame 3 after frames that are to be generated"):
        kept_frames(mask)
    mask[:, :, 0, 0] = 0.5
    with pytest.raises(ConfigError, match="keeps a part of frame 0 .* from 0 to 0.5"):
        kept_frames(mask)


def test_offload_and_merged_padding_arrive(nodes: Any, part: Any, caplog: pytest.LogCaptureFixture) -> None:
    attach, node = part("comfy.attach"), part("cache").QVGKVCache
    with caplog.at_level(logging.INFO, attach.__name__):
        (model,) = node.execute(with_memory(), widgets(nodes, "preset"), offload="cpu", merge_padding=True).args
    settings = part("comfy.settings").settings_of(model.model_options)
    assert settings.config == PRESETS["balanced"].with_changes(span_frames="auto", offload="cpu")
    assert not settings.merge_padding and "merge_padding has no effect: demo world has no prompt of ours" in caplog.text
    (exact,) = node.execute(with_memory(), {"cache": "exact"}, offload="cpu").args
    assert part("comfy.settings").settings_of(exact.model_options).config == PRESETS["exact"]


def test_merging_arrives_with_exact_too_and_the_report_says_it(nodes: Any, part: Any) -> None:
    node, settings_of = part("cache").QVGKVCache, part("comfy.settings").settings_of
    (model,) = node.execute(with_memory(), widgets(nodes, "preset"), merge=0.99, merge_key="last").args
    config = settings_of(model.model_options).config
    assert config == PRESETS["balanced"].with_changes(span_frames="auto", merge=0.99, merge_key="last")
    (exact,) = node.execute(with_memory(), {"cache": "exact"}, sink_frames=2, merge=0.98).args
    merged = settings_of(exact.model_options).config
    assert merged == PRESETS["exact"].with_changes(sink_frames=2, merge=0.98)
    (plain,) = node.execute(with_memory(), {"cache": "exact"}, sink_frames=2, merge_key="first").args
    assert settings_of(plain.model_options).config == PRESETS["exact"], "without merge the other widgets mean nothing"
    with pytest.raises(ConfigError, match=r"merge is 0.3, but must be 0 \(off\) or a cosine from 0.5 to 1"):
        node.execute(with_memory(), widgets(nodes, "preset"), merge=0.3)
    with pytest.raises(ConfigError, match="window_frames 40: a row stands for tokens of several frames"):
        node.execute(with_memory(), widgets(nodes, "preset"), merge=0.99, window_frames=40)
    made = run(5, config, 900) | {"merged": "merged: 640 tokens became 64 rows"}
    record = part("records").RunRecord(**made)
    assert record.label() == "KLT, 1.5/2 bits, merged" and "merged from 0.99 on (key: last)" in record.text()
    assert "\nmerged: 640 tokens became 64 rows\n" in record.text()
    assert part("records").RunRecord(**run(5, merged, 0)).label() == "exact, merged"
    assert "fewer rows wait than a span takes" in part("records").RunRecord(**run(5, config, 0)).text()


@pytest.mark.parametrize(
    ("preset", "codes", "places", "line"),
    [
        (
            "balanced",
            900,
            (4_100_000, 900_000, 60_000),
            "offload cpu: 0.90 MB in CPU memory; 4.10 MB on the device",
        ),
        ("balanced", 900, (5_000_000, 0, 0), "offload cpu: nothing to move, the model runs on cpu"),
        ("balanced", 0, (5_000_000, 0, 0), "offload cpu: nothing to move, nothing is encoded"),
        ("exact", 0, (5_000_000, 0, 0), None),
    ],
)
def test_the_report_says_where_the_bytes_are(
    part: Any, preset: str, codes: int, places: tuple[int, int, int], line: str | None
) -> None:
    made = run(5, PRESETS[preset].with_changes(offload="cpu"), codes) | {"placement": Placement(*places)}
    text = part("records").RunRecord(**made).text()
    assert "offload" not in text if line is None else line in text
    assert "offload" not in part("records").RunRecord(**made | {"config": PRESETS[preset]}).text()


def test_the_report_says_what_is_kept_of_a_prompt(part: Any) -> None:
    records = part("records")
    for prompt, line in (
        (records.PromptBytes(94_371_840, 512, 512), "prompt: 94.37 MB for cross-attention, 512 keys a layer"),
        (records.PromptBytes(11_000_000, 512, 61), "61 keys a layer for 512, its padding merged"),
    ):
        assert line in records.RunRecord(**run(5), prompt=prompt).text()
    assert "prompt" not in records.RunRecord(**run(5)).text()
