"""Cameras that walk through a world: poses, action labels, view matrices, which frames to remember, and when.

numpy in float64 and whole numbers; no model and no cache comes near it. The conventions are those of HY-WorldPlay (arXiv
2512.14614): camera-to-world matrices, x right, y down, z forward.
"""

from .paths import Move, format_path, parse_path, visits, walk

__all__ = ["Move", "format_path", "parse_path", "visits", "walk"]
