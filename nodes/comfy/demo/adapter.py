"""The demo world, a `BaseModel` of ours: it has `qvg_name`, `qvg_cache_spec(batch)`, `qvg_rope()` and `qvg_check_latent(x)`."""

from __future__ import annotations

from typing import Any

from ....qvg import QVGConfig, UnsupportedModelError
from ....qvg.models.common.shape import NetworkShape
from ..adapter import Adapter, Loader
from .shape import demo_shape


class DemoAdapter:
    """See `adapter.Adapter`."""

    def matches(self, base_model: Any) -> bool:
        """Models of ours say what they ask of their cache."""
        return hasattr(base_model, "qvg_cache_spec")

    def near(self, base_model: Any) -> str:
        """There is no file of it that another loader takes."""
        return ""

    def report_name(self, base_model: Any) -> str:
        """Its own."""
        return str(base_model.qvg_name)

    def require_counted(self, model: Any) -> None:
        """It always is."""

    def check_config(self, base_model: Any, config: QVGConfig) -> None:
        """By what it asks of its cache."""
        base_model.qvg_cache_spec(1).check(config)

    def keeps_padding(self, base_model: Any, config: QVGConfig) -> str:
        """It knows no text."""
        return f"{base_model.qvg_name} has no prompt of ours"

    def attach(self, clone: Any) -> None:
        """Its own attention reads the settings."""

    def shape(self, model: Any) -> NetworkShape:
        """By its configuration."""
        return demo_shape(model.model)

    def sampled_by(self, base_model: Any, sampler: str) -> str:
        """By QVG Sampler alone."""
        if sampler == "QVG Sampler":
            return ""
        return f"the {base_model.qvg_name} is no causal Wan model; connect 'QVG Sampler' in place of {sampler}"

    def loader(self) -> Loader:
        """Its weights come with the pack, see `demo.world.load`."""
        raise UnsupportedModelError("the demo world is no file of yours; load it with 'Load Demo World'")


ADAPTER: Adapter = DemoAdapter()
