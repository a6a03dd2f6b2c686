"""The autoregressive loop as a SAMPLER for ComfyUI's SamplerCustomAdvanced.

The loop itself is `qvg.sampling.generate`; here it gets ComfyUI's noise, noise levels, guider, interrupts and memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.samplers
import comfy.utils
import folder_paths
import torch
from safetensors import SafetensorError
from torch import Tensor

from ...qvg import CacheSpec, ConfigError, KVCache
from ...qvg.sampling import Block, generate
from ..records import RunRecord
from .attach import RUN_KEY, CacheSettings, require_cache, settings_of
from .memory import cache_bytes_needed, give_back, make_room
from .progress import Progress, say

logger = logging.getLogger(__name__)

# Where conditioning says at which (time, row, column), in tokens, each latent frame stands.
ORIGINS_KEY = "qvg_origins"


def make_sampler(keep_finished: bool) -> Any:
    """A SAMPLER; `keep_finished`: an interrupted run leaves its finished frames in the output folder."""
    return comfy.samplers.KSAMPLER(sample_blocks, {"keep_finished": keep_finished})


@dataclass(frozen=True)
class _Schedule:
    """ComfyUI's noise levels, and its noise for the whole video, cut into blocks."""

    levels: list[float]
    x: Tensor
    starts: list[int]

    def noise_levels(self) -> list[float]:
        return self.levels

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        return self.x[:, :, self.starts[index] : self.starts[index] + shape[2]]


class _GuidedDenoiser:
    """The model behind ComfyUI's guider, so that wrappers, hooks and patches on the MODEL apply. Blocks are [B, C, F, H, W]."""

    def __init__(self, guider: Any, extra_args: dict[str, Any], x: Tensor, progress: Progress):
        self._guider, self._x, self._progress = guider, x, progress
        self.device = x.device
        self._options, self._seed = extra_args["model_options"], extra_args.get("seed")

    def block_shape(self, frames: int) -> tuple[int, ...]:
        return (*self._x.shape[:2], frames, *self._x.shape[3:])

    def predict_clean(self, x: Tensor, noise_level: float, cache: KVCache) -> Tensor:
        self._options.setdefault("transformer_options", {})[RUN_KEY] = cache
        try:
            clean: Tensor = self._guider(x, x.new_full(x.shape[:1], noise_level), model_options=self._options, seed=self._seed)
        finally:
            del self._options["transformer_options"][RUN_KEY]
        self._progress.passed(clean if noise_level > 0 else x)
        return clean


def sample_blocks(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    keep_finished: bool = True,
) -> Tensor:
    """Generate block after block. Frames at the beginning that the noise mask keeps (0) are given, not generated."""
    extra_args = {"model_options": {}} if extra_args is None else extra_args
    guider = model.inner_model
    base_model = require_cache(guider.inner_model)
    _refuse_cfg(guider)
    settings, spec = settings_of(extra_args["model_options"]), base_model.qvg_cache_spec(x.shape[0])
    blocks = _blocks(guider, x, spec.chunk_frames)
    given = _given(extra_args.get("denoise_mask"), model.latent_image, spec.chunk_frames)
    levels = sigmas.tolist()
    schedule = _Schedule(levels, x, [index * spec.chunk_frames for index in range(len(blocks))])
    passes = len(blocks) + (len(blocks) - len(given)) * (len(levels) - 1)
    denoiser = _GuidedDenoiser(guider, extra_args, x, Progress(x.device, base_model.latent_format, passes, len(blocks)))
    make_room(cache_bytes_needed(spec, settings.config, x.shape[2]), x.device, base_model)
    cache = KVCache(spec, settings.config, base_model.qvg_rope())
    finished: list[Block] = []
    try:
        with cache:
            loop = generate(denoiser, cache, blocks, schedule, given, mm.throw_exception_if_processing_interrupted, verify=False)
            for block in loop:
                finished.append(block)
                denoiser._progress.finished(block)
            record = _record(base_model, spec, settings, cache, finished, len(given), x.device)
    except mm.InterruptProcessingException:
        _interrupted(cache, finished, len(blocks), base_model, keep_finished)
        raise
    finally:
        give_back()
    samples = torch.cat([block.latent for block in finished], 2)
    settings.records.add(base_model.process_latent_out(samples.float()), record)
    say(record.headline())
    if callback is not None:
        # What ComfyUI calls denoised_output is what the last callback got: the video, not its last block.
        callback({"x": samples, "i": len(levels) - 2, "sigma": sigmas[-1], "sigma_hat": sigmas[-1], "denoised": samples})
    return samples


