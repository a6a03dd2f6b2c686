"""The pack in ComfyUI's page: what people see."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ..integration.client import Client
from .chromium import Chromium, Message
from .comfy_page import ComfyPage, change_settings, is_noise, opened

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted((ROOT / "workflows").glob("*.json"))}
GOLDEN = json.loads((ROOT / "tests" / "nodes" / "object_info.json").read_text(encoding="utf-8"))


def short(name: str = "demo_world", frames: int = 20, **inputs: Any) -> dict[str, Any]:
    """A workflow of ours, shortened, saved as an older page saved it: widget values by position alone."""
    graph = copy.deepcopy(WORKFLOWS[name])
    for node in graph["nodes"]:
        names = list(node.pop("widgets_values_named", ()))
        if node["type"] == "QVGCameraPath":
            node["widgets_values"] = ["d-4,a-4", frames]
        if node["type"] == "QVGKVCache":
            node["widgets_values"][names.index("span_frames")] = 6
        if node["type"] in inputs:
            node["widgets_values"] = inputs[node["type"]](node["widgets_values"])
    return graph


@pytest.mark.parametrize("name", WORKFLOWS)
def test_template_browser_lists_it_and_it_opens_without_an_error(page: ComfyPage, name: str) -> None:
    page.show_templates("ComfyUI-QVG")
    assert {each: page.templates().get(each, 0) > 100 for each in WORKFLOWS} == dict.fromkeys(WORKFLOWS, True)
    page.open_template(name, len(WORKFLOWS[name]["nodes"]))
    assert page.missing() == []
    page.forget_painted()
    page.page.wait("painted.has('QVG KV Cache')", 30, "the nodes' titles")
    # Titles and widgets are readable as the page first shows them.
    assert page.scale() > 0.6 and "balanced" in page.painted()
    # What few people need is behind a button, in the classic canvas too.
    assert "span_frames" not in page.painted() and "▸ 13 more" in page.painted()
    assert page.errors() == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_node_covers_another_or_cuts_its_widgets(same_page: ComfyPage, name: str) -> None:
    same_page.load(WORKFLOWS[name])
    boxes = same_page.page.js("app.graph.nodes.map((n) => [n.title, [...n.getBounding()], [...n.computeSize()], [...n.size]])")
    assert len(boxes) == len(WORKFLOWS[name]["nodes"])
    for title, (x, y, width, height), needed, size in boxes:
        assert size[0] >= min(needed[0], 230) and size[1] >= needed[1] - 1, f"{title} is {size}, and needs {needed}"
        for other, (x2, y2, width2, height2), _, _ in boxes:
            apart = x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y
            assert title == other or apart, f"{title} covers {other}"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_program_form_is_what_the_page_sends(same_page: ComfyPage, server: Client, name: str) -> None:
    same_page.load(WORKFLOWS[name])
    ours = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    sent = same_page.prompt()
    if server.get("/system_stats")["system"]["comfyui_version"] != GOLDEN["comfyui_version"]:
        # Other versions call core's nodes, and their inputs, by other names; ours stay.
        ours, sent = (
            {key: step["inputs"] for key, step in each.items() if step["class_type"].startswith("QVG")} for each in (ours, sent)
        )
    assert sent == ours


def test_run_shows_previews_progress_and_the_video(page: ComfyPage) -> None:
    page.load(short())
    shown = page.run()
    assert shown["end"][0] == "execution_success"
    assert len({each for each in shown["previews"] if each.startswith("SamplerCustomAdvanced blob:")}) > 1
    texts = [each for each in shown["texts"] if ", block " in each]
    assert len(texts) > 1 and all("MB" in each and "s/frame" in each for each in texts)
    video = page.video()
    assert "filename=demo_world_" in video["url"] and video["width"] == 64
    assert video["seconds"] == pytest.approx(20 / 10, abs=0.15)  # frames / fps
    assert any(each.startswith("QVGCacheReport: ") and "20 latent frames (4 given)" in each for each in shown["texts"])
    assert page.errors() == []


# What this pack shows on a node of a class, and the node itself, as [left, top, right, bottom] in pixels of the page.
SHOWN = """((kind, type) => { const node = app.graph.nodes.find((n) => n.type === kind);
  const { element } = node.widgets.find((w) => w.type === type);
  const vue = document.querySelector(`[data-node-id="${node.id}"]`);
  const [x, y, w, h] = node.getBounding(), { offset, scale } = app.canvas.ds, o = app.canvas.canvas.getBoundingClientRect();
  const at = (a, b) => [(a + offset[0]) * scale + o.left, (b + offset[1]) * scale + o.top];
  const box = (r) => [r.left, r.top, r.right, r.bottom];
  return { text: element.innerText, box: box(element.getBoundingClientRect()),
    node: vue ? box(vue.getBoundingClientRect()) : [...at(x, y), ...at(x + w, y + h)],
    lines: [...element.querySelectorAll('span, b, text, button')].filter((e) => e.textContent && e.getClientRects().length).map(
      (e) => [e.textContent, parseFloat(getComputedStyle(e).fontSize), box(e.getBoundingClientRect())]) }; })(kind, type)"""


@pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes_2"])
def test_gauge_and_report_can_be_read_in_both_kinds_of_nodes(browser: Chromium, server: Client, nodes_2: bool) -> None:
    change_settings(server.url, Comfy__VueNodes__Enabled=nodes_2)
    server.forget()
    try:
        with opened(browser, server.url) as page:
            page.load(short(frames=12))
            page.page.js("window.gauges = [], app.api.addEventListener('qvg.gauge', (e) => gauges.push(e.detail))")
            assert page.run()["end"][0] == "execution_success"
            told = page.page.js("gauges")
            assert [each["block"] for each in told] == list(range(1, 13))
            assert told[0]["seconds_left"] > 0 == told[-1]["seconds_left"]
            assert all(0 < each["cache_bytes"] <= each["exact_bytes"] for each in told[-2:])
            gauge, report = (
                page.page.js(SHOWN, kind=kind, type=type_)
                for kind, type_ in (("SamplerCustomAdvanced", "qvg-gauge"), ("QVGCacheReport", "qvg-card"))
            )
            assert f"{told[-1]['cache_bytes'] / 1e6:.1f} MB" in gauge["text"] and "block 12 of 12" in gauge["text"]
            assert f"exact {told[-1]['exact_bytes'] / 1e6:.1f} MB" in gauge["text"] and "done in" in gauge["text"]
            assert "less memory" in report["text"] and f"{told[-1]['cache_bytes'] / 1e6:.1f} MB" in report["text"]
            for shown in (gauge, report):
                # It is inside its node, nothing of it is cut off, and at 60 % zoom letters have 9 pixels and more.
                left, top, right, bottom = shown["box"]
                assert right - left > 200 and bottom - top > 50
                for outer, inner in ((shown["node"], shown["box"]), *((shown["box"], box) for _, _, box in shown["lines"])):
                    assert outer[0] <= inner[0] + 1 and outer[1] <= inner[1] + 1, (outer, inner)
                    assert inner[2] <= outer[2] + 1 and inner[3] <= outer[3] + 1, (outer, inner)
                assert len(shown["lines"]) >= 5 and all(0.6 * size >= 9 for _, size, _ in shown["lines"])
            assert "qvg-" not in page.page.js("JSON.stringify(app.graph.serialize())")
            assert page.errors() == []
    finally:
        change_settings(server.url, Comfy__VueNodes__Enabled=False)


def test_a_report_out_of_the_execution_cache_still_shows_its_text(browser: Chromium, server: Client, page: ComfyPage) -> None:
    page.load(short(frames=12))
    assert page.run()["end"][0] == "execution_success"
    with opened(browser, server.url) as another:
        another.load(short(frames=12))
        shown = another.run()
    assert not any(", block " in each for each in shown["texts"])
    assert any(each.startswith("QVGCacheReport: ") and "12 latent frames" in each for each in shown["texts"])


def into_subgraph(page: ComfyPage, kind: str) -> None:
    """Put the one node of a class into a subgraph, as the page's own menu does, and look into it. It is `window.inner` then."""
    page.page.js(
        "(() => { const node = app.graph.nodes.find((n) => n.type === kind);"
        "const { subgraph } = app.graph.convertToSubgraph(new Set([node])); app.canvas.openSubgraph(subgraph);"
        "window.inner = subgraph.nodes.find((n) => n.type === kind); })()",
        kind=kind,
    )


