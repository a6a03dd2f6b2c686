"""What a run of ComfyUI's causal Wan model will be, and what cannot work, before its weights are loaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...qvg import CacheSpec, ConfigError, GridRope
from ...qvg.rope import wan_rope
from .attach import CacheSettings, settings_of, variant_of
from .run import ignored_patches, refuse_step_caches

logger = logging.getLogger(__name__)

_FRAMES_PER_BLOCK = "num_frame_per_block"  # SamplerARVideo's name


@dataclass(frozen=True)
class CausalPlan:
    """One run. `given_frames` are those of ARVideoI2V's start image, which core puts in front as a block of their own."""

    settings: CacheSettings
    spec: CacheSpec
    grid: tuple[int, int]
    frames: int
    given_frames: int
    frames_per_block: int

    @property
    def blocks(self) -> int:
        """Blocks that become history, given ones included."""
        return bool(self.given_frames) - (self.given_frames - self.frames) // self.frames_per_block

    @property
    def exact(self) -> bool:
        """Whether keys are kept as core keeps them."""
        return self.settings.config.codec == "none"

    @property
    def joined_bytes(self) -> int:
        """Beside the cache: core's attention takes one layer's exact keys and values in one piece."""
        return self.spec.predict(self.settings.config, self.frames).total // self.spec.layers if self.exact else 0

    def rope(self) -> GridRope:
        """Positions of a block's tokens."""
        return wan_rope(*self.grid, self.spec.head_dim)


def make_plan(guider: Any, noise: Tensor, sampler: Any, sigmas: Tensor, denoise_mask: Any) -> CausalPlan:
    """Raises ConfigError for what cannot work, in a sentence. `noise` [B, C, F, H, W] in latent pixels."""
    frames_per_block = getattr(sampler, "extra_options", {}).get(_FRAMES_PER_BLOCK)
    if frames_per_block is None:
        name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__)
        raise ConfigError(
            f"the sampler is {name}, which does not run this model block by block, so its KV cache would be unused; "
            "connect 'Sampler AR Video', or bypass QVG KV Cache"
        )
    options = guider.model_options
    _check_guider(guider, sigmas, denoise_mask)
    refuse_step_caches(options)
    base_model = guider.model_patcher.model
    given = options.get("transformer_options", {}).get("ar_config", {}).get("initial_latent")
    _check_latents(noise, given, base_model.latent_format.latent_channels)
    _warn_of_other_blocks(frames_per_block, options)
    names = ignored_patches(options, guider.model_patcher)
    if names:
        logger.warning("QVG: this model attends through its own cache; without effect on it: %s", ", ".join(names))
    network, settings = base_model.diffusion_model, settings_of(options)
    given_frames = 0 if given is None else given.shape[2]
    _, rows, cols = network.patch_size
    grid = (-(-noise.shape[3] // rows), -(-noise.shape[4] // cols))
    spec = CacheSpec(
        layers=len(network.blocks),
        heads=network.num_heads,
        head_dim=network.head_dim,
        tokens_per_frame=grid[0] * grid[1],
        chunk_frames=max(frames_per_block, given_frames),
        batch=noise.shape[0],
        dtype=_stored_dtype(base_model.get_dtype_inference(), settings.config.codec),
    )
    spec.check(settings.config)
    return CausalPlan(settings, spec, grid, noise.shape[2], given_frames, frames_per_block)


def _warn_of_other_blocks(frames_per_block: int, options: dict[str, Any]) -> None:
    variant = variant_of(options)
    if variant is not None and variant.frames_per_block != frames_per_block:
        logger.warning(
            "QVG: Sampler AR Video makes blocks of %d latent frame(s), but %s was trained with blocks of %d; set "
            "num_frame_per_block to %d",
            frames_per_block,
            variant.name,
            variant.frames_per_block,
            variant.frames_per_block,
        )


def _stored_dtype(compute: torch.dtype, codec: str) -> torch.dtype:
    """Codec "none" keeps what the network computes, as core does; otherwise exact frames take 16 bits."""
    return torch.bfloat16 if codec != "none" and compute.itemsize > 2 else compute


def _check_guider(guider: Any, sigmas: Tensor, denoise_mask: Any) -> None:
    cfg = getattr(guider, "cfg", 1.0)
    if cfg != 1.0:
        raise ConfigError(
            f"cfg is {cfg}, but a causal Wan model remembers one pass over every block and is distilled to need no other; "
            "set cfg to 1, or use BasicGuider"
        )
    if float(sigmas[-1]) != 0:
        raise ConfigError(
            f"the sigmas end at {float(sigmas[-1]):.3g}, but must end at 0: every block is finished before the next one "
            "begins; connect a scheduler's sigmas whole, not split"
        )
    if denoise_mask is not None:
        raise ConfigError(
            "the latent has a noise mask, which Sampler AR Video cannot follow; give the first image through "
            "'ARVideoI2V', or take the mask out"
        )


def _check_latents(noise: Tensor, given: Tensor | None, channels: int) -> None:
    if noise.ndim != 5 or noise.shape[1] != channels:
        raise ConfigError(
            f"the latent is {list(noise.shape)}, but this model makes [batch, {channels}, frames, height, width]; take it from "
            "'EmptyARVideoLatent' or 'ARVideoI2V'"
        )
    if given is not None and (given.shape[0] != noise.shape[0] or given.shape[3:] != noise.shape[3:]):
        raise ConfigError(
            f"ARVideoI2V's start image became a latent of {list(given.shape)}, but the latent to sample is "
            f"{list(noise.shape)}; connect ARVideoI2V's own latent, with batch_size 1"
        )
