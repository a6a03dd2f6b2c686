"""The causal Wan family: its files, and the noise levels that its members were trained with."""

from __future__ import annotations

from typing import Any

import torch

from ..qvg.errors import ConfigError
from ..qvg.models.common.found import AUTO
from ..qvg.models.common.weight_sets import WEIGHTS
from ..qvg.models.registry import joined, loaded_with, loaders, titles
from .api import CATEGORY, io, ui
from .widgets import Node

NODE = "Load Causal Wan"
NO_LORA = "none"
DTYPES = (AUTO, "bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")


class QVGLoadCausalWan(Node):
    """A checkpoint of the family, as released or repackaged, as ComfyUI's own causal Wan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from .comfy.files import Listed, lora_files, model_files

        return io.Schema(
            node_id="QVGLoadCausalWan",
            display_name=NODE,
            category=CATEGORY,
            description=f"Loads {titles(NODE)} from the files they are released in, .pt or .safetensors, and knows how each was "
            "trained to be run. The MODEL is ComfyUI's own causal Wan: its nodes, LoRA nodes and QVG's work on it.",
            search_aliases=["qvg", "self forcing", "causal forcing", "causvid", "longlive", "unet loader"],
            inputs=[
                io.Combo.Input("file", options=model_files(), tooltip="From models/diffusion_models: .pt, .pth or .safetensors."),
                io.Combo.Input(
                    "variant",
                    options=[AUTO, *(name for family in loaded_with(NODE) for name in family.variants)],
                    default=AUTO,
                    tooltip="Which member of the family the file is; says sigmas, frames per block and which weights to take. "
                    "auto: by metadata, name or hash, and refused where nothing says that the file is causal.",
                ),
                io.Combo.Input(
                    "weights",
                    options=[AUTO, *WEIGHTS],
                    default=AUTO,
                    tooltip="Checkpoints may have two sets of weights. auto: the one that was released to be used.",
                    advanced=True,
                    optional=True,
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default=AUTO,
                    tooltip="What the weights are kept in. auto: bf16, in which the family was trained, where the card computes "
                    "it well, else ComfyUI's choice; weights of 8 bits stay as they are.",
                    advanced=True,
                    optional=True,
                ),
                io.Combo.Input(
                    "lora",
                    options=Listed([NO_LORA, *lora_files()]),
                    default=NO_LORA,
                    tooltip="The second half of a model that is released as base and LoRA, as LongLive is. From models/loras.",
                    optional=True,
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="With its exact cache; QVG KV Cache behind it compresses that."),
            ],
        )

    @classmethod
    def execute(cls, file: str, variant: str, weights: str = AUTO, dtype: str = AUTO, lora: str = NO_LORA) -> io.NodeOutput:
        from .comfy.loading import load

        loaded = load(file, NODE, variant, weights, dtype, None if lora == NO_LORA else lora)
        return io.NodeOutput(loaded.model, ui=ui.PreviewText(loaded.text))


def _loaders(of_files: bool = False) -> str:
    """Nodes whose models know how they were trained; `of_files`: those that load people's files."""
    return joined(loaders(lambda family: bool(family.variants) and not (of_files and family.files is None)), "or")


class QVGTrainedSigmas(Node):
    """The noise levels that a MODEL of one of our loaders was distilled to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGTrainedSigmas",
            display_name="Trained Sigmas",
            category=CATEGORY,
            description="The noise levels that this model was trained to be sampled at, in place of a scheduler. Others do not "
            "make it better: it was distilled to these.",
            search_aliases=["qvg", "scheduler", "self forcing sigmas", "causal forcing sigmas"],
            inputs=[io.Model.Input("model", tooltip=f"From {_loaders()}; cache and LoRA nodes may be in between.")],
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="For SamplerCustomAdvanced; of every block but a different first."
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        from .comfy.settings import variant_of

        variant = variant_of(model.model_options)
        if variant is None:
            raise ConfigError(
                f"nothing is known of how this MODEL was trained; load it with {_loaders(of_files=True)}, its variant chosen, or "
                "connect BasicScheduler, simple, 4 steps, on a model of shift 5, which is right for Self-Forcing and "
                "Causal-Forcing"
            )
        return io.NodeOutput(torch.tensor(variant.sigmas))
