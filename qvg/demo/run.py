"""One run of a demo, and what it left behind."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..cache.spec import CacheBytes
from ..config import QVGConfig
from .memories import LABELS
from .walk import Picture


@dataclass
class Run:
    """One walk and what it left behind."""

    name: str
    label: str
    config: QVGConfig
    frames: list[Picture] = field(default_factory=list)
    cache_bytes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    components: CacheBytes = field(default_factory=CacheBytes)
    workspace_bytes: int = 0


def begin(runs: list[Run], name: str, config: QVGConfig) -> Run:
    """One of RUNS, of the runs from now on, whatever becomes of it."""
    runs.append(Run(name, LABELS[name], config))
    return runs[-1]
