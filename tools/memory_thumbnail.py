"""Make the thumbnail of a workflow whose model is not at hand: its graph in the real page, and what its memory comes to.

    python tools/memory_thumbnail.py http://127.0.0.1:8188 workflows/self_forcing_t2v.jpg
    python tools/memory_thumbnail.py drawn workflows/longcat_continue.jpg

With `drawn` in place of a server the graph is drawn from the workflow's file: boxes where its nodes are, and its links.
The curves are bytes that the library counts for the workflow's own settings, at its own size and length, on the
model that its plan names, else on the 1.3B.
Needs a running ComfyUI with this pack and a Chromium (CHROMIUM_PATH, or on PATH); torch and Pillow besides the standard library.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bootstrap_package  # noqa: F401  # names the package that is imported below
from comfyui_qvg.qvg import PRESETS, CacheSpec, QVGConfig
from comfyui_qvg.qvg.models.common.shape import NetworkShape
from comfyui_qvg.qvg.models.registry import networks
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser.chromium import Chromium, find_chromium  # noqa: E402  # the line above makes it findable
from browser.comfy_page import ComfyPage, change_settings, opened  # noqa: E402  # likewise

WIDTH, HEADER = 768, 76
PAGE = (2000, 1150)
LEFT, TOP, RIGHT, BOTTOM = 80, 120, 40, 100  # of the page, beside the graph: bars and buttons
GROUND, INK = "#14181f", "#3ecf8e"
BOX, BORDER, LINE, TEXT, BESIDE = "#222a33", "#3a4552", "#5f7f9f", "#cfd6de", 50
Prompt = dict[str, Any]


def main() -> None:
    """Draw the picture of one workflow."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("server", help="address of a running ComfyUI, such as http://127.0.0.1:8188, or drawn")
    options.add_argument("file", type=Path, help="the .jpg to write, beside its workflow")
    chosen = options.parse_args()
    workflow = json.loads(chosen.file.with_suffix(".json").read_text(encoding="utf-8"))
    program = json.loads((chosen.file.parent / "api" / chosen.file.name).with_suffix(".json").read_text(encoding="utf-8"))
    picture = stacked(program, drawn(workflow) if chosen.server == "drawn" else in_page(chosen.server, workflow))
    picture.save(chosen.file, quality=85, optimize=True, progressive=True)
    print(f"{chosen.file}: {chosen.file.stat().st_size / 1000:.0f} kB")


def in_page(server: str, workflow: dict[str, Any]) -> Image.Image:
    """The graph as the real page shows it."""
    chromium = find_chromium()
    if chromium is None:
        sys.exit("no Chromium on PATH; install chromium, or set CHROMIUM_PATH to a Chromium or Chrome")
    change_settings(server, Comfy__Minimap__Visible=False, Comfy__Graph__CanvasInfo=False)
    with Chromium(chromium) as browser, opened(browser, server, *PAGE) as page:
        return graph_picture(page, workflow)


