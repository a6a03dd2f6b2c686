"""The demo world as a model of ComfyUI's: its BaseModel, latent format and patcher, layers from ComfyUI's own operations.

Latents are pictures in -1..1, [B, 3, F, P, P]. To ComfyUI the model predicts velocity, (x - clean) / sigma, so that core's
flow sampling and its shift nodes apply to it as to any other flow model.
"""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ....qvg import CacheSpec, ConfigError, GridRope, UnsupportedModelError
from ....qvg.models.demo_world import DemoWorld, DemoWorldConfig, read_demo_world
from ..settings import RUN_KEY, CacheSettings, put_settings

# ComfyUI's flow models hand the noise level over as 0..1000.
_TIMESTEPS = 1000


class DemoWorldLatents(comfy.latent_formats.LatentFormat):
    """Pictures as they are; three channels are red, green and blue."""

    latent_channels = 3
    latent_dimensions = 3
    spacial_downscale_ratio = 1
    temporal_downscale_ratio = 1
    latent_rgb_factors = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


class DemoWorldSettings(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model's configuration."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 (ComfyUI's own attribute)
    sampling_settings = {"shift": 3.0, "multiplier": _TIMESTEPS}  # noqa: RUF012
    latent_format = DemoWorldLatents
    supported_inference_dtypes = [torch.float32]  # noqa: RUF012


class DemoWorldNetwork(DemoWorld):
    """The backbone with the forward pass that ComfyUI calls. x [B, 3, F, P, P], timestep [B] -> velocity of x's shape."""

    def __init__(self, config: DemoWorldConfig, operations: Any, dtype: torch.dtype, device: Any):
        super().__init__(config, operations, dtype=dtype, device=device)
        self.dtype = dtype

    def forward(  # type: ignore[override]  # called by ComfyUI, in its way
        self, x: Tensor, timestep: Tensor, transformer_options: dict[str, Any] | None = None, **unused: Any
    ) -> Tensor:
        """One pass over the current block, which attends to the run's cache; inside the wrappers that other nodes have added."""
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        result: Tensor = WrapperExecutor.new_class_executor(self._forward, self, wrappers).execute(x, timestep, options)
        return result

    def _forward(self, x: Tensor, timestep: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        run = transformer_options.get(RUN_KEY)
        if run is None:
            raise UnsupportedModelError(
                "the demo world generates frame after frame and needs a sampler that does so; connect 'QVG Sampler' to "
                "SamplerCustomAdvanced"
            )
        batch = run.cache.spec.batch
        if x.shape[0] != batch:
            raise ConfigError(
                f"the model was handed {x.shape[0]} videos at once, but the cache was made for {batch}; "
                "the demo world knows no prompt, so use BasicGuider, or a guider at cfg 1"
            )
        level = timestep.float() / _TIMESTEPS
        clean = super().forward(x.movedim(2, 1), level[:, None].expand(-1, x.shape[2]), run.attend).movedim(1, 2)
        return (x - clean) / level.clamp_min(1e-6).view(-1, 1, 1, 1, 1)


class DemoWorldModel(comfy.model_base.BaseModel):
    """The demo world between ComfyUI's sampler and the backbone."""

    qvg_name = "demo world"

    def __init__(self, config: DemoWorldConfig, device: Any):
        settings = DemoWorldSettings({"config": config, "dtype": torch.float32})
        super().__init__(settings, comfy.model_base.ModelType.FLOW, device=device, unet_model=DemoWorldNetwork)
        self.world_config = config

    def qvg_cache_spec(self, batch: int) -> CacheSpec:
        """What the model asks of its cache."""
        return self.world_config.cache_spec(batch)

    def qvg_rope(self) -> GridRope:
        """Positions of its tokens."""
        return self.world_config.rope()

    def qvg_check_latent(self, x: Tensor) -> None:
        """Raise ConfigError unless `x` is a latent of this model's."""
        pixels = self.world_config.picture_pixels
        if x.ndim != 5 or x.shape[1] != 3 or tuple(x.shape[3:]) != (pixels, pixels):
            raise ConfigError(
                f"the latent is {list(x.shape)}, but the demo world paints [batch, 3, frames, {pixels}, {pixels}]; take it from "
                "'Demo World Start'"
            )

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """None: the network sees the cache and the noise level. Where the camera stands is the sampler's business."""
        return {}

    def memory_required(self, input_shape: Any, cond_shapes: Any = None) -> float:
        """Activations of one frame; ComfyUI's rule of thumb would count all frames of the video. The cache is not in it."""
        config = self.world_config
        per_token = 4 * config.width * (3 * config.mlp_ratio + 12)
        return float(input_shape[0] * config.tokens_per_frame * per_token)


def load() -> tuple[Any, Any]:
    """MODEL and VAE of the shipped weights. Raises UnsupportedModelError where they are missing or damaged."""
    config, state = read_demo_world()
    model = DemoWorldModel(config, mm.unet_offload_device())
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = patcher_class(model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())
    dynamic = hasattr(patcher, "is_dynamic") and patcher.is_dynamic()
    model.diffusion_model.load_state_dict(state, assign=dynamic)
    model.diffusion_model.requires_grad_(False)
    put_settings(patcher, CacheSettings())
    return patcher, picture_vae()


def picture_vae() -> Any:
    """Core's pixel-space VAE, told that latents have frames: as core makes it, it decodes the first one only."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    if not hasattr(vae, "latent_dim"):
        raise UnsupportedModelError("QVG needs ComfyUI 0.21 or newer: this one's pixel-space VAE cannot be told about frames")
    vae.latent_dim = 3
    vae.memory_used_decode = vae.memory_used_encode = lambda shape, dtype: 4 * mm.dtype_size(dtype) * _volume(shape)
    return vae


def _volume(shape: Any) -> int:
    return int(torch.Size(shape).numel())
