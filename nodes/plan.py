"""What a run will take, before anything is loaded."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..qvg import PRESETS
from ..qvg.models.registry import networks
from ..qvg.plan import MOST_LATENT_FRAMES, WEIGHT_BYTES, Video, Weights, plan
from ..qvg.plan.advice import setting_that_fits
from ..qvg.plan.report import GB, report
from .api import CATEGORY, io
from .widgets import Node, number, whole

_SIDE = whole(16, 8192, 16)


class QVGPlan(Node):
    """Model, size, length, preset and card to bytes, and whether that fits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGPlan",
            display_name="QVG Plan",
            category=CATEGORY,
            description="Says how much memory a run will take, before anything is loaded: weights, cache now and at the end, "
            "what attention and one block work in, decoding; whether it fits, the longest video that does, and the preset that "
            "would.",
            search_aliases=["qvg", "vram estimate", "will it fit", "memory plan"],
            inputs=[
                io.Combo.Input(
                    "network",
                    options=list(networks()),
                    default=next(iter(networks())),
                    tooltip="Which model, where no MODEL is connected.",
                ),
                io.Int.Input("width", default=832, tooltip="Of the video, in pixels.", **_SIDE),
                io.Int.Input("height", default=480, tooltip="Of the video, in pixels.", **_SIDE),
                io.Int.Input(
                    "frames",
                    default=81,
                    min=1,
                    max=4 * MOST_LATENT_FRAMES - 3,
                    step=4,
                    tooltip="Pictures: 1 + 4k. 81 are 5 seconds at 16 per second, 957 a minute.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="balanced",
                    tooltip="How the cache is kept. A connected MODEL that comes from QVG KV Cache brings its own setting.",
                ),
                io.Float.Input(
                    "vram_gb",
                    default=0.0,
                    **number(0.0, 1000.0, 0.5),
                    tooltip="Memory of the graphics card in GB (10^9 bytes), such as 12 or 24. 0: that of this machine.",
                ),
                io.Combo.Input(
                    "weights",
                    options=list(WEIGHT_BYTES),
                    default="bf16",
                    tooltip="What weights are kept in, where no MODEL is connected.",
                    advanced=True,
                    optional=True,
                ),
                io.Int.Input(
                    "block_frames",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Latent frames denoised together. 0: as the model was trained.",
                    advanced=True,
                    optional=True,
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    lazy=True,
                    tooltip="A MODEL to plan for, in place of network, weights and preset; best as it comes from QVG KV Cache.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The plan for people; also shown on the node."),
                io.Boolean.Output(display_name="fits", tooltip="Whether the run fits."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        network: str,
        width: int,
        height: int,
        frames: int,
        preset: str,
        vram_gb: float,
        weights: str = "bf16",
        block_frames: int = 0,
        model: Any = None,
    ) -> io.NodeOutput:
        from .comfy.attach import describe
        from .comfy.model_plan import device_bytes, device_type
        from .comfy.progress import say

        shape, kept, config, label = networks()[network], Weights(weights), PRESETS[preset], f"preset {preset}"
        if model is not None:
            shape, kept, settings = describe(model)
            width, height = shape.sizes or (width, height)
            config, label = (config, label) if settings is None else (settings, "as this MODEL keeps it")
        video = Video(width, height, frames, block_frames=block_frames or None)
        room = round(vram_gb * GB) or device_bytes()
        make_plan = partial(plan, shape, device_bytes=room, weights=kept, device_type="cuda" if vram_gb else device_type())
        found = make_plan(video, config)
        setting = (
            None
            if found.fits
            else setting_that_fits(lambda other: make_plan(video, other), config, block_frames or shape.chunk_frames)
        )
        text = report(shape, video, label, found, room, setting, lambda other: make_plan(other, config))
        say(text)
        return io.NodeOutput(text, bool(found.fits), ui={"text": (text,)})
