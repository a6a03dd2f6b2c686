"""Runs on disk: the file of a cache."""

from .cache_file import load_cache, save_cache

__all__ = ["load_cache", "save_cache"]
