"""A walk on Wan 2.2 inside ComfyUI: core's network behind the guider."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....qvg import ConfigError
from ....qvg.models.common.world_schedule import CHUNK_FRAMES
from ....qvg.models.wan.network import Attend
from ....qvg.models.worldplay_wan.network import Recording
from ....qvg.sampling.world import World
from ...prompts import PromptStart
from ..progress import Progress
from .face import PASS_KEY
from .run import WorldPlan, conds_from
from .wan import WorldPass


def wan_world(plan: WorldPlan, guider: Any, extra_args: dict[str, Any], progress: Progress) -> tuple[GuidedWan, World]:
    """What `sample_world` walks through."""
    network = GuidedWan(guider, extra_args, progress)
    return network, World(network, plan.memory(), None, plan.options.mode, plan.rule)


class GuidedWan:
    """Core's network behind ComfyUI's guider, so that wrappers, hooks and patches on the MODEL apply. x [B, F, C, h, w]."""

    def __init__(self, guider: Any, extra_args: dict[str, Any], progress: Progress):
        self._guider, self._progress = guider, progress
        self._conds = guider.conds
        self._options, self._seed = extra_args["model_options"], extra_args.get("seed")

    def __call__(self, x: Tensor, t: Tensor, prompt: Any, attend: Attend, labels: Tensor | None = None) -> Tensor:
        # The guider works at one level; a given first picture has another, of which nobody asks for the velocity.
        level = float(t[0, -1]) / 1000
        video = x.transpose(1, 2)
        clean = self._pass(video, level, WorldPass(t, _labels(labels, t), attend=attend))
        self._progress.passed(clean)
        return ((video - clean) / level).transpose(1, 2)

    def record(self, x: Tensor, t: Tensor, prompt: Any, recording: Recording, labels: Tensor | None = None) -> None:
        self._pass(x.transpose(1, 2), float(t[0, -1]) / 1000, WorldPass(t, _labels(labels, t), recording=recording))
        self._progress.passed(x[:, -CHUNK_FRAMES:].transpose(1, 2))

    def take_prompt(self, start: PromptStart | None) -> None:
        """What holds from here on; None: all that the guider has."""
        self._guider.conds = conds_from(self._conds, start)

    def _pass(self, x: Tensor, level: float, coming: WorldPass) -> Tensor:
        options = self._options.setdefault("transformer_options", {})
        options[PASS_KEY] = coming
        try:
            clean: Tensor = self._guider(x, x.new_full(x.shape[:1], level), model_options=self._options, seed=self._seed)
        finally:
            del options[PASS_KEY]
        if coming.runs != 1:
            raise ConfigError(
                f"a step ran the network {coming.runs} times, but a world's pass must run it once; take out the node that skips "
                "or repeats passes (step caches; perturbed, self-attention or skip-layer guidance)"
            )
        return clean


def _labels(labels: Tensor | None, t: Tensor) -> Tensor:
    return torch.zeros_like(t) if labels is None else labels