def is_older(server: Client, version: tuple[int, int]) -> bool:
    """Whether the server's ComfyUI is older than this."""
    mine: str = server.get("/system_stats")["system"]["comfyui_version"]
    return tuple(map(int, mine.split(".")[:2])) < version


def test_a_cached_report_in_a_subgraph_is_shown_too(page: ComfyPage) -> None:
    page.load(short(frames=12))
    into_subgraph(page, "QVGCacheReport")
    assert page.run()["end"][0] == "execution_success"
    text = "inner.widgets.find((widget) => widget.name === '$$qvg-card').element.querySelector('[data-part=details]')"
    page.page.wait(f"{text}.textContent.includes('12 latent frames')", 30, "the report that is made")
    page.page.js(f"{text}.textContent = ''")
    assert page.run()["end"][0] == "execution_success"
    page.page.wait(f"{text}.textContent.includes('12 latent frames')", 30, "the report out of the cache")
    assert page.errors() == []


def test_camera_errors_in_a_subgraph_are_written_under_the_node(page: ComfyPage) -> None:
    page.load(short(QVGCameraPath=lambda values: ["d-14,x-3", *values[1:]]))
    into_subgraph(page, "QVGCameraPath")
    page.press_run()
    (name,) = page.node_errors()
    assert name.count(":") == 1
    page.forget_painted()
    page.page.wait("[...painted].join(' ').includes(\"has the unknown key 'x'\")", 30, "the sentence on the canvas")


