"""Make the thumbnail of the template demo_forever: what its two memories took while they walked, as `benchmarks/merge.py laps`
measured it. A run of the template takes a quarter of an hour.

    python tools/merge_thumbnail.py workflows/demo_forever.jpg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import bootstrap_package  # noqa: F401  # names the package that is imported below
import numpy as np
from comfyui_qvg.qvg.models.demo_world import DemoWorldConfig
from memory_thumbnail import _pictures as drawing
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEADER, GROUND, INK = 520, 96, "#14181f", "#3ecf8e"


def main() -> None:
    """Draw it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("file", type=Path, help="the .jpg to write")
    chosen = options.parse_args()
    picture = sheet(*measured())
    picture.save(chosen.file, quality=85, optimize=True, progressive=True)
    print(f"{chosen.file}: {chosen.file.stat().st_size / 1000:.0f} kB")


def measured() -> tuple[list[float], list[float]]:
    """MB after every frame, exact and merged. Between two frames that were noted the merged one is taken to grow evenly."""
    lines = (ROOT / "benchmarks" / "results" / "merge.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [row for line in lines if (row := json.loads(line))["walk"] == "laps" and row["way"] != "exact"]
    points = {
        int(name.removeprefix("bytes_")): size
        for name, size in rows[0].items()
        if name.startswith("bytes_") and name[6].isdigit()
    }
    frames = range(1, max(points) + 1)
    merged = np.interp(frames, [0, *points], [0, *points.values()]) / 1e6
    spec = DemoWorldConfig().cache_spec()
    return [spec.exact_bytes(frame) / 1e6 for frame in frames], merged.tolist()


def sheet(exact: list[float], merged: list[float]) -> Image.Image:
    """The two curves under a headline."""
    pictures = drawing()
    lines = [pictures.Curve("exact", exact), pictures.Curve("merged", merged)]
    curves = Image.fromarray(pictures.chart("KV cache, MB, over latent frames", lines))
    curves = curves.resize((WIDTH, round(curves.height * WIDTH / curves.width)), Image.Resampling.LANCZOS)
    whole = Image.new("RGB", (WIDTH, HEADER + curves.height), GROUND)
    draw = ImageDraw.Draw(whole)
    draw.text((20, 32), f"{len(exact)} frames, twelve laps", INK, ImageFont.load_default(26), anchor="lm")
    less = f"{exact[-1] / merged[-1]:.0f} times less memory in the end, and no more than after two laps"
    draw.text((20, 70), less, "#d8dee9", ImageFont.load_default(16), anchor="lm")
    whole.paste(curves, (0, HEADER))
    return whole


if __name__ == "__main__":
    main()
