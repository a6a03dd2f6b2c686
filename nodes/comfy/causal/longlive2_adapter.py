"""LongLive 2.0 on core's Wan 2.2, made causal."""

from __future__ import annotations

from typing import Any

from ....qvg.models.longlive2.network import CHANNELS
from ..adapter import Adapter, Loader, is_wan
from .adapter import CausalAdapter
from .shape import is_causal


class LongLive2Adapter(CausalAdapter):
    """See `adapter.Adapter`. A model of it is a causal Wan like others once it is loaded."""

    def near(self, base_model: Any) -> str:
        """Its file is an ordinary Wan 2.2's to core."""
        if not is_wan(base_model, CHANNELS) or is_causal(base_model):
            return ""
        return "If the file is LongLive 2.0's: ComfyUI's own loader takes it for a Wan 2.2; load it with 'Load Causal Wan'."

    def loader(self) -> Loader:
        """Of the 5B."""
        from . import longlive2_load

        return longlive2_load


ADAPTER: Adapter = LongLive2Adapter()
