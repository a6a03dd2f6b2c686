"""Which MODELs have a KV cache, and how its settings travel with a MODEL.

A model of ours is a `BaseModel` that has `qvg_name`, `qvg_cache_spec(batch)`, `qvg_rope()` and `qvg_check_latent(x)`. ComfyUI's
own causal Wan model is taken as it is, see `causal.wan`. Settings live in a clone's transformer_options, so bypassing the cache
node leaves the loader's own settings, the exact cache, or ComfyUI's own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ...qvg import PRESETS, ConfigError, QVGConfig, UnsupportedModelError
from ...qvg.models.common.variants import CausalVariant

logger = logging.getLogger(__name__)

SETTINGS_KEY = "qvg_settings"
# The `Run` in progress; the sampler puts it there, the model attends through it.
RUN_KEY = "qvg_run"
# Says that a causal Wan of core's has the hooks of `causal_wan`: our loader puts them on, and QVG KV Cache.
HOOKED_KEY = "qvg_hooked"
# How a causal Wan file was trained to be run, a `CausalVariant`; our loader puts it there.
VARIANT_KEY = "qvg_variant"
# What ComfyUI's own causal Wan is called in reports.
CORE_NAME = "causal Wan"
# Attribute of a `BaseModel` of core's that is a world: what is asked of it (see `world.wan.WorldPlay5B`).
WORLD = "qvg_world"


@dataclass(frozen=True)
class CacheSettings:
    """How to keep the cache. `merge_padding`: cross-attention reads a prompt's padding once."""

    config: QVGConfig = PRESETS["exact"]
    merge_padding: bool = False


def has_cache_of_core(base_model: Any) -> bool:
    """Whether this is ComfyUI's own causal Wan model (0.21 on), whose cache `causal_wan` takes over."""
    return hasattr(getattr(base_model, "diffusion_model", None), "init_kv_caches")


def require_cache(base_model: Any) -> Any:
    """`base_model` if it is a model of ours; otherwise UnsupportedModelError says which node to use instead, or which models
    work."""
    if hasattr(base_model, "qvg_cache_spec"):
        return base_model
    name = type(base_model).__name__
    if hasattr(base_model, WORLD):
        raise UnsupportedModelError(
            f"{world_of(base_model).name} is sampled by 'World Sampler', which knows its cameras; connect that one"
        )
    if has_cache_of_core(base_model):
        raise UnsupportedModelError(
            f"{name} is sampled by 'QVG Causal Sampler' or ComfyUI's own 'Sampler AR Video'; connect one in place of QVG Sampler"
        )
    hint = ""
    if name == "WAN21":
        hint = (
            " If the file is a Self-Forcing or Causal-Forcing checkpoint: ComfyUI's own loader takes it for an ordinary Wan; "
            "load it with 'Load Causal Wan', or convert it once with `qvg convert`."
        )
    if name == "WAN22":
        hint = " If the file is HY-WorldPlay's: ComfyUI's own loader takes it for a Wan 2.2; load it with 'Load WorldPlay'."
    raise UnsupportedModelError(
        f"{name} has no KV cache: it denoises all frames at once and remembers nothing between them. Models that work: "
        "causal Wan (Self-Forcing, Causal-Forcing) as ComfyUI 0.21 or newer loads it, HY-WorldPlay (node 'Load WorldPlay'), and "
        f"the demo world (node 'Load Demo World').{hint}"
    )


def world_of(base_model: Any) -> Any:
    """What is asked of a world model; None for others."""
    return getattr(base_model, WORLD, None)


def counted_model(model: Any) -> str:
    """Name of a MODEL whose cache we keep; otherwise UnsupportedModelError or ConfigError says why nothing is known of it."""
    if hasattr(model.model, WORLD):
        return str(world_of(model.model).name)
    if not has_cache_of_core(model.model):
        return str(require_cache(model.model).qvg_name)
    if HOOKED_KEY not in model.model_options.get("transformer_options", {}):
        raise ConfigError(
            "this MODEL's cache is ComfyUI's own, of which nothing is counted; connect the MODEL as it comes from QVG KV Cache "
            "(mode exact keeps what ComfyUI keeps), and sample with it"
        )
    return CORE_NAME


def with_cache(model: Any, config: QVGConfig, merge_padding: bool = False) -> Any:
    """A clone of MODEL that keeps its cache as `config` says. Raises ConfigError where that does not fit the model."""
    core = has_cache_of_core(model.model)
    if core:
        from .causal import wan as causal_wan  # needs a ComfyUI that has such models

        causal_wan.check_config(model.model, config)
    elif hasattr(model.model, WORLD):
        world_of(model.model).check_config(model.model, config)
    else:
        require_cache(model.model).qvg_cache_spec(1).check(config)
    clone = model.clone()
    if merge_padding and (not core or config.codec == "none"):
        why = "exact is to be what a bypassed node gives" if core else f"{counted_model(model)} has no prompt of ours"
        logger.info("QVG: merge_padding has no effect: %s", why)
        merge_padding = False
    put_settings(clone, CacheSettings(config, merge_padding))
    if core:
        causal_wan.attach(clone)
    return clone


def put_settings(model: Any, settings: CacheSettings) -> None:
    """Write settings into a MODEL that nobody else has yet."""
    model.model_options.setdefault("transformer_options", {})[SETTINGS_KEY] = settings


def variant_of(model_options: dict[str, Any]) -> CausalVariant | None:
    """How this model was trained to be run; None where a loader of ComfyUI's own loaded it."""
    variant: CausalVariant | None = model_options.get("transformer_options", {}).get(VARIANT_KEY)
    return variant


def settings_of(model_options: dict[str, Any]) -> CacheSettings:
    """Settings in a MODEL's options; the exact cache where there are none."""
    return model_options.get("transformer_options", {}).get(SETTINGS_KEY) or CacheSettings()
