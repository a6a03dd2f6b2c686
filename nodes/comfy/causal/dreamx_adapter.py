"""DreamX-World on core's Wan 2.2, made causal."""

from __future__ import annotations

from typing import Any

from ....qvg.models.dreamx.network import CHANNELS
from ..adapter import Adapter, Loader, is_wan
from .adapter import CausalAdapter
from .shape import is_causal


class DreamXAdapter(CausalAdapter):
    """See `adapter.Adapter`. A model of it is a causal Wan like others once it is loaded."""

    def near(self, base_model: Any) -> str:
        """Core's loader leaves the cameras' layers out."""
        if not is_wan(base_model, CHANNELS) or is_causal(base_model):
            return ""
        return "If the file is DreamX-World's: ComfyUI's own loader takes it for a Wan 2.2; load it with 'Load Camera World'."

    def loader(self) -> Loader:
        """Of the 5B."""
        from . import dreamx_load

        return dreamx_load


ADAPTER: Adapter = DreamXAdapter()