def drawn(workflow: dict[str, Any]) -> Image.Image:
    """The graph without a page: a box with its title for each node, and a line for each link."""
    boxes = {node["id"]: (*node["pos"], *node["size"]) for node in workflow["nodes"]}
    left, top = (min(box[side] for box in boxes.values()) - BESIDE for side in (0, 1))
    width, height = (round(max(box[side] + box[side + 2] for box in boxes.values()) + BESIDE) for side in (0, 1))
    sheet = Image.new("RGB", (width - round(left), height - round(top)), GROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(24)
    for _, start, _, end, _, _ in workflow["links"]:
        (x, y, w, _), (to_x, to_y, _, _) = boxes[start], boxes[end]
        draw.line((x + w - left, y + 20 - top, to_x - left, to_y + 40 - top), LINE, 3)
    for node in workflow["nodes"]:
        x, y, w, h = boxes[node["id"]]
        ours = INK if node["type"] == "QVGKVCache" else BORDER
        draw.rounded_rectangle((x - left, y - 30 - top, x + w - left, y + h - top), 10, BOX, ours, 4 if ours == INK else 2)
        draw.text((x + 12 - left, y - 26 - top), node.get("title") or node["type"].removeprefix("QVG"), TEXT, font)
    return sheet


def graph_picture(page: ComfyPage, workflow: dict[str, Any]) -> Image.Image:
    """The graph without what stands around it in the page."""
    page.load(workflow)
    time.sleep(2)
    width, height = page.page.js(
        "(() => { const boxes = app.graph.nodes.map((n) => [...n.getBounding()]);"
        "const x = Math.min(...boxes.map((b) => b[0])), y = Math.min(...boxes.map((b) => b[1]));"
        "const w = Math.max(...boxes.map((b) => b[0] + b[2])) - x, h = Math.max(...boxes.map((b) => b[1] + b[3])) - y;"
        "const scale = Math.min((innerWidth - right) / w, (innerHeight - bottom) / h);"
        "app.canvas.ds.scale = scale; app.canvas.ds.offset = [left / scale - x, top / scale - y];"
        "app.canvas.setDirty(true, true);"
        "return [w * scale, h * scale]; })()",
        left=LEFT,
        top=TOP,
        right=LEFT + RIGHT,
        bottom=TOP + BOTTOM,
    )
    time.sleep(2)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.png"
        page.page.picture(file)
        with Image.open(file) as whole:
            margin = 16
            box = (LEFT - margin, TOP - margin, LEFT + round(width) + margin, TOP + round(height) + margin)
            return whole.convert("RGB").crop(box)


def stacked(program: Prompt, graph: Image.Image) -> Image.Image:
    """Graph, headline, curves: the page's template browser writes over the upper left corner. A video of one segment remembers
    nothing: there the graph alone."""
    pictures = _pictures()
    headline, sizes = memory(program)
    parts = [graph.resize((WIDTH, round(WIDTH * graph.height / graph.width)), Image.Resampling.LANCZOS)]
    if any(map(any, sizes.values())):
        curves = [pictures.Curve(name, values) for name, values in sizes.items()]
        parts.append(Image.fromarray(pictures.chart("Memory of the video in GB, over latent frames", curves)))
    sheet = Image.new("RGB", (WIDTH, HEADER + sum(part.height for part in parts)), GROUND)
    sheet.paste(parts[0], (0, 0))
    top = parts[0].height + HEADER
    ImageDraw.Draw(sheet).text((WIDTH // 2, top - HEADER // 2), headline, INK, ImageFont.load_default(46), anchor="mm")
    for part in parts[1:]:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def memory(program: Prompt) -> tuple[str, dict[str, list[float]]]:
    """What it comes to in a few words, and GB at each latent frame: at 16 bits, and as the workflow keeps them. What a window
    forgets is no merit of the codec, so a workflow with a window is compared with 16 bits in the same window, too."""
    width, height = (_number(program, name) for name in ("width", "height"))
    frames = _number(program, "frames", "length")
    (inputs,) = (step["inputs"] for step in program.values() if step["class_type"] == "QVGKVCache")
    changes = {name: inputs[name] for name in ("sink_frames", "recent_frames", "window_frames") if inputs[name]}
    config, exact = PRESETS[inputs["cache.preset"]].with_changes(**changes), PRESETS["exact"]
    planned = next((step["inputs"]["network"] for step in program.values() if step["class_type"] == "QVGPlan"), None)
    network = networks()[planned or "self-forcing-1.3b"]
    tokens = (width // network.token_pixels) * (height // network.token_pixels)
    if network.segment_frames is not None:
        return _segments(network, network.segment_frames, tokens, frames, config)
    block = next(
        (step["inputs"]["num_frame_per_block"] for step in program.values() if step["class_type"] == "SamplerARVideo"),
        network.chunk_frames,
    )
    spec = CacheSpec(network.layers, network.heads, network.head_dim, tokens, block)
    latents = (frames - 1) // 4 + 1

    def curve(settings: QVGConfig) -> list[float]:
        return [spec.predict(settings, min(at - at % block + block, latents)).total / 1e9 for at in range(latents)]

    words = f"{(frames - 1) / 16:.0f} s in {spec.predict_peak(config, latents) / 1e9:.1f} GB"
    if config.window_frames is None:
        return f"{words}, not {spec.exact_bytes(latents) / 1e9:.1f}", {"16 bits": curve(exact), "QVG KV Cache": curve(config)}
    window = f"window of {config.window_frames}"
    in_window = exact.with_changes(**changes)
    kept = {f"16 bits, {window}": curve(in_window), f"QVG KV Cache, {window}": curve(config)}
    return f"{words}, and no more", {"16 bits": curve(exact), **kept}


def _segments(
    network: NetworkShape, segment_frames: int, tokens: int, frames: int, config: QVGConfig
) -> tuple[str, dict[str, list[float]]]:
    """Of a model that remembers what a segment is conditioned on, as one span, and nothing in a first one made of text."""
    spec = CacheSpec(network.layers, network.heads, network.head_dim, tokens, network.condition_frames)
    one_span = config.with_changes(sink_frames=0, recent_frames=0, span_frames=network.condition_frames)
    latents = (frames - 1) // 4 + 1
    held, exact = spec.predict(one_span, spec.chunk_frames).total / 1e9, spec.exact_bytes(spec.chunk_frames) / 1e9

    def curve(size: float) -> list[float]:
        return [0.0 if at < segment_frames else size for at in range(latents)]

    seconds = f"{frames / 15:.0f} s"
    words = f"{seconds}, remembering in {held:.1f} GB, not {exact:.1f}" if latents > segment_frames else f"{seconds} from a text"
    return words, {"16 bits": curve(exact), "QVG KV Cache": curve(held)}


def _number(program: Prompt, *names: str) -> int:
    """The one number by one of these names, an input or a node of its own; the plan's, where there is one: a camera's are latent
    frames."""
    steps = [step for step in program.values() if step["class_type"] != "QVGCameraPath"]
    found = [step["inputs"]["value"] for step in steps if step["_meta"]["title"].lower() in names and "value" in step["inputs"]]
    found += [step["inputs"][name] for step in steps for name in names if isinstance(step["inputs"].get(name), int)]
    (number,) = found
    return int(number)


def _pictures() -> Any:
    """The nodes' own charts. The module stands alone; the package around it needs ComfyUI."""
    name = "comfyui_qvg.drawn.pictures"  # as deep as the package, for what it imports of the library
    spec = importlib.util.spec_from_file_location(name, ROOT / "nodes" / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
