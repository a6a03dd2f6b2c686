"""Runs on disk: the file of a cache, sessions that grow while a run goes on, and the blocks of a run that has not ended."""

from .cache_file import load_cache, save_cache
from .session import Session

__all__ = ["Session", "load_cache", "save_cache"]
