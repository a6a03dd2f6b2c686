"""Which MODELs have a KV cache, and how its settings travel with a MODEL.

A model of ours is a `BaseModel` that has `qvg_cache_spec(batch)`, `qvg_rope()` and `qvg_name`. Settings live in a clone's
transformer_options, so bypassing the cache node leaves the loader's own settings: the exact cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...qvg import PRESETS, QVGConfig, UnsupportedModelError
from ..records import Records

SETTINGS_KEY = "qvg_settings"
# The cache of the sampling run in progress; the sampler puts it there, the model attends through it.
RUN_KEY = "qvg_run"


@dataclass(frozen=True)
class CacheSettings:
    """How to keep the cache, and what runs with it have left behind."""

    config: QVGConfig = PRESETS["exact"]
    records: Records = field(default_factory=Records)


def require_cache(base_model: Any) -> Any:
    """`base_model` if it has a KV cache of ours; otherwise UnsupportedModelError says which models have."""
    if not hasattr(base_model, "qvg_cache_spec"):
        name = type(base_model).__name__
        raise UnsupportedModelError(
            f"{name} has no KV cache: it denoises all frames at once and remembers nothing between them. Models that have one: "
            "the demo world (node 'Load Demo World')."
        )
    return base_model


def with_cache(model: Any, config: QVGConfig) -> Any:
    """A clone of MODEL that keeps its cache as `config` says. Raises ConfigError where that does not fit the model."""
    require_cache(model.model).qvg_cache_spec(1).check(config)
    clone = model.clone()
    put_settings(clone, CacheSettings(config))
    return clone


def put_settings(model: Any, settings: CacheSettings) -> None:
    """Write settings into a MODEL that nobody else has yet."""
    model.model_options.setdefault("transformer_options", {})[SETTINGS_KEY] = settings


def settings_of(model_options: dict[str, Any]) -> CacheSettings:
    """Settings in a MODEL's options; the exact cache where there are none."""
    return model_options.get("transformer_options", {}).get(SETTINGS_KEY) or CacheSettings()
