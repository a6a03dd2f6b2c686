"""LongCat-Video as a model of ComfyUI's: its BaseModel, and the network with the forward pass that ComfyUI calls.

Layers are ComfyUI's own operations, so casting, 8 bits, offloading and LoRA work as for core's models. To ComfyUI it predicts
velocity, noise - clean, as other flow models do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ....qvg import UnsupportedModelError
from ....qvg.models.longcat.config import LongCatConfig
from ....qvg.models.longcat.memory import ConditionCache, WholeAttention
from ....qvg.models.longcat.network import LongCat
from ....qvg.models.longcat.schedule import SHIFT

# Where a pass finds what it is to do, in transformer_options.
PASS_KEY = "qvg_longcat_pass"
# A token's side in pixels of the latent; tensors of a layer that are alive at once, beside three of the MLP's width.
_PATCH, _BESIDE = 2, 12


@dataclass
class LongCatPass:
    """One pass. `told`: the timestep that the network hears; `cache`: memory of what the segment is conditioned on, None for
    none; `condition`: how many of the frames in the pass are that instead; `records`: the pass fills the memory and gives nothing
    back. `runs` counts how often the network was run."""

    told: float
    cache: ConditionCache | None = None
    condition: int = 0
    records: bool = False
    runs: int = field(default=0)


class LongCatModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model's configuration."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 (ComfyUI's own attribute)
    sampling_settings = {"shift": SHIFT, "multiplier": 1000}  # noqa: RUF012
    latent_format = comfy.latent_formats.Wan21
    # Trained in bf16; fp16 is not among them, as nobody has seen whether its values stay within that.
    supported_inference_dtypes = [torch.bfloat16, torch.float32]  # noqa: RUF012


class LongCatNetwork(LongCat):
    """x [B, C, F, h, w], timestep [B] -> velocity of x's shape, as ComfyUI calls it."""

    def __init__(self, shape: LongCatConfig, operations: Any, dtype: Any = None, device: Any = None):
        super().__init__(shape, operations, dtype=dtype, device=device)
        self.dtype = dtype

    def forward(  # type: ignore[override]  # called by ComfyUI, in its way
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
        **unused: Any,
    ) -> Tensor:
        """One pass inside the wrappers that other nodes have added."""
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        result: Tensor = WrapperExecutor.new_class_executor(self._pass, self, wrappers).execute(x, timestep, context, options)
        return result

    def _pass(self, x: Tensor, timestep: Tensor, context: Tensor | None, options: dict[str, Any]) -> Tensor:
        coming: LongCatPass | None = options.get(PASS_KEY)
        if coming is None:
            raise UnsupportedModelError(
                "LongCat-Video makes a video segment after segment, and needs a sampler that knows them; connect 'LongCat "
                "Sampler' to SamplerCustomAdvanced"
            )
        coming.runs += 1
        frames = x.transpose(1, 2)
        if coming.records:
            assert coming.cache is not None
            super().record(frames, coming.cache.recording())
            return x
        assert context is not None, "extra_conds sees to it"
        told = torch.full(frames.shape[:2], coming.told, device=x.device)
        told[:, : coming.condition] = 0
        prompt = self.read_prompt(context)
        attend: Any
        if coming.cache is None:
            rope = self.config.rope(*x.shape[3:])
            attend = WholeAttention(rope, frames.shape[1], coming.condition, x.device, attention)
        else:
            coming.cache.begin_pass(frames.shape[1])
            attend = coming.cache.attend
        return -super().forward(frames, told, prompt, attend, coming.condition).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """ComfyUI's own, of the user's choice. All [B, H, S, D]."""
    out: Tensor = optimized_attention(q, k, v, q.shape[1], skip_reshape=True, skip_output_reshape=True)
    return out


class LongCatModel(comfy.model_base.BaseModel):
    """The network between ComfyUI's samplers and its weights."""

    qvg_longcat = True

    def __init__(self, settings: LongCatModelConfig, device: Any = None):
        super().__init__(settings, comfy.model_base.ModelType.FLOW, device=device, unet_model=LongCatNetwork)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The prompt, as rows of its encoder."""
        return {"c_crossattn": comfy.conds.CONDRegular(kwargs["cross_attn"])}

    def memory_required(self, input_shape: Sequence[int], cond_shapes: Any = None) -> float:
        """Activations of one pass over a latent [B, C, F, h, w]; guidance comes as a batch of two. The memory is not in it."""
        shape, size = self.diffusion_model.config, self.get_dtype_inference().itemsize
        batch, _, frames, rows, cols = input_shape
        tokens = batch * frames * (rows // _PATCH) * (cols // _PATCH)
        return float(tokens * (3 * shape.mlp + _BESIDE * shape.width) * size)
