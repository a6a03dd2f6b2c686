"""What a run cost, and how two runs differ."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..qvg.errors import ConfigError
from ..qvg.media import side_by_side
from ..qvg.metrics import PSNR_CAP_DB, psnr_db
from .api import CATEGORY, InputImpl, Report, Types, io, ui
from .comfy.room import require_room
from .pictures import Curve, chart, in_colour
from .records import RECORDS, RunRecord
from .widgets import Node, number

# The longer side of small frames in a comparison where the node is to choose their enlargement.
ENLARGED_PIXELS = 256


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
        picture = _image(chart("KV cache, MB, over latent frames", curves))
        say(record.text())
        shown = ui.PreviewImage(picture, cls=cls).as_dict()
        return io.NodeOutput(record, record.text(), picture, ui={**shown, "text": (record.text(),)})


class QVGCompare(Node):
    """Two videos of the same walk, side by side and in numbers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGCompare",
            display_name="QVG Compare",
            category=CATEGORY,
            description="Two videos side by side, frame by frame, with the memory each had at that moment; how far the second "
            "strays from the first, and what each remembered with.",
            search_aliases=["qvg", "side by side", "psnr"],
            inputs=[
                io.Image.Input("images_a", lazy=True, tooltip="Frames of the first video, the one to compare with."),
                io.Image.Input("images_b", lazy=True, tooltip="Frames of the second video, as large as the first's."),
                Report.Input("report_a", optional=True, lazy=True, tooltip="QVG Cache Report of the first video."),
                Report.Input("report_b", optional=True, lazy=True, tooltip="QVG Cache Report of the second video."),
                io.Float.Input("fps", default=10.0, tooltip="Frames per second of the video.", **number(1.0, 120.0, 1.0)),
                io.Int.Input(
                    "scale",
                    default=0,
                    min=0,
                    max=16,
                    tooltip="How many times frames are enlarged, unsmoothed. 0: small ones to about 256 pixels, others not.",
                ),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="Both videos side by side; for Save Video."),
                io.Image.Output(display_name="frames", tooltip="The frames of that video."),
                io.Image.Output(display_name="curves", tooltip="PSNR, and memory where reports are connected, over frames."),
                io.String.Output(display_name="text", tooltip="The comparison in words."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images_a: Tensor,
        images_b: Tensor,
        fps: float,
        scale: int,
        report_a: RunRecord | None = None,
        report_b: RunRecord | None = None,
    ) -> io.NodeOutput:
        from .comfy.progress import say

        # Alpha is left out: what is invisible is no difference.
        (images_a, _), (images_b, _) = in_colour("images_a", images_a), in_colour("images_b", images_b)
        if images_a.shape[1:] != images_b.shape[1:]:
            sizes = (f"{images.shape[2]} x {images.shape[1]}" for images in (images_a, images_b))
            raise ConfigError("images_a are {} pixels and images_b {}; give two videos of one width and height".format(*sizes))
        scale = scale or max(1, round(ENLARGED_PIXELS / max(images_a.shape[1:3])))
        count, spare = min(len(images_a), len(images_b)), abs(len(images_a) - len(images_b))
        require_room(2 * count * scale**2 * images_a[0].nbytes, "the video side by side", "a smaller scale or fewer frames")
        images, reports = (images_a[:count], images_b[:count]), (report_a, report_b)
        psnr = psnr_db(*(part.float().clamp(0, 1) for part in images))
        frames = torch.stack([_row(images, reports, index, scale) for index in range(count)])
        curves = _image(_curves(psnr, reports))
        text = _comparison(psnr, reports)
        if spare:
            text += f"\n{'A' if len(images_a) > count else 'B'} goes on for {spare} frames more, which are left out"
        say(text)
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, audio=None, frame_rate=Fraction(fps)))
        shown = ui.PreviewImage(curves, cls=cls).as_dict()
        return io.NodeOutput(video, frames, curves, text, ui={**shown, "text": (text,)})


def _row(images: tuple[Tensor, Tensor], reports: tuple[RunRecord | None, ...], index: int, scale: int) -> Tensor:
    """Both frames at one moment. -> [H, W, 3] float in 0..1"""
    pictures = [(part[index].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy() for part in images]
    captions = [_caption(name, report, index) for name, report in zip("AB", reports, strict=True)]
    return torch.from_numpy(side_by_side(pictures, captions, scale)).float() / 255


def _caption(name: str, report: RunRecord | None, index: int) -> str:
    if report is None:
        return name
    return f"{report.label()}  {report.cache_bytes[min(index, report.frames - 1)] / 1e6:.1f} MB"


def _curves(psnr: Tensor, reports: tuple[RunRecord | None, ...]) -> np.ndarray[Any, Any]:
    panels = [chart(f"PSNR of B against A, dB ({PSNR_CAP_DB:.0f}: identical)", [Curve("B", psnr.tolist())])]
    lines = [
        Curve(f"{name}: {report.label()}", [size / 1e6 for size in report.cache_bytes])
        for name, report in zip("AB", reports, strict=True)
        if report is not None
    ]
    if lines:
        panels.append(chart("KV cache, MB, over latent frames", lines))
    return np.concatenate(panels, 0)


def _comparison(psnr: Tensor, reports: tuple[RunRecord | None, ...]) -> str:
    same = int((psnr >= PSNR_CAP_DB).sum())
    pooled = -10 * float((10 ** (-psnr.double() / 10)).mean().log10())
    differ = f"PSNR of B against A, error pooled over all frames: {pooled:.1f} dB"
    lines = ["The two videos are identical." if same == len(psnr) else differ, f"{same} of {len(psnr)} frames are identical"]
    for name, report in zip("AB", reports, strict=True):
        if report is not None:
            size = f"{report.cache_bytes[-1] / 1e6:.2f} MB at the end, {report.ratio:.2f}x"
            lines.append(f"{name}: {report.label()}, {size}, {report.seconds_per_frame:.3f} s/frame")
    return "\n".join(lines)


def _image(picture: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(picture)[None].float() / 255
