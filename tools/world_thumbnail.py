"""Make the thumbnail of a world's workflow, whose model is not at hand: its walk as QVG Camera Path draws it, its graph in the
real page, and what its memory comes to.

    python tools/world_thumbnail.py http://127.0.0.1:8188 workflows/worldplay_return.jpg

The bytes are those that the library counts for the workflow's own settings, at its own size, in mode vendor. Needs a running
ComfyUI with this pack and a Chromium (CHROMIUM_PATH, or on PATH); torch and Pillow besides the standard library.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from memory_thumbnail import GROUND, HEADER, INK, PAGE, WIDTH, Prompt, graph_picture
from PIL import Image, ImageDraw, ImageFont

# isort: split
from browser.chromium import Chromium, find_chromium  # the module above makes these findable
from browser.comfy_page import change_settings, opened
from comfyui_qvg.qvg import PRESETS, CacheSpec
from comfyui_qvg.qvg.models.registry import networks

RUN_SECONDS = 60


def main() -> None:
    """Draw the picture of one workflow."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("server", help="address of a running ComfyUI, such as http://127.0.0.1:8188")
    options.add_argument("file", type=Path, help="the .jpg to write, beside its workflow")
    chosen = options.parse_args()
    chromium = find_chromium()
    if chromium is None:
        sys.exit("no Chromium on PATH; install chromium, or set CHROMIUM_PATH to a Chromium or Chrome")
    change_settings(chosen.server, Comfy__Minimap__Visible=False, Comfy__Graph__CanvasInfo=False)
    workflow = json.loads(chosen.file.with_suffix(".json").read_text(encoding="utf-8"))
    program = json.loads((chosen.file.parent / "api" / chosen.file.name).with_suffix(".json").read_text(encoding="utf-8"))
    walk = walk_picture(chosen.server, step(program, "QVGCameraPath"))
    with Chromium(chromium) as browser, opened(browser, chosen.server, *PAGE) as page:
        graph = graph_picture(page, workflow)
    sheet = stacked(headline(program), [walk, graph])
    sheet.save(chosen.file, quality=85, optimize=True, progressive=True)
    print(f"{chosen.file}: {chosen.file.stat().st_size / 1000:.0f} kB")


def step(program: Prompt, kind: str) -> dict[str, Any]:
    """The one node of a class."""
    (found,) = (each for each in program.values() if each["class_type"] == kind)
    return dict(found)


def walk_picture(server: str, camera: dict[str, Any]) -> Image.Image:
    """What the camera's node shows when it is run by itself."""
    data = json.dumps({"prompt": {"1": camera}}).encode()
    with urlopen(Request(f"{server}/prompt", data, {"Content-Type": "application/json"}), timeout=30) as answer:
        prompt_id = json.load(answer)["prompt_id"]
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        with urlopen(f"{server}/history/{prompt_id}", timeout=30) as answer:
            run = json.load(answer).get(prompt_id)
        if run and run["outputs"]:
            (shown,) = run["outputs"]["1"]["images"]
            with urlopen(f"{server}/view?{urlencode(shown)}", timeout=30) as answer:
                return Image.open(io.BytesIO(answer.read())).convert("RGB")
        time.sleep(0.3)
    sys.exit(f"the camera path was not drawn within {RUN_SECONDS} s")


def headline(program: Prompt) -> str:
    """What the frames that a chunk sees take, and would take at 16 bits."""
    sampler, start = (step(program, kind)["inputs"] for kind in ("QVGWorldSampler", "QVGWorldStart"))
    network_name = step(program, "QVGPlan")["inputs"]["network"]
    network = networks()[network_name]
    # The official rule of the 8B adds the first four frames.
    frames = sampler["memory_frames"] + 4 * (network_name == "worldplay-8b")
    width, height = (program[start[side][0]]["inputs"]["value"] for side in ("width", "height"))
    tokens = (width // network.token_pixels) * (height // network.token_pixels)
    spec = CacheSpec(network.layers, network.heads, network.head_dim, tokens, frames)
    preset = PRESETS[step(program, "QVGKVCache")["inputs"]["cache.preset"]]
    kept = spec.predict(preset.with_changes(sink_frames=0, recent_frames=0, span_frames=frames), frames).total
    return f"{frames} frames in {kept / 1e9:.1f} GB, not {spec.exact_bytes(frames) / 1e9:.1f}"


def stacked(words: str, pictures: list[Image.Image]) -> Image.Image:
    """The first picture, headline, the others: the page's template browser writes over the upper left corner."""
    small = [each.resize((WIDTH, round(WIDTH * each.height / each.width)), Image.Resampling.LANCZOS) for each in pictures]
    sheet = Image.new("RGB", (WIDTH, HEADER + sum(each.height for each in small)), GROUND)
    sheet.paste(small[0], (0, 0))
    top = small[0].height + HEADER
    ImageDraw.Draw(sheet).text((WIDTH // 2, top - HEADER // 2), words, INK, ImageFont.load_default(46), anchor="mm")
    for each in small[1:]:
        sheet.paste(each, (0, top))
        top += each.height
    return sheet


if __name__ == "__main__":
    main()
