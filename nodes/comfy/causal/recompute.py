"""What a block sees of the video so far when memory is computed anew before it (Krea Realtime's policy).

Three latent frames: the first one, and the newest two. The first one is, with a VAE, not the video's own but the oldest of the
newest nine pictures, encoded for itself, so that the context moves on: a window of latents begins with a frame of one picture.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ..decode import GrowingDecode
from .plan import CONTEXT_FRAMES

# Of the newest pictures, the oldest is encoded.
_PICTURES = 9


class Context:
    """Of one run. `vae`: Wan 2.1's, or None. `patcher`: of the model at work, which is back on its device after the VAE was, with
    room for `cache_bytes` and for passes over a block."""

    def __init__(self, base_model: Any, patcher: Any, vae: Any = None, cache_bytes: int = 0):
        self._base, self._patcher, self._vae, self._cache_bytes = base_model, patcher, vae, cache_bytes
        self._decoding = None if vae is None else GrowingDecode(vae)
        self._pictures: Tensor | None = None

    def finished(self, block: Tensor) -> None:
        """A block [B, C, F, h, w], as the network knows it, is done, and another one comes."""
        if self._decoding is None:
            return
        made = self._decoding.add(self._base.process_latent_out(block.float()))
        known = made if self._pictures is None else torch.cat([self._pictures, made], 1)
        self._pictures = known[:, -_PICTURES:].clone()
        self._take_back_the_device(block)

    def of(self, video: Tensor) -> Tensor:
        """All frames so far [B, C, F, h, w] -> at most three of them."""
        if video.shape[2] <= CONTEXT_FRAMES:
            return video
        newest = video[:, :, 1 - CONTEXT_FRAMES :]
        if self._pictures is None:
            return torch.cat([video[:, :, :1], newest], 2)
        first = self._encoded(self._pictures[:, 0]).to(video)
        self._take_back_the_device(newest)
        return torch.cat([first, newest], 2)

    def _encoded(self, pictures: Tensor) -> Tensor:
        """[B, H, W, 3] -> [B, C, 1, h, w]."""
        latents = torch.cat([self._vae.encode(picture[None]) for picture in pictures])
        latent: Tensor = self._base.process_latent_in(latents)
        return latent

    def _take_back_the_device(self, block: Tensor) -> None:
        """ComfyUI may have moved the model away for the VAE."""
        needed = self._base.memory_required([*block.shape]) + self._cache_bytes
        mm.load_models_gpu([self._patcher], memory_required=needed)
