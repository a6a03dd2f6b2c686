"""What `qvg doctor` prints."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ..errors import ConfigError, shown
from .touch_points import PACK, missing, touch_points


def doctor(comfyui: Path | None, as_json: bool = False) -> int:
    """-> exit code, 1 where something that the nodes need is not there. ConfigError: that is no ComfyUI."""
    home = _home(comfyui)
    lacks, count, version = missing(home), len(touch_points()), _version(home)
    needed = [point for point in lacks if not point.optional]
    if as_json:
        points = [{"name": point.name, "used_in": point.used_in, "optional": point.optional} for point in lacks]
        print(json.dumps({"comfyui": version, "touch_points": count, "missing": points}))
        return 1 if needed else 0
    print(
        f"ComfyUI {version}, {shown(str(home))}: this pack touches it in {count} places, {len(lacks) or 'none'} of them missing."
    )
    for point in lacks:
        print(f"  {point.name}: {'not there, done without' if point.optional else 'missing'} ({point.used_in})")
    if needed:
        print(
            "What uses them will not work; QVG needs ComfyUI 0.21 or newer, and a newer QVG may know a ComfyUI that has moved on."
        )
    return 1 if needed else 0


def _home(given: Path | None) -> Path:
    """The folder named, else the one whose custom_nodes has this pack, else where the usual tools put it."""
    named = os.environ.get("COMFYUI_PATH")
    usual = [Path(named)] if named else []
    if PACK.parent.name == "custom_nodes":
        usual.append(PACK.parent.parent)
    places = [given] if given else [*usual, Path.home() / "comfy" / "ComfyUI", Path.home() / "ComfyUI"]
    found = next((place for place in places if (place / "main.py").is_file() and (place / "comfy").is_dir()), None)
    if found is None:
        where = f"{shown(str(given))} is" if given else "there is"
        raise ConfigError(f"{where} no ComfyUI folder (one with main.py and comfy/); name it: qvg doctor --comfyui FOLDER")
    return found


def _version(home: Path) -> str:
    file = home / "comfyui_version.py"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    found = re.search(r'__version__\s*=\s*"([\w.+-]{1,40})"', text)
    return found[1] if found else "of unknown version"
