"""How a cache is read: attention over history and current block, in three ways."""

from .exact import Tiling, attend, plan_tiling, tile_limit

__all__ = ["Tiling", "attend", "plan_tiling", "tile_limit"]
