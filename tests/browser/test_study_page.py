"""page.html of `qvg study` in a real browser, from a file, without a server: every control changes what it should."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("plotly")
from comfyui_qvg.qvg.harness import page as writer
from comfyui_qvg.qvg.harness.choices import choices
from comfyui_qvg.qvg.harness.metrics import METRICS, described, front
from comfyui_qvg.qvg.harness.published import read_published
from comfyui_qvg.qvg.harness.videos import Video
from comfyui_qvg.qvg.harness.work import encoded

from .chromium import Chromium, Page

FRAMES, PROMPTS, METHODS = 165, 10, 63
COLUMNS = (
    "method,method_family,prompt_count,compression_ratio,peak_vram_gb,avg_runtime_s_per_prompt,psnr,ssim,lpips,"
    "drift_last_imaging_quality"
)
ROWS = """
BF16,BF16,10,1.0,19.28,58.6,inf,1.0,0.0,0.739
PRUNE,FLOWCACHE,10,5.49,11.71,75.0,17.67,0.544,0.297,0.738
QUAROT_R2,QUAROT,10,2.43,21.69,111.3,inf,0.706,0.183,0.729
"""


def method(name: str, number: int, dice: random.Random) -> dict[str, Any]:
    """One of the page's, whose numbers hang together as real ones do."""
    ratio = 1.0 if name == "exact" else round(1.5 + 6 * dice.random(), 2)
    ssim = 1.0 if name == "exact" else round(1 - 0.1 * ratio * dice.random(), 3)
    values: dict[str, float | None] = {metric.key: None for metric in METRICS}
    values |= {"compression": ratio, "peak": round(50 / ratio, 2), "ssim": ssim, "psnr": round(50 * ssim, 1)}
    values |= {"drift": round(45 * ssim, 1), "runtime": round(0.1 + dice.random(), 3), "visits": 20.0}
    curve = [round(50 * ssim - i / 20, 1) for i in range(FRAMES)]
    phases = {
        phase: {"peak_bytes": (number + 1) * 10**6, "plateau_bytes": (number + 1) * 9 * 10**5} for phase in ("denoise", "decode")
    }
    return {
        "name": name,
        "family": choices()[name].family,
        "form": "published" if choices()[name].published else "",
        "cases": PROMPTS,
        "values": values,
        "against": {"mean": 1.0, "low": 0.5, "high": 1.5, "better": 9, "worse": 1, "chance": 0.0215},
        "cautions": [f"caution of {name}"],
        "remarks": [],
        "components": {"codes": number * 10**6, "scales": 10**5},
        "beside": {},
        "memory": phases,
        "seconds": {},
        "windows": [[0, 49], [50, 99], [100, 149]],
        "window_psnr": [40.0, 39.0, 38.0],
        "curves": {"psnr_db": curve, "ssim": [ssim] * FRAMES, "cache_bytes": [1000] * FRAMES},
        "given": 0,
        "rows": [[i, [round(value - i / 10, 1) for value in curve]] for i in range(PROMPTS)],
    }


def film(shade: int) -> str:
    pictures = np.full((20, 32, 32, 3), shade, np.uint8)
    pictures[:, :, :, 0] += np.arange(20, dtype=np.uint8)[:, None, None]
    made = encoded(Video(pictures, 0, [1], {}, 1, 1))
    return "data:video/mp4;base64," + base64.b64encode(made).decode()


NAMES = list(choices())[:METHODS]
PUBLISHED = [name for name in NAMES if choices()[name].published]


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    dice = random.Random(1)
    methods = [method(name, number, dice) for number, name in enumerate(NAMES)]
    cases = [{"prompt": f"prompt {i} <b>&</script>", "seed": i, "frames": FRAMES} for i in range(PROMPTS)]
    ours = {
        "id": "t/165",
        "name": "ours, 165 frames",
        "published": False,
        "about": "cpu",
        "exact": "exact",
        "baseline": NAMES[1],
        "cases": cases,
        "units": {"runtime": "seconds a generated frame"},
        "missing": {"lpips": "package lpips is not installed"},
        "notes": ["a note"],
        "methods": methods,
    }
    sizes = {name: [4e9 + number * 1e8, 9e9 + number * 2e8] for number, name in enumerate(NAMES)}
    cards = {"about": "about cards", "seconds": [5, 30], "cards_gb": [8, 12, 24], "methods": sizes}
    return {"title": "Study", "about": "all of it", "sets": [ours], "videos_left": 3, "cards": cards, **described()}


@pytest.fixture(scope="module")
def opened(browser: Chromium, data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "study.csv").write_text(COLUMNS + ROWS)
    videos = {f"t/165|{name}|{case}": film(40 * case + 10 * number) for case in (0, 1) for number, name in enumerate(NAMES[:3])}
    path = folder / "page.html"
    writer.write(path, writer.plotly(), data | {"sets": [*data["sets"], read_published(folder / "study.csv")]}, videos)
    page = browser.open(1200, 900)
    page.goto(path.as_uri())
    page.wait("document.querySelector('#window-plot .plot-container') && document.readyState === 'complete'", 240, "the page")
    yield page
    assert [message for message in page.messages if message.level in ("error", "exception")] == []
    page.close()


