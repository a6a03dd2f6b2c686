"""Targets by their kind: made once in a process, then asked for videos."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import ConfigError
from .choices import Choice
from .comfyui_target import ComfyUITarget
from .demo_targets import FilmTarget, WorldTarget
from .longcat_target import LongCatTarget
from .network_target import NetworkTarget
from .phases import PhaseWatch
from .plan import Case, Target
from .videos import Video


class Maker(Protocol):
    """What makes the videos of a target."""

    device: torch.device

    def check(self, case: Case) -> None:
        """ConfigError for a case that cannot be made, before anything is."""

    def make(self, case: Case, choice: Choice, watch: PhaseWatch, server: str = "") -> Video:
        """One video."""


class RehearsalTarget:
    """No model: a few pictures of noise, which take `seconds`. To try a plan, an engine or a cluster."""

    device = torch.device("cpu")

    def __init__(self, options: Mapping[str, Any]):
        seconds = options.get("seconds", 0.0)
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds <= 3600:
            raise ConfigError(f"seconds is {seconds!r}, but a rehearsal's video takes 0 to 3600; mend it in the plan")
        self._seconds = float(seconds)

    @staticmethod
    def check(case: Case) -> None:
        """All can be made."""

    def make(self, case: Case, choice: Choice, watch: PhaseWatch, server: str = "") -> Video:
        """The same for the same case; other methods than exact add noise of their own."""
        noise = np.random.default_rng([case.seed, *case.prompt.encode()])
        pictures = noise.integers(0, 256, (case.frames, 16, 16, 3)).astype(np.uint8)
        if choice.name != "exact":
            own = np.random.default_rng([case.seed, *choice.name.encode()])
            pictures ^= own.integers(0, 8, pictures.shape).astype(np.uint8)
        with watch.phase("denoise"):
            time.sleep(self._seconds)
        video = Video(pictures, 1, [100] * case.frames, {"codes": 100}, 800, 100)
        video.remarks.append("a rehearsal: noise, made by no model")
        return video


def maker(target: Target) -> Maker:
    """Made once in a process for targets that are alike. ConfigError where it cannot be."""
    return _maker(target.kind, json.dumps(asdict(target)["options"], sort_keys=True), target.name)


@lru_cache(maxsize=4)
def _maker(kind: str, options_json: str, name: str) -> Maker:
    options = json.loads(options_json)
    if kind == "world":
        return WorldTarget()
    if kind == "film":
        return FilmTarget()
    if kind == "rehearsal":
        return RehearsalTarget(options)
    if kind == "network":
        return NetworkTarget(options)
    if kind == "comfyui":
        return ComfyUITarget(options, name)
    assert kind == "longcat", kind
    return LongCatTarget(options)