def _refuse_cfg(guider: Any) -> None:
    cfg = getattr(guider, "cfg", 1.0)
    if cfg != 1.0:
        raise ConfigError(f"cfg is {cfg}, but this model knows no negative prompt; use BasicGuider, or set cfg to 1")


def _blocks(guider: Any, x: Tensor, chunk_frames: int) -> list[Sequence[Sequence[float]]]:
    """Origins of every block's frames, from the conditioning."""
    origins = next((cond[ORIGINS_KEY] for conds in guider.conds.values() for cond in conds if ORIGINS_KEY in cond), None)
    if origins is None:
        raise ConfigError("the conditioning holds no camera; connect 'Demo World Start' to the guider's conditioning")
    if x.ndim != 5 or x.shape[2] != len(origins):
        raise ConfigError(
            f"the latent is {list(x.shape)}, but the camera has {len(origins)} latent frames; "
            "take both from one 'Demo World Start'"
        )
    return [origins[start : start + chunk_frames] for start in range(0, len(origins), chunk_frames)]


def _given(mask: Tensor | None, latent: Tensor, chunk_frames: int) -> list[Tensor]:
    """Latents of the blocks at the beginning that the mask keeps."""
    if mask is None:
        return []
    kept = (mask.amax(dim=(0, 1, 3, 4)) == 0).tolist()
    frames = kept.index(False) if False in kept else len(kept)
    if any(kept[frames:]):
        raise ConfigError(
            f"the noise mask keeps frame {frames + kept[frames:].index(True)} after frames that are to be generated; only frames "
            "at the beginning can be given"
        )
    return [latent[:, :, start : start + chunk_frames] for start in range(0, frames - chunk_frames + 1, chunk_frames)]


def _record(
    base_model: Any, spec: CacheSpec, settings: CacheSettings, cache: KVCache, blocks: list[Block], given: int, device: Any
) -> RunRecord:
    """The run in numbers; must be made before the cache is freed."""
    per_frame = [block for block in blocks for _ in range(block.latent.shape[2])]
    return RunRecord(
        model=base_model.qvg_name,
        device=str(device),
        config=settings.config,
        cache_bytes=tuple(block.cache.total for block in per_frame),
        exact_bytes=tuple(spec.exact_bytes(block.first_frame + block.latent.shape[2]) for block in per_frame),
        seconds=tuple(block.seconds / block.latent.shape[2] for block in per_frame),
        components=cache.nbytes(),
        workspace_bytes=cache.workspace.nbytes,
        given_frames=given * spec.chunk_frames,
    )


def _interrupted(cache: KVCache, finished: list[Block], total: int, base_model: Any, keep: bool) -> None:
    """The cache is free by now; leave what is finished where LoadLatent's users find it, and say so."""
    held = cache.nbytes().total + cache.workspace.nbytes
    logger.info("QVG: interrupted after block %d of %d; the cache holds %d bytes now", len(finished), total, held)
    if not finished or not keep:
        return
    samples = base_model.process_latent_out(torch.cat([block.latent for block in finished], 2).float()).cpu().contiguous()
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path("QVG/interrupted", folder_paths.get_output_directory())
        path = Path(folder) / f"{name}_{counter:05}_.latent"
        tensors = {"latent_tensor": samples, "latent_format_version_0": torch.tensor([])}
        comfy.utils.save_torch_file(tensors, str(path))
    except (OSError, SafetensorError) as error:
        logger.warning("QVG: the finished frames could not be kept (%s); free space on the output folder's disk", error)
        return
    logger.info("QVG: kept %d finished frames in %s; LoadLatent and VAEDecode show them", samples.shape[2], path)