def choose(page: Page, name: str, value: object) -> None:
    """As a person's choice reaches the page; then the frame in which it is drawn is waited for."""
    page.js(
        "(() => { const e = document.getElementById(name); e.value = value; const kind = e.type === 'range' ? 'input' : 'change';"
        "e.dispatchEvent(new Event(kind, {bubbles: true}));"
        "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true)))); })()",
        name=name,
        value=str(value),
    )


def text(page: Page, name: str) -> str:
    return str(page.js("document.getElementById(name).textContent", name=name))


def ranking(page: Page) -> list[str]:
    return list(page.js("[...document.getElementById('ranking').tBodies[0].rows].map((row) => row.dataset.name)"))


def stars(page: Page) -> set[str]:
    found = page.js(
        "document.getElementById('front-plot').data.flatMap((t) => t.text.filter((_, i) => t.marker.symbol[i] === 'star'))"
    )
    return set(found)


@pytest.fixture(autouse=True)
def as_it_opens(opened: Page) -> None:
    for name, value in (
        ("set", 0),
        ("drop", 1),
        ("ratio", 1),
        ("objectives", "balanced practical"),
        ("order", "single-GPU practical"),
    ):
        choose(opened, name, value)
    opened.js("(() => { const e = document.getElementById('forms'); if (!e.checked) e.click(); })()")


@pytest.mark.parametrize("objectives", list(described()["fronts"]))
def test_each_front_is_what_python_finds(opened: Page, data: dict[str, Any], objectives: str) -> None:
    choose(opened, "objectives", objectives)
    values = [each["values"] for each in data["sets"][0]["methods"]]
    assert stars(opened) == {NAMES[i] for i in front(values, described()["fronts"][objectives])}
    assert "LPIPS" in text(opened, "front-text") or objectives == "systems"


def test_axes(opened: Page, data: dict[str, Any]) -> None:
    choose(opened, "across", "runtime")
    choose(opened, "up", "ssim")
    drawn = opened.js(
        "(() => { const p = document.getElementById('front-plot'); const t = p.data.find((t) => t.text.includes(name));"
        "const i = t.text.indexOf(name); return [t.x[i], t.y[i], p.layout.xaxis.title.text, p.layout.yaxis.title.text]; })()",
        name=NAMES[2],
    )
    values = data["sets"][0]["methods"][2]["values"]
    assert drawn == [values["runtime"], values["ssim"], "seconds a generated frame", "SSIM, all frames"]


@pytest.mark.parametrize(
    ("slider", "value", "kept"),
    [
        ("drop", 0.2, lambda values: 1 - values["ssim"] <= 0.2 + 1e-9),
        ("ratio", 4, lambda values: values["compression"] >= 4),
        ("memory", 20, lambda values: values["peak"] <= 20),
    ],
)
def test_each_limit(opened: Page, data: dict[str, Any], slider: str, value: float, kept: Any) -> None:
    before = ranking(opened)
    choose(opened, slider, value)
    wanted = {each["name"] for each in data["sets"][0]["methods"] if kept(each["values"])}
    assert set(ranking(opened)) == wanted and len(before) == METHODS > len(wanted) > 0
    assert stars(opened) <= wanted and f"{len(wanted)} of {METHODS}" in text(opened, "left")
    assert str(value) in text(opened, f"{slider}-value")


def test_published_forms_can_be_left_out(opened: Page) -> None:
    opened.click("document.getElementById('forms')")
    opened.wait(
        "document.getElementById('left').textContent.startsWith(`${left} of`)",
        10,
        "the published forms to go",
        left=METHODS - len(PUBLISHED),
    )
    assert not any(name.endswith("(published)") for name in ranking(opened))


@pytest.mark.parametrize("order", list(described()["orders"]))
def test_each_order(opened: Page, data: dict[str, Any], order: str) -> None:
    choose(opened, "order", order)
    digits = {metric.key: (metric.better, metric.digits) for metric in METRICS}

    def place(each: dict[str, Any]) -> tuple[Any, ...]:
        keys = described()["orders"][order]
        found = [each["values"][key] for key in keys]
        return tuple(
            0 if value is None else -digits[key][0] * round(value, digits[key][1]) for key, value in zip(keys, found, strict=True)
        )

    methods = data["sets"][0]["methods"]
    found, by_name = ranking(opened), {each["name"]: each for each in methods}
    assert sorted(found) == sorted(by_name)
    assert [place(by_name[name]) for name in found] == sorted(place(each) for each in methods)


