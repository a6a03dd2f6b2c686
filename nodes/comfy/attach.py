"""Which MODELs have a KV cache, and what is asked of them: the registry's families name the adapters."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from typing import Any

from ...qvg import QVGConfig, UnsupportedModelError
from ...qvg.models.common.shape import NetworkShape
from ...qvg.models.family import Family
from ...qvg.models.registry import families, models_that_work
from ...qvg.plan import Weights
from .adapter import Adapter
from .model_plan import weights_of
from .settings import SETTINGS_KEY, CacheSettings, put_settings, settings_of

logger = logging.getLogger(__name__)


@cache
def _adapter(module: str) -> Adapter:
    adapter: Adapter = import_module(f".{module}", __package__).ADAPTER
    return adapter


def adapter_of_family(family: Family) -> Adapter:
    """How a family runs in ComfyUI."""
    return _adapter(family.adapter)


def adapters() -> list[Adapter]:
    """One for each kind of network that the families have."""
    return [_adapter(name) for name in dict.fromkeys(family.adapter for family in families()) if name]


def adapter_of(base_model: Any) -> Adapter:
    """Of a `BaseModel` with a KV cache; otherwise UnsupportedModelError says which models work."""
    found = next((adapter for adapter in adapters() if adapter.matches(base_model)), None)
    if found is not None:
        return found
    hints = dict.fromkeys(hint for adapter in adapters() if (hint := adapter.near(base_model)))
    raise UnsupportedModelError(
        f"{type(base_model).__name__} has no KV cache: it denoises all frames at once and remembers nothing between them. "
        + " ".join([models_that_work(), *hints])
    )


def require_sampled_by(base_model: Any, sampler: str) -> Any:
    """`base_model` if the node `sampler` samples it; otherwise UnsupportedModelError says which node to use instead."""
    sentence = adapter_of(base_model).sampled_by(base_model, sampler)
    if sentence:
        raise UnsupportedModelError(sentence)
    return base_model


def counted_model(model: Any) -> str:
    """Name of a MODEL whose cache we keep; otherwise UnsupportedModelError or ConfigError says why nothing is known of it."""
    adapter = adapter_of(model.model)
    adapter.require_counted(model)
    return adapter.report_name(model.model)


def describe(model: Any) -> tuple[NetworkShape, Weights, QVGConfig | None]:
    """Shape and weights of a MODEL with a KV cache, and how QVG KV Cache is to keep it, None where that node is not in its way.
    Raises UnsupportedModelError for other models."""
    shape = adapter_of(model.model).shape(model)
    has_settings = SETTINGS_KEY in model.model_options.get("transformer_options", {})
    return shape, weights_of(model), settings_of(model.model_options).config if has_settings else None


def with_cache(model: Any, config: QVGConfig, merge_padding: bool = False, study: str = "", prompt_rows: str = "all") -> Any:
    """A clone of MODEL that keeps its cache as `config` says, or `study`. ConfigError where that does not fit the model."""
    adapter = adapter_of(model.model)
    adapter.check_config(model.model, config)
    clone = model.clone()
    why = adapter.keeps_padding(model.model, config) if merge_padding else ""
    if why:
        logger.info("QVG: merge_padding has no effect: %s", why)
        merge_padding = False
    put_settings(clone, CacheSettings(config, merge_padding, study, prompt_rows if merge_padding else "all"))
    adapter.attach(clone)
    return clone
