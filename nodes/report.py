"""What a run cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..qvg.errors import ConfigError
from .api import CATEGORY, Report, io, ui
from .pictures import Curve, chart
from .records import RECORDS
from .widgets import Node


class QVGCacheReport(Node):
    """Bytes, ratio and speed of the run that made a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGCacheReport",
            display_name="QVG Cache Report",
            category=CATEGORY,
            description="How much memory the KV cache took while a video was sampled, by component and over time, and how that "
            "compares with 16 bits per value. Counted from the tensors that were there.",
            search_aliases=["qvg", "memory report", "cache size"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that sampled: the one that goes into the guider."),
                io.Latent.Input("latent", tooltip="The sampled LATENT, straight from SamplerCustomAdvanced."),
            ],
            outputs=[
                Report.Output(display_name="report", tooltip="For QVG Compare."),
                io.String.Output(display_name="text", tooltip="The report for people."),
                io.Image.Output(display_name="picture", tooltip="Memory over latent frames."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any]) -> io.NodeOutput:
        from .comfy.attach import counted_model
        from .comfy.progress import say
        from .comfy.settings import settings_of

        name = counted_model(model)
        record = RECORDS.find(latent["samples"], name, settings_of(model.model_options).config)
        if record is None:
            raise ConfigError(
                f"this LATENT was not sampled with this MODEL ({name}) since ComfyUI started; connect the MODEL that goes "
                "into the guider and the LATENT as it comes out of SamplerCustomAdvanced"
            )
        curves = [
            Curve("16 bits per value", [size / 1e6 for size in record.exact_bytes]),
            Curve(record.label(), [size / 1e6 for size in record.cache_bytes]),
        ]
        picture = as_image(chart("KV cache, MB, over latent frames", curves))
        say(record.text())
        shown = ui.PreviewImage(picture, cls=cls).as_dict()
        return io.NodeOutput(record, record.text(), picture, ui={**shown, "text": (record.text(),)})


def as_image(picture: np.ndarray[Any, Any]) -> Tensor:
    """A drawn picture as ComfyUI's, [1, H, W, 3] in 0..1."""
    return torch.from_numpy(picture)[None].float() / 255
