"""Worlds that QVG Causal Sampler makes block after block: their files."""

from __future__ import annotations

from ..qvg.models.common.found import AUTO
from ..qvg.models.registry import loaded_with, titles
from .api import CATEGORY, io, ui
from .causal_loaders import DTYPES
from .widgets import Node

NODE = "Load Camera World"


class QVGLoadCameraWorld(Node):
    """As released or converted, on ComfyUI's own Wan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from .comfy.files import model_files

        return io.Schema(
            node_id="QVGLoadCameraWorld",
            display_name=NODE,
            category=CATEGORY,
            description=f"Loads {titles(NODE)}: worlds that begin with a picture and that a camera walks through, block after "
            "block. "
            "The MODEL is ComfyUI's own Wan with the world's layers; LoRA nodes and QVG KV Cache work on it. It goes with Camera "
            "Video Start and QVG Causal Sampler. Nothing is downloaded; read each model's card for its licence.",
            search_aliases=["qvg", "dreamx", "world model", "camera", "unet loader"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=model_files(),
                    tooltip="From models/diffusion_models: model.safetensors of GD-ML/DreamX-World-5B (21 GB), or what qvg "
                    "convert "
                    "makes of it (10.6 GB).",
                ),
                io.Combo.Input(
                    "variant",
                    options=[AUTO, *(name for family in loaded_with(NODE) for name in family.variants)],
                    default=AUTO,
                    tooltip="auto: timesteps 1000, 936, 832 and 624, as the released program feeds them in bfloat16. "
                    "dreamx-world-exact: 1000, 937.5, 833.3 and 625, as they are meant.",
                    advanced=True,
                    optional=True,
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default=DTYPES[0],
                    tooltip="What the weights are kept in. auto: bf16, in which these were trained, where the card computes it "
                    "well, "
                    "else ComfyUI's choice.",
                    advanced=True,
                    optional=True,
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Remembers exactly; QVG KV Cache behind it compresses that."),
            ],
        )

    @classmethod
    def execute(cls, file: str, variant: str = AUTO, dtype: str = DTYPES[0]) -> io.NodeOutput:
        from .comfy.loading import load

        loaded = load(file, NODE, variant, dtype=dtype)
        return io.NodeOutput(loaded.model, ui=ui.PreviewText(loaded.text))
