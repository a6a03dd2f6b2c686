"""Models that this pack brings along."""

from __future__ import annotations

from .api import CATEGORY, io
from .widgets import Node


class QVGLoadDemoWorld(Node):
    """The 4.5 M parameter world model in assets/."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGLoadDemoWorld",
            display_name="Load Demo World",
            category=CATEGORY,
            description="A small autoregressive video model that paints what a camera sees while it walks over a map, and knows "
            "what it has seen from its KV cache alone. It comes with this pack and runs on any machine.",
            search_aliases=["qvg", "world model", "kv cache demo"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Remembers exactly; QVG KV Cache behind it compresses that."),
                io.Vae.Output(display_name="vae", tooltip="Latents of this model are pictures; this turns them into images."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from .comfy.demo.world import load

        return io.NodeOutput(*load())
