"""Which setting for my card: what each method would take with Self-Forcing 1.3B, by the rules of `qvg plan`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..config import PRESETS, QVGConfig
from ..errors import QVGError
from ..models.registry import networks
from ..plan.estimate import Video, cache_spec, latent_frames, plan
from ..study.bytes import predict
from ..study.run import StudyRun
from .choices import Choice

MODEL, WIDTH, HEIGHT, FPS = "self-forcing-1.3b", 832, 480, 16
SECONDS = (5, 10, 20, 30, 45, 60, 120)
CARDS_GB = (6, 8, 10, 12, 16, 24, 32, 48, 80)
ABOUT = (
    f"Bytes as `qvg plan` predicts them for Self-Forcing 1.3B at {WIDTH}x{HEIGHT}, {FPS} pictures a second: weights, cache at "
    "its worst moment, workspace, one block, decoding. Of the study's methods the cache at its end is taken in place of the "
    "exact one's, without what encoding takes for a moment. GB are 10^9 bytes. Quality is that of the set chosen above."
)


def cards(chosen: Iterable[Choice]) -> dict[str, Any]:
    """{"methods": {name: peak bytes at each of SECONDS}}: those that run corrected; the published forms hold more than they
    store."""
    network = networks()[MODEL]
    videos = [Video(WIDTH, HEIGHT, 1 + (seconds * FPS - 1) // 4 * 4) for seconds in SECONDS]
    exact = [plan(network, video, PRESETS["exact"]) for video in videos]
    found: dict[str, list[int]] = {}
    for choice in chosen:
        if choice.published or choice.reuses:
            continue
        sizes = []
        for video, whole in zip(videos, exact, strict=True):
            try:
                if isinstance(choice.settings, StudyRun):
                    cache = predict(
                        choice.settings.method, cache_spec(network, video), latent_frames(video.frames, network)
                    ).total
                    sampling = whole.sampling_bytes - whole.cache_peak_bytes + cache
                    sizes.append(max(sampling, whole.decode_bytes))
                else:
                    sizes.append(plan(network, video, _at_size(choice)).peak_bytes)
            except QVGError:  # it does not fit this model, so no card will do
                break
        else:
            found[choice.name] = sizes
    return {"about": ABOUT, "seconds": SECONDS, "cards_gb": CARDS_GB, "methods": found}


def _at_size(choice: Choice) -> QVGConfig:
    """Spans as a real video has them; those of the instruments are short."""
    assert isinstance(choice.settings, QVGConfig)
    return PRESETS.get(choice.name) or choice.settings
