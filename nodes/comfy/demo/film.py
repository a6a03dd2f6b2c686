"""The demo film in ComfyUI: its file in core's own causal Wan, its pictures' encoder and decoder as a VAE, and a film's start."""

from __future__ import annotations

import math
from typing import Any

import comfy.latent_formats
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....qvg import UnsupportedModelError
from ....qvg.models.demo_film.directions import BLOCK_FRAMES
from ....qvg.models.demo_film.family import FILM
from ....qvg.models.demo_film.pictures import CHANNELS, STRIDE, PictureCodec
from ....qvg.models.demo_film.scenes import PICTURE_PIXELS
from ....qvg.models.demo_film.weights import CORE_METADATA, DemoFilmWeights, read_demo_film
from ....qvg.sampling.film import LATENT_PIXELS, FilmPlan
from ..attach import require_sampled_by
from ..causal import wan as causal_wan
from ..causal.plan import start_latent
from ..causal.shape import is_causal
from ..loading import put_variant
from ..room import require_room
from ..settings import variant_of
from .world import picture_vae

_START_KEY = "qvg_film"
# float32, in which it was trained and which every device computes: 17 MB.
_DTYPE = torch.float32


def load() -> tuple[Any, Any]:
    """MODEL and VAE of the shipped weights. Raises UnsupportedModelError where they are missing or damaged, or where this ComfyUI
    has no causal Wan."""
    weights = read_demo_film()
    model = _network(weights)
    if hasattr(model, "cached_patcher_init"):
        model.cached_patcher_init = (_load_again, ())
    put_variant(model, FILM)
    # Before the hooks of the cache, which are put on anew by every QVG KV Cache: these see each block of the start.
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, _START_KEY, _start_by_block)
    causal_wan.attach(model)
    return model, film_vae(weights)


def _network(weights: DemoFilmWeights, **more: Any) -> Any:
    model = comfy.sd.load_diffusion_model_state_dict(
        weights.network, model_options={"dtype": _DTYPE}, metadata=dict(CORE_METADATA), **more
    )
    if model is None or not is_causal(model.model):
        made = "nothing" if model is None else type(model.model).__name__
        raise UnsupportedModelError(
            f"this ComfyUI makes {made} of the demo film, which is a causal Wan; ComfyUI 0.21 to 0.33 know it: update ComfyUI "
            "or QVG"
        )
    return model


def _load_again(disable_dynamic: bool = False) -> Any:
    """The bare model once more, for ComfyUI's own needs; it carries wrappers and patches over itself."""
    return _network(read_demo_film(), **({"disable_dynamic": True} if disable_dynamic else {}))


def _start_by_block(executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], *args: Any) -> Tensor:
    """Core's sampler shows a start of many frames to the network at once; this one was trained on blocks that see what was
    before them alone, as QVG Causal Sampler shows them."""
    state, start = model_options.get("transformer_options", {}).get("ar_state"), start_latent(model_options)
    is_start = start is not None and start.shape[2] == x.shape[2] and not timestep.any()
    if state is None or not is_start or state["start_frame"] or x.shape[2] <= BLOCK_FRAMES:
        whole: Tensor = executor(x, timestep, model_options, *args)
        return whole
    made = []
    for first in range(0, x.shape[2], BLOCK_FRAMES):
        state["start_frame"] = first
        made.append(executor(x[:, :, first : first + BLOCK_FRAMES], timestep, model_options, *args))
    state["start_frame"] = 0
    return torch.cat(made, 2)


class FilmPictures(torch.nn.Module):
    """What ComfyUI's VAE drives: pictures [B, 3, F, H, W] in -1..1, and LATENTs as core's Wan has them, whose mean and deviation
    it takes off again for the network."""

    qvg_by_picture = True

    def __init__(self, codec: PictureCodec):
        super().__init__()
        self.codec, self._format = codec, comfy.latent_formats.Wan21()

    def encode(self, pictures: Tensor) -> Tensor:
        """-> [B, 16, F, H / 8, W / 8]."""
        latents = self.codec.encode(pictures.movedim(2, 1).flatten(0, 1))
        out: Tensor = self._format.process_out(latents.unflatten(0, (len(pictures), -1)).movedim(1, 2))
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """-> [B, 3, F, 8 h, 8 w]."""
        own = self._format.process_in(latents).movedim(2, 1).flatten(0, 1)
        pictures: Tensor = self.codec.decode(own).unflatten(0, (len(latents), -1)).movedim(1, 2)
        return pictures


def film_vae(weights: DemoFilmWeights) -> Any:
    """The codec as a VAE of ComfyUI's: one picture for each latent frame, at an eighth of the size."""
    codec = PictureCodec()
    codec.load_state_dict(weights.codec)
    pictures = FilmPictures(codec.eval().requires_grad_(False))
    vae = picture_vae()
    vae.first_stage_model, vae.size = pictures, None
    vae.patcher = comfy.model_patcher.ModelPatcher(pictures, load_device=vae.device, offload_device=mm.vae_offload_device())
    vae.latent_channels = CHANNELS
    vae.downscale_ratio = vae.upscale_ratio = (lambda frames: frames, STRIDE, STRIDE)
    vae.downscale_index_formula = vae.upscale_index_formula = (1, STRIDE, STRIDE)
    # The decoder's convolutions are at the latent's size: a fraction of the pictures.
    vae.memory_used_decode = lambda shape, dtype: 16 * STRIDE**2 * mm.dtype_size(dtype) * int(torch.Size(shape).numel())
    return vae


def start(model: Any, vae: Any, plan: FilmPlan, given_frames: int, batch: int) -> tuple[Any, dict[str, Any], Tensor]:
    """MODEL with the given frames where core's ARVideoI2V puts its start, LATENT with room for the film, and the real film
    [F, H, W, 3] in 0..1. Raises UnsupportedModelError for another MODEL or VAE, ConfigError for more than there is room for."""
    require_sampled_by(model.model, "QVG Causal Sampler")
    variant = variant_of(model.model_options)
    if variant is None or variant.name != FILM.name:
        raise UnsupportedModelError(
            f"this MODEL is {variant.name if variant else 'a causal Wan that is not known'}, but Film Start begins films of "
            f"{FILM.name}; connect 'Load Demo Film', or begin with 'Causal Video Start'"
        )
    pictures_of = getattr(vae, "first_stage_model", vae)  # other packs bring VAEs of their own make
    if not isinstance(pictures_of, FilmPictures):
        raise UnsupportedModelError(
            f"this VAE ({type(pictures_of).__name__}) is not the demo film's, so the model would not know its latents; "
            "connect the VAE of 'Load Demo Film'"
        )
    shape = (batch, CHANNELS, plan.frames, LATENT_PIXELS, LATENT_PIXELS)
    # The real film's pictures, drawn and handed over, besides.
    needed = 4 * (math.prod(shape) + 2 * 3 * plan.frames * PICTURE_PIXELS**2)
    require_room(needed, f"a film of {plan.frames} frames", "fewer frames or a smaller batch")
    pictures = (plan.pictures().movedim(1, -1) + 1) / 2
    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    options.pop("ar_config", None)
    if given_frames:
        options["ar_config"] = {"initial_latent": vae.encode(pictures[:given_frames]).repeat(batch, 1, 1, 1, 1)}
    return clone, {"samples": torch.zeros(shape, device=mm.intermediate_device())}, pictures
