"""HY-WorldPlay on core's Wan 2.2."""

from __future__ import annotations

from typing import Any

from ....qvg.models.worldplay_wan.checkpoint import LATENT_CHANNELS
from ..adapter import Adapter, Loader, is_wan
from .adapter import WorldAdapter


class WanWorldAdapter(WorldAdapter):
    """See `adapter.Adapter`."""

    network = "worldplay-5b"

    def near(self, base_model: Any) -> str:
        """Core's loader leaves WorldPlay's own layers out."""
        if not is_wan(base_model, LATENT_CHANNELS):
            return ""
        return "If the file is HY-WorldPlay's: ComfyUI's own loader takes it for a Wan 2.2; load it with 'Load WorldPlay'."

    def loader(self) -> Loader:
        """Of the 5B."""
        from . import wan_load

        return wan_load


ADAPTER: Adapter = WanWorldAdapter()
