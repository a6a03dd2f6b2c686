"""HY-WorldPlay on core's HunyuanVideo 1.5."""

from __future__ import annotations

from ..adapter import Adapter, Loader
from .adapter import WorldAdapter


class HunyuanWorldAdapter(WorldAdapter):
    """See `adapter.Adapter`."""

    network = "worldplay-8b"

    def loader(self) -> Loader:
        """Of the 8B."""
        from . import hunyuan_load

        return hunyuan_load


ADAPTER: Adapter = HunyuanWorldAdapter()
