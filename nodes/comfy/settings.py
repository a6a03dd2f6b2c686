"""How a cache's settings, and how a model was trained to be run, travel with a MODEL.

They live in a clone's transformer_options, so bypassing the cache node leaves the loader's own settings, the exact cache, or
ComfyUI's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...qvg import PRESETS, CacheSpec, GridRope, KVCache, QVGConfig
from ...qvg.models.common.variants import CausalVariant
from ...qvg.study import make_cache, study_method

SETTINGS_KEY = "qvg_settings"
# The `Run` in progress; the sampler puts it there, the model attends through it.
RUN_KEY = "qvg_run"
# How a file was trained to be run, a `CausalVariant`; our loader puts it there.
VARIANT_KEY = "qvg_variant"
# Says that a causal Wan of core's has the hooks of `causal.wan`: our loader puts them on, and QVG KV Cache.
HOOKED_KEY = "qvg_hooked"
# Where conditioning has its `Cameras`.
CAMERAS_KEY = "qvg_cameras"


@dataclass(frozen=True)
class CacheSettings:
    """How to keep the cache. `merge_padding`: cross-attention reads a prompt's padding once; `prompt_rows`: and which of the rows
    that are left, see `qvg.attention.prompt.RULES`. `study`: the name of a study's
    method whose frames are not all kept alike; `config` then is that of its oldest ones."""

    config: QVGConfig = PRESETS["exact"]
    merge_padding: bool = False
    study: str = ""
    prompt_rows: str = "all"

    def cache(self, spec: CacheSpec, rope: GridRope | None) -> KVCache:
        """An empty cache that is kept so."""
        if not self.study:
            return KVCache(spec, self.config, rope)
        return make_cache(study_method(self.study), spec, rope, seed=self.config.seed)


def put_settings(model: Any, settings: CacheSettings) -> None:
    """Write settings into a MODEL that nobody else has yet."""
    model.model_options.setdefault("transformer_options", {})[SETTINGS_KEY] = settings


def settings_of(model_options: dict[str, Any]) -> CacheSettings:
    """Settings in a MODEL's options; the exact cache where there are none."""
    return model_options.get("transformer_options", {}).get(SETTINGS_KEY) or CacheSettings()


def variant_of(model_options: dict[str, Any]) -> CausalVariant | None:
    """How this model was trained to be run; None where a loader of ComfyUI's own loaded it."""
    variant: CausalVariant | None = model_options.get("transformer_options", {}).get(VARIANT_KEY)
    return variant