def test_compare_shows_both_videos(page: ComfyPage) -> None:
    page.load(short("demo_compare"))
    shown = page.run()
    assert shown["end"][0] == "execution_success", shown["end"]
    assert any("10 of 20 frames are identical" in each for each in shown["texts"])
    assert page.video()["width"] > 2 * 4 * 64
    assert page.errors() == []


def test_a_comparison_saved_with_two_videos_has_room_for_more(page: ComfyPage) -> None:
    """Templates before had six inputs here: links stay where they were, and the page adds the others behind."""
    graph = short("demo_compare")
    (saved,) = (node for node in graph["nodes"] if node["type"] == "QVGCompare")
    saved["inputs"] = [each for each in saved["inputs"] if each["name"][-2:] not in ("_c", "_d")]
    page.load(graph)
    shown = page.page.js(
        "app.graph.nodes.find((n) => n.type === 'QVGCompare').inputs.map((i) => [i.name, i.link != null || !!i.widget])"
    )
    assert [name for name, linked in shown if linked] == ["images_a", "images_b", "report_a", "report_b", "fps", "scale"]
    assert sorted(name for name, linked in shown if not linked) == ["images_c", "images_d", "report_c", "report_d"]
    assert page.errors() == []


def test_placeholders_in_a_name_are_filled_in(page: ComfyPage) -> None:
    """As for core's nodes: with the date, and with what is typed into a node of this title."""
    page.load(WORKFLOWS["self_forcing_t2v"])
    page.set("QVGSaveVideo", filename_prefix="QVG/%date:yyyy-MM-dd%/%Decode and Save Video.crf%/%Nobody.x%")
    (save,) = (step for step in page.prompt().values() if step["class_type"] == "QVGSaveVideo")
    today = page.page.js("new Date().getFullYear() + '-' + String(new Date().getMonth() + 1).padStart(2, '0')")
    assert re.fullmatch(rf"QVG/{today}-\d\d/\d+/%Nobody\.x%", save["inputs"]["filename_prefix"])
    assert page.widgets("QVGSaveVideo")["filename_prefix"].startswith("QVG/%date:")


