"""ComfyUI's own causal Wan model (0.21 on), whose cache `causal.wan` takes over."""

from __future__ import annotations

from typing import Any

from ....qvg import ConfigError, QVGConfig
from ....qvg.models.common.shape import NetworkShape
from ....qvg.models.wan.names import LATENT_CHANNELS
from ..adapter import Adapter, Loader, is_wan
from ..settings import HOOKED_KEY
from .shape import CORE_NAME, causal_shape, is_causal, name_of


class CausalAdapter:
    """See `adapter.Adapter`."""

    def matches(self, base_model: Any) -> bool:
        """By its cache."""
        return is_causal(base_model)

    def near(self, base_model: Any) -> str:
        """A Wan text-to-video network without a cache may be a causal one's file."""
        if not is_wan(base_model, LATENT_CHANNELS):
            return ""
        return (
            "If the file is a Self-Forcing or Causal-Forcing checkpoint: ComfyUI's own loader takes it for an ordinary Wan; "
            "load it with 'Load Causal Wan', or convert it once with `qvg convert`. Of a GGUF take the .pt or .safetensors: GGUF "
            "loaders do not say that a Wan is causal, and these two do not read GGUF."
        )

    def report_name(self, base_model: Any) -> str:
        """The same for all members of core's network."""
        return name_of(base_model)

    def require_counted(self, model: Any) -> None:
        """Without hooks core keeps the cache."""
        if HOOKED_KEY not in model.model_options.get("transformer_options", {}):
            raise ConfigError(
                "this MODEL's cache is ComfyUI's own, of which nothing is counted; connect the MODEL as it comes from QVG KV "
                "Cache (mode exact keeps what ComfyUI keeps), and sample with it"
            )

    def check_config(self, base_model: Any, config: QVGConfig) -> None:
        """By the sizes of its heads."""
        from .wan import check_config

        check_config(base_model, config)

    def keeps_padding(self, base_model: Any, config: QVGConfig) -> str:
        """Exact is core's own result, bit for bit."""
        return "exact is to be what a bypassed node gives" if config.codec == "none" else ""

    def attach(self, clone: Any) -> None:
        """By object patches and wrappers."""
        from .wan import attach

        attach(clone)

    def shape(self, model: Any) -> NetworkShape:
        """By its layers."""
        return causal_shape(model)

    def sampled_by(self, base_model: Any, sampler: str) -> str:
        """By our loop and by core's."""
        if sampler == "QVG Causal Sampler":
            return ""
        name = name_of(base_model)
        if name != CORE_NAME:
            return f"{name} is sampled by 'QVG Causal Sampler', which knows its steps; connect that one in place of {sampler}"
        return (
            f"{type(base_model).__name__} is sampled by 'QVG Causal Sampler' or ComfyUI's own 'Sampler AR Video'; connect one in "
            f"place of {sampler}"
        )

    def loader(self) -> Loader:
        """Of all members."""
        from . import load

        return load


ADAPTER: Adapter = CausalAdapter()
