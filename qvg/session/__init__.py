"""Runs on disk: the file of a cache, and the finished blocks of a run that goes on."""

from .cache_file import load_cache, save_cache

__all__ = ["load_cache", "save_cache"]