def test_a_file_in_a_folder_is_chosen_as_this_system_lists_it(page: ComfyPage, server: Client) -> None:
    folder = server.base / "models" / "diffusion_models" / "wan_distilled_model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.pt").write_bytes(b"")
    page.page.js("app.refreshComboInNodes()")
    graph = copy.deepcopy(WORKFLOWS["worldplay_5b_i2v"])
    for node in graph["nodes"]:
        if node["type"] == "QVGLoadWorldPlay":
            node["widgets_values"][0] = "wan_distilled_model\\model.pt"
            node.pop("widgets_values_named", None)
    page.load(graph)
    assert page.widgets("QVGLoadWorldPlay")["file"] == "wan_distilled_model/model.pt"


def test_camera_errors_are_written_under_the_node(page: ComfyPage) -> None:
    page.load(short(QVGCameraPath=lambda values: ["d-14,x-3", *values[1:]]))
    page.press_run()
    (error,) = page.node_errors()["3"]["errors"]
    assert "part 2 of the camera path, 'x-3', has the unknown key 'x'" in error["details"]
    page.forget_painted()
    page.page.wait("[...painted].join(' ').includes(\"has the unknown key 'x'\")", 30, "the sentence on the canvas")
    assert page.page.js("watched.end") is None  # nothing was queued
    page.set("QVGCameraPath", path="d-4,a-4")
    assert page.run()["end"][0] == "execution_success"
    page.forget_painted()
    page.page.wait("painted.has('QVG Camera Path')", 30, "the nodes' titles")
    assert "unknown key" not in page.painted()


def test_a_mode_has_its_own_widgets_and_sends_them(page: ComfyPage) -> None:
    page.load(WORKFLOWS["demo_world"])
    before = page.widgets("QVGKVCache")
    advanced = {name: value for name, value in before.items() if not name.startswith("cache")}
    options = GOLDEN["nodes"]["QVGKVCache"]["input"]["required"]["cache"][1]["options"]
    assert [option["key"] for option in options] == ["preset", "custom", "exact", "klt", "kivi", "quarot", "rtn", "study"]
    for option in [*options[1:], options[0]]:
        page.set("QVGKVCache", cache=option["key"])
        own = {f"cache.{name}": settings["default"] for name, (_, settings) in option["inputs"]["required"].items()}
        expected = {"cache": option["key"], **own, **advanced}
        assert page.widgets("QVGKVCache") == expected
        sent = page.prompt()["2"]["inputs"]
        assert {name: value for name, value in sent.items() if name != "model"} == expected
    assert page.widgets("QVGKVCache") == before and page.errors() == []


def test_settings_that_are_folded_away_come_out_at_a_click(page: ComfyPage) -> None:
    graph = copy.deepcopy(WORKFLOWS["demo_world"])
    page.load(graph)
    cache = "app.graph.nodes.find((n) => n.type === 'QVGKVCache')"
    button = f"{cache}.widgets.find((w) => w.name === '$$qvg-more')"
    folded = page.page.js(f"{cache}.computeSize()[1]")
    assert page.page.js(f"{button}.label") == "▸ 13 more, 1 of them changed"  # the demo's short spans
    page.page.js(f"{button}.callback()")
    assert page.page.js(f"{button}.label") == "▾ fewer" and page.page.js(f"{cache}.computeSize()[1]") > folded + 13 * 20
    page.forget_painted()
    page.page.wait("painted.has('span_frames')", 30, "the settings")
    page.page.js(f"{button}.callback()")
    assert page.page.js(f"{cache}.computeSize()[1]") == folded and page.errors() == []
    # One that is connected is never hidden.
    page.page.js(
        f"(() => {{ const number = LiteGraph.createNode('PrimitiveInt'); app.graph.add(number);"
        f"const cache = {cache}; number.connect(0, cache, cache.inputs.findIndex((i) => i.name === 'span_frames')); }})()"
    )
    page.load(page.page.js("app.graph.serialize()"))
    assert page.page.js(f"{button}.label") == "▾ fewer"


