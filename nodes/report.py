"""What a run cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..qvg.errors import ConfigError
from .api import CATEGORY, Report, io, ui
from .cards import card, drawn, size
from .pictures import Curve, chart
from .records import RECORDS, RunRecord
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
        shown = {**ui.PreviewImage(picture, cls=cls).as_dict(), "text": (record.text(),)}
        return io.NodeOutput(record, record.text(), picture, ui={**shown, **report_card(record, curves)})


def report_card(record: RunRecord, curves: list[Curve]) -> dict[str, Any]:
    """How many times less, how much that is, how long a frame took; the curves in MB."""
    less = record.ratio
    figures = [
        (f"{less:.1f}×", "less memory" if less >= 1.05 else "the exact memory" if less > 0.95 else "of the exact memory"),
        (size(record.cache_bytes[-1]), f"not {size(record.exact_bytes[-1])}"),
        (f"{record.seconds_per_frame:.2f} s", "a frame"),
    ]
    return card(figures, record.text(), [drawn("Cache over frames", "MB", curves)])


def as_image(picture: np.ndarray[Any, Any]) -> Tensor:
    """A drawn picture as ComfyUI's, [1, H, W, 3] in 0..1."""
    return torch.from_numpy(picture)[None].float() / 255
