"""One sampling run as the network sees it: the cache to attend through, and how often the network was run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...qvg import ConfigError, KVCache

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

# What other nodes put into a MODEL's transformer_options for the attention of the model that they were written for.
_ATTENTION_KEYS = ("optimized_attention_override", "rope_options")
_PATCH_KEYS = ("patches", "patches_replace")


class Run:
    """`attend` is the cache's; `passes` counts how often the network has been run since it was last set to 0."""

    def __init__(self, cache: KVCache):
        self.cache, self.passes = cache, 0
        # Nobody compiles who has not imported torch._dynamo, and importing it takes seconds.
        self.attend: Attend = self._unseen_by_the_compiler() if "torch._dynamo" in sys.modules else self._attend

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.passes += layer == 0
        return self.cache.attend(layer, q, k, v)

    def _unseen_by_the_compiler(self) -> Attend:
        """torch.compile would make one moment's memory part of its code, and ComfyUI switches off the guards on
        transformer_options that would notice. Keys and values are copied: a CUDA graph writes the next layer's to the same place.
        """

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self._attend(layer, q, k.clone(), v.clone())

        opaque: Attend = torch.compiler.disable(attend)
        return opaque

    def check_passes(self, noise_level: float) -> None:
        """Raise ConfigError where a step did not run the network, or the pass that writes a finished block's keys and values ran
        it again: memory would hold what a guidance node made of the block."""
        if self.passes == 0 or (noise_level == 0 and self.passes > 1):
            raise ConfigError(
                f"a step ran the network {self.passes} times, but every step must, and the one that writes memory only once; "
                "take out the node that skips or repeats passes (step caches; perturbed, self-attention or skip-layer guidance)"
            )


def refuse_other_loops(model_options: dict[str, Any]) -> None:
    """Raise ConfigError for what skips steps, or cuts frames, of a video that is denoised in one piece: EasyCache and LazyCache
    guess a step's result from the steps before, which here belong to another frame; context windows do not fit a block, and
    would be passed over but for their noise, which is no longer that of the seed."""
    if "easycache" in model_options.get("transformer_options", {}):
        raise ConfigError(
            "EasyCache and LazyCache skip steps of a video whose frames are denoised together, but this model makes one after "
            "the other; take the node out or bypass it"
        )
    if model_options.get("context_handler") is not None:
        raise ConfigError(
            "context windows cut a video whose frames are denoised together, but this model makes one block after the other, and "
            "what it looks back on is its memory; take the node out, and use window_frames of QVG KV Cache"
        )


def ignored_patches(model_options: dict[str, Any], patcher: Any) -> list[str]:
    """Names of what other nodes ask of a MODEL that a model with a cache of ours, or ComfyUI, does not do."""
    options = model_options.get("transformer_options", {})
    names = [key for key in _ATTENTION_KEYS if options.get(key)]
    names += [f"{key}.{name}" for key in _PATCH_KEYS for name, patches in options.get(key, {}).items() if patches]
    names += [key for key in ("denoise_mask_function",) if key in model_options]
    return names + [f"LoRA on {key}" for key in patcher.patches if _beside_layers(patcher.model, key)]


def _beside_layers(model: torch.nn.Module, key: str) -> bool:
    """Whether a weight's module has layers of its own below it: ComfyUI loads such weights, but does not patch them."""
    module = model.get_submodule(key.rpartition(".")[0])
    return len(list(module.parameters())) > len(list(module.parameters(recurse=False)))