def test_a_workflow_without_the_newest_widget_runs_with_its_default(page: ComfyPage) -> None:
    graph = short(frames=6, QVGKVCache=lambda values: values[:-1])
    (cache,) = (node for node in graph["nodes"] if node["type"] == "QVGKVCache")
    cache["inputs"] = [each for each in cache["inputs"] if each["name"] != "merge_padding"]
    page.load(graph)
    assert page.widgets("QVGKVCache") == WORKFLOWS["demo_world"]["nodes"][1]["widgets_values_named"] | {"span_frames": 6}
    assert page.run()["end"][0] == "execution_success"
    assert page.errors() == []


@pytest.fixture
def keeps_refusals(server: Client) -> None:
    """The camera path can run where the cache node cannot, and ComfyUI then runs that part."""
    if is_older(server, (0, 33)):
        pytest.skip("this page forgets what was refused as soon as another part of the graph starts to run; 0.33's does not")


@pytest.mark.usefixtures("keeps_refusals")
def test_a_preset_that_is_gone_is_named(page: ComfyPage) -> None:
    page.load(short(frames=6, QVGKVCache=lambda values: [values[0], "qvg-of-old", *values[2:]]))
    assert page.widgets("QVGKVCache") == WORKFLOWS["demo_world"]["nodes"][1]["widgets_values_named"] | {
        "cache.preset": "qvg-of-old",
        "span_frames": 6,
    }
    page.forget_painted()
    page.press_run()
    (error,) = page.node_errors()["2"]["errors"]
    assert error["details"].startswith("cache.preset: 'qvg-of-old' not in ['qvg', 'qvg-pro'")
    page.page.wait("[...painted].join(' ').includes(\"'qvg-of-old' not in\")", 30, "the sentence on the canvas")


@pytest.mark.usefixtures("keeps_refusals")
def test_a_mode_that_is_gone_is_refused_before_anything_runs(page: ComfyPage) -> None:
    page.load(short(frames=6, QVGKVCache=lambda values: ["lossless", *values[2:]]))
    page.press_run()
    (error,) = page.node_errors()["2"]["errors"]
    assert "cache is 'lossless', but must be one of preset, custom, exact" in error["details"]
    assert error["extra_info"]["input_name"] == "cache"


def test_names_and_tooltips_are_in_the_language_of_the_page(browser: Chromium, server: Client) -> None:
    expected = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    change_settings(server.url, Comfy__Locale="zh")
    try:
        with opened(browser, server.url) as page:
            page.load(WORKFLOWS["demo_world"])
            titles = page.page.js("Object.fromEntries(app.graph.nodes.map((n) => [n.type, n.title]))")
            labels = page.page.js("app.graph.nodes.find((n) => n.type === 'QVGKVCache').widgets.map((w) => w.label)")
            assert page.errors() == []
    finally:
        change_settings(server.url, Comfy__Locale="en")
    ours = {name: titles[name] for name in expected if name in titles}
    assert ours == {name: expected[name]["display_name"] for name in ours} and len(ours) >= 6
    inputs = expected["QVGKVCache"]["inputs"]
    assert labels[:3] == [inputs["cache"]["name"], inputs["cache_preset"]["name"], inputs["sink_frames"]["name"]]


def test_the_noise_filter_lets_everything_else_through() -> None:
    url = "http://127.0.0.1:1"
    missing = "Failed to load resource: the server responded with a status of 404 (Not Found)"
    assert is_noise(Message("error", missing, url + "/user.css"), url)
    assert not is_noise(Message("error", missing, url + "/extensions/ComfyUI-QVG/qvg.js"), url)
    assert not is_noise(Message("error", missing, url + "/api/workflow_templates/ComfyUI-QVG/demo_world.jpg"), url)
    assert not is_noise(Message("exception", "TypeError: node is undefined", url + "/extensions/ComfyUI-QVG/qvg.js"), url)
