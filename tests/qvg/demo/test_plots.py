"""The picture of a demo: there, of the right size, and with no two texts on top of each other."""

from __future__ import annotations

import itertools
import os
import sys

import numpy as np
import pytest
from comfyui_qvg.qvg.demo.plots import HEIGHT_PIXELS, WIDTH_PIXELS, RunCurve, demo_figure, plot_demo
from comfyui_qvg.qvg.errors import ConfigError, MediaError
from PIL import Image

pytest.importorskip("matplotlib", reason="matplotlib, an extra, is not installed")

FRAMES = 120
MOMENTS = [(12, "first visit"), (40, "on the way"), (72, "second visit")]


def runs(frames=FRAMES, qvg_bytes_per_frame=60_000):
    """Three runs as the demo makes them: the last two end at the same bytes."""
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 255, (frames, 16, 16, 3), dtype=np.uint8))
    frame = np.arange(frames)
    exact, qvg = 330_000 * (frame + 1), qvg_bytes_per_frame * (frame + 1)
    window = np.minimum(exact, qvg[-1])
    qvg_db = np.where(frame < 10, 100, 42 + rng.normal(0, 2, frames))
    window_db = 60 - 40 * frame / frames
    return [
        RunCurve("exact", "exact", exact.tolist(), None, pictures),
        RunCurve("qvg", "2-bit QVG", qvg.tolist(), qvg_db.tolist(), pictures),
        RunCurve("window", "exact, cut to the same bytes", window.tolist(), window_db.tolist(), pictures),
    ]


def texts(figure):
    """What is written, with its box in pixels."""
    figure.canvas.draw()
    found = [text for axes in figure.axes if axes.axison for text in axes.texts + axes.get_xticklabels() + axes.get_yticklabels()]
    return [(text.get_text(), text.get_window_extent()) for text in found + figure.texts if text.get_text()]


@pytest.mark.parametrize(("frames", "qvg_bytes_per_frame"), [(176, 60_000), (80, 1000), (101, 300_000), (120, 329_000)])
def test_no_text_touches_another_or_leaves_the_picture(frames, qvg_bytes_per_frame):
    written = texts(demo_figure(runs(frames, qvg_bytes_per_frame), MOMENTS, revisit_from=60))
    assert {"exact", "2-bit QVG", "second visit", "KV cache, MB", "latent frame"} <= {text for text, _ in written}
    for text, box in written:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= WIDTH_PIXELS and box.y1 <= HEIGHT_PIXELS, text
    for (text, box), (other, other_box) in itertools.combinations(written, 2):
        assert not box.overlaps(other_box), f"{text!r} touches {other!r}"


def test_the_file(tmp_path):
    plot_demo(runs(), tmp_path / "demo.png", MOMENTS, revisit_from=60)
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.format == "PNG" and picture.size == (WIDTH_PIXELS, HEIGHT_PIXELS)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(0x4C, 0x78, 0xA8), (0xB8, 0x86, 0x0B), (0xD9, 0x5F, 0x0E), (0xF0, 0xF3, 0xF6)} <= colours


def test_identical_frames_do_not_flatten_the_curves():
    axes = demo_figure(runs(), MOMENTS).axes[-1]
    assert axes.get_ylim()[1] == 60 and axes.get_yticklabels()[-1].get_text() == "≥ 60"


def test_one_identical_run_is_drawn():
    only = RunCurve("other", "other", [0, 0], [100.0, 100.0], runs(2)[0].frames)
    axes = demo_figure([only], [(1, "now")]).axes[-1]
    assert axes.get_ylim()[0] < axes.get_ylim()[1]


def test_refusals(tmp_path):
    exact = runs()[0]
    with pytest.raises(ConfigError, match="0 runs and 3 moments"):
        demo_figure([], MOMENTS)
    with pytest.raises(ConfigError, match="1 runs and 0 moments"):
        demo_figure([exact], [])
    with pytest.raises(ConfigError, match=r"'exact' has no latent frame 120; choose moments in 0\.\.119"):
        demo_figure([exact], [(FRAMES, "too late")])
    with pytest.raises(ConfigError, match="no latent frame 500"):
        demo_figure([exact], MOMENTS, revisit_from=500)
    with pytest.raises(ConfigError, match="120 cache sizes, 120 frames and 2 PSNRs"):
        demo_figure([RunCurve("qvg", "qvg", exact.cache_bytes, [1.0, 2.0], exact.frames)], MOMENTS)


def test_a_path_that_cannot_be_written(tmp_path):
    with pytest.raises(MediaError, match=r"cannot write the picture .*No such file.*--out"):
        plot_demo(runs(), tmp_path / "missing" / "demo.png", MOMENTS)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full, the device that is always full")
def test_a_full_disk():
    with pytest.raises(MediaError, match=r"cannot write the picture /dev/full \(No space left on device\); free space"):
        plot_demo(runs(), "/dev/full", MOMENTS)


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MediaError, match="needs matplotlib.*pip install matplotlib"):
        plot_demo(runs(), tmp_path / "demo.png", MOMENTS)
