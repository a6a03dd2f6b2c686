"""LongCat-Video."""

from .config import LongCatConfig, SegmentFrames
from .memory import ConditionCache, WholeAttention
from .network import LongCat, Prompt, load_longcat
from .schedule import LongCatSettings

__all__ = [
    "ConditionCache",
    "LongCat",
    "LongCatConfig",
    "LongCatSettings",
    "Prompt",
    "SegmentFrames",
    "WholeAttention",
    "load_longcat",
]
