"""Take the README's screenshot, or a workflow's thumbnail, from a real run in the real page.

    python tools/page.py screenshot http://127.0.0.1:8188 assets/page.jpg --workflow demo_compare
    python tools/page.py thumbnail http://127.0.0.1:8188 workflows/demo_compare.jpg --workflow demo_compare

Needs a running ComfyUI with this pack and a Chromium (CHROMIUM_PATH, or on PATH); Pillow and PyAV besides the standard library.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import av
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser.chromium import Chromium, find_chromium  # noqa: E402  # the line above makes it findable
from browser.comfy_page import ComfyPage, change_settings, opened  # noqa: E402  # likewise

THUMBNAIL_PIXELS = 520


def main() -> None:
    """Take the picture that was asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=("screenshot", "thumbnail"))
    options.add_argument("server", help="address of a running ComfyUI, such as http://127.0.0.1:8188")
    options.add_argument("file", type=Path, help="the .jpg to write")
    options.add_argument("--workflow", default="demo_compare", help="a name in workflows/")
    options.add_argument(
        "--size", type=int, nargs=2, default=(1800, 1080), metavar=("WIDTH", "HEIGHT"), help="of the page, in pixels"
    )
    chosen = options.parse_args()
    chromium = find_chromium()
    if chromium is None:
        sys.exit("no Chromium on PATH; install chromium, or set CHROMIUM_PATH to a Chromium or Chrome")
    # Only the graph is to be seen.
    change_settings(chosen.server, Comfy__Minimap__Visible=False, Comfy__Graph__CanvasInfo=False)
    with Chromium(chromium) as browser, opened(browser, chosen.server, *chosen.size) as page:
        run(page, chosen.workflow)
        if chosen.what == "screenshot":
            page.page.picture(chosen.file, "jpeg", 85)
        else:
            thumbnail(page).save(chosen.file, quality=88)
    print(f"{chosen.file}: {chosen.file.stat().st_size / 1000:.0f} kB")


def run(page: ComfyPage, name: str) -> None:
    """Open a workflow so that it fills the page, run it, and wait until its video shows a picture."""
    page.load(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")))
    end = page.run()["end"]
    if end[0] != "execution_success":
        sys.exit(f"the run ended with {end}")
    page.video()
    # The message that the job is done covers a corner for some seconds.
    time.sleep(8)
    page.page.js(
        "(() => { const boxes = app.graph.nodes.map((n) => [n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30]);"
        "const x = Math.min(...boxes.map((b) => b[0])), y = Math.min(...boxes.map((b) => b[1]));"
        "const w = Math.max(...boxes.map((b) => b[0] + b[2])) - x, h = Math.max(...boxes.map((b) => b[1] + b[3])) - y;"
        "const scale = Math.min((innerWidth - 110) / w, (innerHeight - 170) / h);"
        "app.canvas.ds.scale = scale; app.canvas.ds.offset = [75 / scale - x, 105 / scale - y];"
        "for (const video of document.querySelectorAll('video'))"
        "  { video.pause(); video.controls = false; video.currentTime = 0.995 * video.duration; }"
        "app.canvas.setDirty(true, true); })()"
    )
    time.sleep(3)


def thumbnail(page: ComfyPage) -> Image.Image:
    """Two moments of a wide video one above the other, or four of a square one; the last of each is the video's end."""
    with urlopen(page.video()["url"], timeout=60) as answer, av.open(io.BytesIO(answer.read())) as video:
        frames = [frame.to_image() for frame in video.decode(video=0)]
    columns = 1 if frames[0].width > 1.5 * frames[0].height else 2
    count = 2 * columns
    shown = [frames[(len(frames) - 1) * (index + 1) // count] for index in range(count)]
    width = THUMBNAIL_PIXELS // columns
    height = round(width * shown[0].height / shown[0].width)
    sheet = Image.new("RGB", (columns * width, 2 * height))
    for index, picture in enumerate(shown):
        sheet.paste(
            picture.resize((width, height), Image.Resampling.LANCZOS), (index % columns * width, index // columns * height)
        )
    return sheet


if __name__ == "__main__":
    main()
