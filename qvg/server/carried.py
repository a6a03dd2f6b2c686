"""The workflow that something carries which people have of a run: a picture or video that ComfyUI saved, an entry of /history or
of the queue, what was posted to /prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, shown
from ..json_text import read_json

PICTURES = (".png", ".apng", ".webp", ".jpg", ".jpeg", ".avif", ".gif", ".tif", ".tiff")
VIDEOS = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".m4a", ".flac", ".mp3", ".ogg", ".opus", ".wav", ".avi")
MOST_FILE_BYTES = 64 << 20  # of a workflow's own file: a thousand times those that people make
_MOST_DEPTH = 4


def texts_of_media(path: Path) -> dict[str, str] | None:
    """What a picture or video says of itself, by name; None for a file of another kind. ConfigError where it cannot be read."""
    kind = path.suffix.lower()
    if kind not in PICTURES + VIDEOS:
        return None
    read = _texts_of_picture if kind in PICTURES else _texts_of_video
    try:
        return read(path)
    except OSError as error:
        reason = error.strerror or shown(str(error), 120)
    except Exception as error:  # Pillow's and FFmpeg's errors are of many kinds
        reason = shown(str(error) or type(error).__name__, 120)
    raise ConfigError(f"{path} cannot be read ({reason}); name one that ComfyUI saved, or a workflow in API format")


def _texts_of_picture(path: Path) -> dict[str, str]:
    """PNG has them by name; in EXIF, as of WebP, each is `name:text` or `name: text`."""
    from PIL import Image

    with Image.open(path) as picture:
        texts = {str(name): text for name, text in picture.info.items() if isinstance(text, str)}
        for text in picture.getexif().values():
            name, colon, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
            if colon and name.isidentifier():
                texts.setdefault(name.lower(), rest.strip())
    return texts


def _texts_of_video(path: Path) -> dict[str, str]:
    import av

    with av.open(str(path)) as video:
        return {name.lower(): text for name, text in video.metadata.items()}


def graphs(data: Any, depth: int = _MOST_DEPTH) -> Iterator[dict[str, Any]]:
    """Workflows in API format inside of other things, the likeliest first: an object that has a node is one."""
    if depth < 0:
        return
    if isinstance(data, str) and data.lstrip().startswith("{"):
        try:
            data = read_json(data)
        except ValueError:
            return
    if isinstance(data, list):  # an entry of the queue: number, id, workflow, ...
        for entry in data[:3]:
            yield from graphs(entry, depth - 1)
    if not isinstance(data, dict):
        return
    if any(isinstance(step, dict) and "class_type" in step for step in data.values()):
        yield data
        return
    # Under these names, or, in an answer of /history, under the run's id; `comment` is what other packs put into videos.
    names = [name for name in ("prompt", "output", "comment", "extra_data") if name in data]
    for name in names or [name for name in data if isinstance(data[name], dict)][:1]:
        yield from graphs(data[name], depth - 1)


def is_page_format(data: Any) -> bool:
    """Whether this is, or only carries, a workflow as ComfyUI's page saves it."""
    if isinstance(data, Mapping) and isinstance(data.get("workflow"), str):
        try:
            return is_page_format({"workflow": read_json(data["workflow"])})
        except ValueError:
            return False
    inner = data.get("workflow", data) if isinstance(data, Mapping) else None
    return isinstance(inner, dict) and isinstance(inner.get("nodes"), list)
