"""Which MODELs have a KV cache, and how its settings travel with a MODEL.

A model of ours is a `BaseModel` that has `qvg_name`, `qvg_cache_spec(batch)`, `qvg_rope()` and `qvg_check_latent(x)`. Settings
live in a clone's transformer_options, so bypassing the cache node leaves the loader's own settings: the exact cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...qvg import PRESETS, QVGConfig, UnsupportedModelError

SETTINGS_KEY = "qvg_settings"
# The `Run` in progress; the sampler puts it there, the model attends through it.
RUN_KEY = "qvg_run"


@dataclass(frozen=True)
class CacheSettings:
    """How to keep the cache."""

    config: QVGConfig = PRESETS["exact"]


def require_cache(base_model: Any) -> Any:
    """`base_model` if it has a KV cache of ours; otherwise UnsupportedModelError says which models have."""
    if hasattr(base_model, "qvg_cache_spec"):
        return base_model
    name = type(base_model).__name__
    if hasattr(getattr(base_model, "diffusion_model", None), "init_kv_caches"):
        # ComfyUI's own autoregressive models, from 0.21 on.
        reason = "has a KV cache of ComfyUI's own, which this version of QVG does not manage yet"
    else:
        reason = "has no KV cache: it denoises all frames at once and remembers nothing between them"
    raise UnsupportedModelError(f"{name} {reason}. Models that work: the demo world (node 'Load Demo World').")


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
