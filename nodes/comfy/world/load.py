"""What the loaders of worlds share: core's network with a world's own layers and its face, and what is put on the MODEL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP

from ....qvg.models.common.checkpoint import CausalCheckpoint
from ..core_network import CoreNetwork, core_patcher
from ..settings import CacheSettings, put_settings
from .face import WORLD, WorldFace
from .run import outer_sample, prepare_sampling

_KEY = "qvg_world"


def world_patcher(checkpoint: CausalCheckpoint, core: CoreNetwork, face: WorldFace, options: dict[str, Any], **more: Any) -> Any:
    """Core's patcher of core's network, with the world's own layers in it and its face on it."""
    model = core_patcher(checkpoint, core, options, **more)
    setattr(model.model, WORLD, face)
    return model


def dress_world(model: Any, forward: Callable[..., Any]) -> None:
    """Put `forward` in the place of the network's own pass, and the run's checks around sampling."""
    wrappers = {
        WrappersMP.DIFFUSION_MODEL: forward,
        WrappersMP.OUTER_SAMPLE: outer_sample,
        WrappersMP.PREPARE_SAMPLING: prepare_sampling,
    }
    for kind, wrapper in wrappers.items():
        model.add_wrapper_with_key(kind, _KEY, wrapper)
    put_settings(model, CacheSettings())
