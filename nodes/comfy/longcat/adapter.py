"""LongCat-Video's cache. See `adapter.Adapter`."""

from __future__ import annotations

from typing import Any

from ....qvg import QVGConfig
from ....qvg.models.common.shape import NetworkShape
from ..adapter import Adapter, Loader
from .shape import NAME, check_config, longcat_shape


class LongCatAdapter:
    """Of the network that is ours."""

    def matches(self, base_model: Any) -> bool:
        """By its mark."""
        return bool(getattr(base_model, "qvg_longcat", False))

    def near(self, base_model: Any) -> str:
        """ComfyUI's own loader makes nothing of such files."""
        return ""

    def report_name(self, base_model: Any) -> str:
        """As published."""
        return NAME

    def require_counted(self, model: Any) -> None:
        """It always is."""

    def check_config(self, base_model: Any, config: QVGConfig) -> None:
        """As far as the size of a video does not matter."""
        check_config(base_model, config)

    def keeps_padding(self, base_model: Any, config: QVGConfig) -> str:
        """It attends to padding as it was trained to."""
        return f"{NAME} keeps nothing of a prompt between passes"

    def attach(self, clone: Any) -> None:
        """The run reads the settings."""

    def shape(self, model: Any) -> NetworkShape:
        """As the published one, in this one's sizes."""
        return longcat_shape(model)

    def sampled_by(self, base_model: Any, sampler: str) -> str:
        """By its own sampler alone."""
        return f"{NAME} is sampled by 'LongCat Sampler', which knows its segments; connect that one"

    def loader(self) -> Loader:
        """Of its files."""
        from . import load

        return load


ADAPTER: Adapter = LongCatAdapter()
