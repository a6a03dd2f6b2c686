"""LongLive 2.0's files into core's Wan 2.2, made causal. See `adapter.Loader`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ....qvg.models.common.checkpoint import CausalCheckpoint
from ....qvg.models.longlive2.network import CHANNELS
from ..adapter import is_wan
from ..core_network import CoreNetwork, core_patcher
from . import wan as causal_wan
from .dreamx_load import check as check  # the same parts of ComfyUI
from .own_steps import steps_text
from .timed import TimedCausalWan, make_causal


class LongLive2Wan(TimedCausalWan):
    """Core's Wan 2.2, block after block."""

    qvg_title = "LongLive 2.0 5B"


def _attach(network: Any, layers: Mapping[str, Tensor], assign: bool) -> None:
    """It has no layers of its own."""
    make_causal(network, LongLive2Wan)


_CORE = CoreNetwork("Wan 2.2 5B", partial(is_wan, channels=CHANNELS), (), _attach)


def patcher(checkpoint: CausalCheckpoint, options: dict[str, Any], **more: Any) -> Any:
    """Of core's Wan 2.2."""
    return core_patcher(checkpoint, _CORE, options, **more)


def dress(model: Any) -> None:
    """With hooks that do nothing outside our own sampler."""
    causal_wan.attach(model)


def text(checkpoint: CausalCheckpoint) -> str:
    """Its variant and how it is run."""
    assert checkpoint.variant is not None
    return steps_text(checkpoint.variant, checkpoint.found.how, len(checkpoint.tensors))