def test_a_row_opens_the_methods_page(opened: Page) -> None:
    name = ranking(opened)[5]
    opened.click("document.querySelectorAll('#ranking tbody tr')[5].cells[1]")
    opened.wait("document.getElementById('chosen').value === name", 10, "the method", name=name)
    assert f"caution of {name}" in text(opened, "cautions") and "by chance with probability 0.0215" in text(opened, "method-text")
    lines = opened.js("document.getElementById('curve-plot').data.filter((t) => t.name).map((t) => [t.name, t.y.length])")
    assert lines[0] == [name, FRAMES]
    bars = opened.js("document.getElementById('memory-plot').data.map((t) => [t.name, t.y])")
    assert [each for each, _ in bars][:2] == [f"{name}, peak", f"{name}, plateau"] and bars[0][1][0] > bars[1][1][0]
    assert opened.js("document.getElementById('window-plot').data[0].y") == [40, 39, 38]


def test_beside(opened: Page) -> None:
    choose(opened, "chosen", NAMES[3])
    choose(opened, "beside", NAMES[4])
    names = opened.js("document.getElementById('bytes-plot').data[0].x")
    assert names == [NAMES[3], NAMES[4]]
    choose(opened, "beside", "")
    assert opened.js("document.getElementById('bytes-plot').data[0].x") == [NAMES[3]]


def test_videos_run_at_one_moment(opened: Page) -> None:
    choose(opened, "chosen", NAMES[2])
    choose(opened, "beside", NAMES[1])
    shown = "[...document.querySelectorAll('#stage video')]"
    assert opened.js(f"{shown}.map((v) => v.dataset.name)") == [NAMES[0], NAMES[2], NAMES[1]]
    opened.wait(f"{shown}.every((v) => v.readyState >= 2)", 30, "the videos")
    choose(opened, "seek", 500)
    opened.wait(f"{shown}.every((v) => Math.abs(v.currentTime - v.duration / 2) < 0.11)", 20, "all videos at their middle")
    opened.click("document.getElementById('play')")
    opened.wait(f"{shown}.every((v) => v.currentTime > v.duration / 2 + 0.1)", 30, "the videos to go on")
    moments = opened.js(f"{shown}.map((v) => v.currentTime)")
    assert max(moments) - min(moments) < 0.5
    before = opened.js(f"{shown}[0].src")
    choose(opened, "case", 1)
    assert opened.js(f"{shown}[0].src") != before
    choose(opened, "case", 2)
    assert "Not in this file" in text(opened, "videos-text") and opened.js(f"{shown}.length") == 0
    choose(opened, "case", 0)
    opened.js("[...document.querySelectorAll('#which input')].find((e) => e.value === name).click()", name=NAMES[0])
    assert opened.js(f"{shown}.map((v) => v.dataset.name)") == [NAMES[2], NAMES[1]]


def test_my_card(opened: Page, data: dict[str, Any]) -> None:
    choose(opened, "gb", 8)
    choose(opened, "seconds", 5)
    methods = {each["name"]: each["values"]["psnr"] for each in data["sets"][0]["methods"]}
    sizes = data["cards"]["methods"]
    best = max((name for name in NAMES if sizes[name][0] <= 8e9), key=lambda name: methods[name])
    assert text(opened, "card-answer").startswith(f"Take {best}: ")
    choose(opened, "seconds", 30)
    assert text(opened, "card-answer").startswith("Nothing here fits 30 s into 8 GB")
    choose(opened, "gb", 12)
    assert text(opened, "card-answer").startswith("Take ")


def test_the_published_table_stands_beside_ours(opened: Page) -> None:
    choose(opened, "set", 1)
    assert ranking(opened) == ["PRUNE", "BF16", "QUAROT_R2"]
    choose(opened, "chosen", "QUAROT_R2")
    assert "its PSNR is infinite" in text(opened, "cautions") and "its peak is above exact's" in text(opened, "cautions")
    choose(opened, "set", 0)
    assert len(ranking(opened)) == METHODS


def test_what_was_not_measured_says_why(opened: Page) -> None:
    assert "lpips is not measured: package lpips is not installed" in text(opened, "notes")
    assert opened.js("document.querySelectorAll('#case option')[0].textContent") == "prompt 0 <b>&</script>, seed 0"


def test_it_stays_fluid(opened: Page) -> None:
    """63 methods and 10 prompts: a moved slider takes this of the page's thread, whatever else the machine does."""
    opened.call("Performance.enable", timeDomain="threadTicks")

    def busy() -> float:
        return next(each["value"] for each in opened.call("Performance.getMetrics")["metrics"] if each["name"] == "TaskDuration")

    before = busy()
    opened.js(
        "(async () => { const e = document.getElementById('drop');"
        "for (let i = 0; i < 10; i++) { e.value = 1 - i / 20; e.dispatchEvent(new Event('input'));"
        "await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0))); } })()"
    )
    took = 1000 * (busy() - before) / 10
    assert took < 150, f"{took:.0f} ms"


def test_it_reads_on_a_phone(opened: Page) -> None:
    opened.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    try:
        opened.wait("window.innerWidth === 390", 10, "the phone")
        assert opened.js("document.documentElement.scrollWidth") <= 390
        small = opened.js(
            "[...document.querySelectorAll('p, li, label, select, td')]"
            ".filter((e) => e.offsetParent && parseFloat(getComputedStyle(e).fontSize) < 12).length"
        )
        assert small == 0
    finally:
        opened.call("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
