"""Runs on disk: the file of a cache, and the blocks of a run that has not ended."""

from .cache_file import load_cache, save_cache

__all__ = ["load_cache", "save_cache"]
