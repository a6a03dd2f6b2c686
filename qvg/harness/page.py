"""page.html: one file that needs no server and no network. Plotly, an extra, is in it."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MediaError
from ..files import written_whole
from .cards import cards
from .choices import choices
from .metrics import described
from .page_data import sets_of, videos_of
from .plan import StudyPlan
from .published import read_published
from .store import Store
from .table import write_table

FILES = Path(__file__).parent / "page_files"
TABLE = "methods.csv"
MISSING = "the page draws with plotly, which is not installed here; `pip install plotly`, then make the page again"


def write_page(store: Store, plan: StudyPlan, path: Path, published: Sequence[Path] = (), video_bytes: int = 40_000_000) -> None:
    """The page, and methods.csv beside it; each appears whole or not at all. ConfigError: no plotly, no rows, no such table.
    MediaError: a full disk."""
    draws = plotly()
    sets = sets_of(plan, store)
    if not sets:
        raise ConfigError(f"{store.folder} has no rows of this version of plan {plan.name}; make some with `qvg study run`")
    write_table(sets, path.with_name(TABLE))
    names = {method["name"] for each in sets for method in each["methods"]}
    videos, left = videos_of(plan, store, video_bytes)
    data = {
        "title": f"Memories compared: {plan.name}",
        "about": plan.about,
        "sets": [*sets, *(read_published(each) for each in published)],
        "videos_left": left,
        "cards": cards(choice for name, choice in choices().items() if name in names),
        **described(),
    }
    write(path, draws, data, videos)


def plotly() -> str:
    """The library's own file. ConfigError where it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ConfigError(MISSING) from None
    return str(get_plotlyjs())


def write(path: Path, draws: str, data: dict[str, Any], videos: dict[str, str]) -> None:
    """Put the parts into one file."""
    parts = {
        "TITLE": html.escape(data["title"]),
        "STYLE": (FILES / "page.css").read_text(encoding="utf-8"),
        "PLOTLY": draws,
        "DATA": _script(data),
        "VIDEOS": _script(videos),
        "SCRIPT": "\n".join((FILES / name).read_text(encoding="utf-8") for name in ("choose.js", "draw.js", "page.js")),
    }
    frame = (FILES / "page.html").read_text(encoding="utf-8")
    pieces = frame.split("@@")
    text = "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))
    try:
        with written_whole(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MediaError(f"{path} cannot be written ({error.strerror}); free space, or choose another --out") from None


def _script(value: Any) -> str:
    """JSON that no text in it can end the script of."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
