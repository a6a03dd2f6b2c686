"""What the nodes do, as far as it needs no ComfyUI."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_qvg.qvg import PRESETS, CacheBytes, CacheSpec, ConfigError, QVGConfig, UnsupportedModelError
from comfyui_qvg.qvg.errors import CameraPathError

ADVANCED = {"sink_frames": 1, "recent_frames": 3, "window_frames": None, "span_frames": 24, "seed": 0, "backend": "auto"}


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
        "cache_bytes": sizes,
        "exact_bytes": exact,
        "seconds": seconds,
        "components": parts,
        "workspace_bytes": 0,
        "given_frames": 1,
    }


def test_node_defaults_are_the_presets(part: Any) -> None:
    make_config = part("cache").make_config
    for name in ("qvg", "qvg-pro"):
        assert make_config({"cache": "preset", "preset": name}, **ADVANCED) == PRESETS[name]
    assert make_config({"cache": "exact"}, **ADVANCED) == PRESETS["exact"]
    assert make_config({"cache": "exact"}, **{**ADVANCED, "span_frames": 6, "seed": 3}) == PRESETS["exact"]
    assert make_config({"cache": "exact"}, **{**ADVANCED, "window_frames": 9}).window_frames == 9
    custom = {"cache": "custom", "bits": "2", "num_stages": 1, "clusters": 0, "group_size": "64"}
    assert make_config(custom, **ADVANCED) == PRESETS["qvg"]


def test_custom_settings_and_advanced_ones_arrive(part: Any) -> None:
    custom = {"cache": "custom", "bits": "4", "num_stages": 2, "clusters": 16, "group_size": "32"}
    config = part("cache").make_config(custom, **{**ADVANCED, "window_frames": 40, "seed": 7})
    expected = QVGConfig(bits=4, num_stages=2, clusters=16, group_size=32, window_frames=40, seed=7)
    assert config == expected


def test_a_model_without_memory_is_refused_and_those_with_one_are_named(part: Any) -> None:
    class WAN21:
        pass

    with pytest.raises(UnsupportedModelError, match="WAN21 has no KV cache.*demo world"):
        part("comfy.attach").with_cache(Model(WAN21()), PRESETS["qvg"])


def test_settings_go_to_the_clone_alone(part: Any) -> None:
    attach, model = part("comfy.attach"), with_memory()
    clone = attach.with_cache(model, PRESETS["qvg"])
    assert attach.settings_of(clone.model_options).config == PRESETS["qvg"]
    assert attach.settings_of(model.model_options).config == PRESETS["exact"]
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
    mixed = part("camera").QVGCameraPath.execute("w+left-2,right-3", 4).args[0]
    assert mixed.from_above()[:, 0].tolist() == [0, -1, -2, -3]


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
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "comfyui_qvg.nodes.comfy.progress", SimpleNamespace(say=said.append))
    monkeypatch.setattr(report, "RECORDS", records.Records())
    video = torch.rand(1, 3, 5, 4, 4)
    report.RECORDS.add(video, records.RunRecord(**run(5, PRESETS["qvg"])))
    out = report.QVGCacheReport.execute(attach.with_cache(with_memory(), PRESETS["qvg"]), {"samples": video.clone()})
    assert "ratio 4.00x over all 5 frames" in out.args[1] and said == [out.args[1]]
    with pytest.raises(ConfigError, match="was not sampled with this MODEL .* since ComfyUI started; connect"):
        report.QVGCacheReport.execute(with_memory(), {"samples": video})


def test_the_report_counts_in_the_open(part: Any) -> None:
    record = part("records").RunRecord(**run(5, PRESETS["qvg"]))
    assert record.ratio == 4.0 and record.seconds_per_frame == 1.0
    assert "ratio 4.00x over all 5 frames, exact frames included" in record.text()
    assert "Nothing was encoded" in record.text()
    assert "Nothing was encoded" not in part("records").RunRecord(**run(5, PRESETS["qvg"], codes=10)).text()


def test_charts_are_pictures(part: Any) -> None:
    pictures = part("pictures")
    for values in ([0.0], [1.0, 5.0, 2.0], [1e-3] * 4, [4000.0, 1.0]):
        picture = pictures.chart("title", [pictures.Curve("a", values), pictures.Curve("b", values[:1])])
        assert picture.shape == (320, 768, 3) and picture.dtype == np.uint8 and picture.std() > 0


def test_compare_says_identical_and_how_far(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report, records = part("report"), part("records")
    a = torch.rand(6, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    psnr = report.psnr_db(a, a)
    made = records.RunRecord(**run(6))
    assert "identical" in report._comparison(psnr, (None, None)).splitlines()[0]
    text = report._comparison(report.psnr_db(a, (a + 0.1).clamp(0, 1)), (made, None))
    assert "dB" in text.splitlines()[0] and "A: exact" in text
    assert report._row((a, a), (made, None), 2, 4).shape[-1] == 3
    assert report._curves(psnr, (made, made)).shape == (640, 768, 3)


@pytest.fixture
def compare(part: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """QVG Compare of two videos, at 10 frames per second."""
    monkeypatch.setitem(sys.modules, "comfyui_qvg.nodes.comfy.progress", SimpleNamespace(say=lambda text: None))
    return lambda a, b, scale=0: part("report").QVGCompare.execute(a, b, 10.0, scale)


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
    with pytest.raises(ConfigError, match=r"^images_a are 32 x 16 pixels and images_b 16 x 16; give two videos of one width"):
        compare(torch.zeros(1, 16, 32, 4), torch.zeros(1, 16, 16, 3))
    with pytest.raises(ConfigError, match=r"^images_b has 1 colour channel\(s\), but must have 3, or 4 with alpha"):
        compare(torch.zeros(1, 16, 16, 3), torch.zeros(1, 16, 16, 1))
