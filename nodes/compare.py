"""How the videos of several runs differ."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..qvg.errors import ConfigError
from ..qvg.media import side_by_side
from ..qvg.metrics import PSNR_CAP_DB, psnr_db
from .api import CATEGORY, InputImpl, Report, Types, io, ui
from .cards import card, drawn
from .comfy.room import require_room
from .pictures import Curve, chart, in_colour
from .records import RunRecord
from .report import as_image
from .widgets import Node, number

# The first video is the one that the others are compared with, and the second must be there; a chart has as many colours.
LETTERS = "ABCD"
# So many videos stand in one row; of more, every row has as many as the first.
ROW = 3
# The longer side of small frames in a comparison where the node is to choose their enlargement.
ENLARGED_PIXELS = 256

# By letter, those that are connected, the first one first.
Videos = Mapping[str, Tensor]
Reports = Mapping[str, RunRecord]


class QVGCompare(Node):
    """Videos of the same walk, side by side and in numbers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGCompare",
            display_name="QVG Compare",
            category=CATEGORY,
            description="Two to four videos side by side, frame by frame, with the memory each had at that moment; how far the "
            "others stray from the first, and what each remembered with.",
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
                # Last, as they came later: workflows that were saved before keep their inputs' places.
                _more_images("images_c", "third"),
                _more_reports("report_c", "third"),
                _more_images("images_d", "fourth"),
                _more_reports("report_d", "fourth"),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="All videos side by side; for Save Video."),
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
        images_c: Tensor | None = None,
        report_c: RunRecord | None = None,
        images_d: Tensor | None = None,
        report_d: RunRecord | None = None,
    ) -> io.NodeOutput:
        given = zip(LETTERS, (images_a, images_b, images_c, images_d), (report_a, report_b, report_c, report_d), strict=True)
        videos, reports = _connected({letter: (images, report) for letter, images, report in given})
        first = videos["A"]
        scale = scale or max(1, round(ENLARGED_PIXELS / max(first.shape[1:3])))
        count = min(len(images) for images in videos.values())
        size = len(videos) * count * scale**2 * first[0].nbytes
        require_room(size, "the video side by side", "a smaller scale or fewer frames")
        spare = {letter: len(images) - count for letter, images in videos.items() if len(images) > count}
        videos = {letter: images[:count] for letter, images in videos.items()}
        psnr = psnr_against_first(videos)
        frames = torch.stack([_row(videos, reports, index, scale) for index in range(count)])
        panels = _panels(psnr, reports)
        curves = as_image(np.concatenate([chart(f"{title}, {unit}", lines) for title, unit, lines in panels], 0))
        text = "\n".join(
            [
                comparison(psnr, reports),
                *(f"{letter} goes on for {more} frames more, which are left out" for letter, more in spare.items()),
            ]
        )
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, audio=None, frame_rate=Fraction(fps)))
        shown = {**ui.PreviewImage(curves, cls=cls).as_dict(), "text": (text,)}
        told = card(_figures(psnr, reports), text, [drawn(*panel) for panel in panels])
        return io.NodeOutput(video, frames, curves, text, ui={**shown, **told})


def _more_images(name: str, which: str) -> Any:
    return io.Image.Input(name, optional=True, lazy=True, tooltip=f"Frames of a {which} video, as large as the first's.")


def _more_reports(name: str, which: str) -> Any:
    return Report.Input(name, optional=True, lazy=True, tooltip=f"QVG Cache Report of the {which} video.")


def _connected(given: Mapping[str, tuple[Tensor | None, RunRecord | None]]) -> tuple[Videos, Reports]:
    """What there is, without alpha: what is invisible is no difference. ConfigError for videos of several sizes, and for a report
    without its video."""
    videos: dict[str, Tensor] = {}
    reports: dict[str, RunRecord] = {}
    for letter, (images, report) in given.items():
        name = letter.lower()
        if images is not None:
            videos[letter], _ = in_colour(f"images_{name}", images)
            if videos[letter].shape[1:] != videos["A"].shape[1:]:
                sizes = (f"{each.shape[2]} x {each.shape[1]}" for each in (videos["A"], videos[letter]))
                text = "images_a are {} pixels and images_{} {}; give videos of one width and height"
                raise ConfigError(text.format(next(sizes), name, next(sizes)))
        elif report is not None:
            raise ConfigError(f"report_{name} has no video to it; connect images_{name}, or leave both out")
        if report is not None:
            reports[letter] = report
    return videos, reports


def psnr_against_first(videos: Videos) -> dict[str, Tensor]:
    """PSNR of every frame [F] against the first video's, by the others' letters."""
    shown = {letter: images.float().clamp(0, 1) for letter, images in videos.items()}
    return {letter: psnr_db(shown["A"], images) for letter, images in shown.items() if letter != "A"}


def _row(videos: Videos, reports: Reports, index: int, scale: int) -> Tensor:
    """All frames at one moment, in rows of equal length. -> [H, W, 3] float in 0..1"""
    pictures = [(images[index].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy() for images in videos.values()]
    captions = [_caption(letter, reports.get(letter), index) for letter in videos]
    rows = -(-len(pictures) // ROW)
    return torch.from_numpy(side_by_side(pictures, captions, scale, -(-len(pictures) // rows))).float() / 255


def _caption(letter: str, report: RunRecord | None, index: int) -> str:
    if report is None:
        return letter
    return f"{report.label()}  {report.cache_bytes[min(index, report.frames - 1)] / 1e6:.1f} MB"


def _panels(psnr: Mapping[str, Tensor], reports: Reports) -> list[tuple[str, str, list[Curve]]]:
    """Title, unit and lines of each chart."""
    others = " and ".join(filter(None, (", ".join([*psnr][:-1]), [*psnr][-1])))
    lines = [Curve(letter, values.tolist(), LETTERS.index(letter)) for letter, values in psnr.items()]
    panels = [(f"PSNR of {others} against A ({PSNR_CAP_DB:.0f}: identical)", "dB", lines)]
    memory = [
        Curve(f"{letter}: {report.label()}", [size / 1e6 for size in report.cache_bytes], LETTERS.index(letter))
        for letter, report in reports.items()
    ]
    return [*panels, ("Cache over latent frames", "MB", memory)] if memory else panels


def _figures(psnr: Mapping[str, Tensor], reports: Reports) -> list[tuple[str, str]]:
    """How near the others are to A; of one other also what it saved, or how many frames are A's."""
    figures = [(_decibels(values), f"{letter} against A") for letter, values in psnr.items()]
    if len(psnr) > 1:
        return figures
    (values,) = psnr.values()
    figures.append((f"{int((values >= PSNR_CAP_DB).sum())}", f"of {len(values)} frames identical"))
    if {"A", "B"} <= reports.keys() and reports["B"].cache_bytes[-1]:
        ratio = reports["A"].cache_bytes[-1] / reports["B"].cache_bytes[-1]
        figures.insert(0, (f"{ratio:.1f}×", "less memory in B" if ratio >= 1 else "of B's memory in A"))
    return figures


def _decibels(values: Tensor) -> str:
    return "identical" if bool((values >= PSNR_CAP_DB).all()) else f"{_pooled(values):.1f} dB"


def _pooled(values: Tensor) -> float:
    """PSNR of the error pooled over all frames, in dB."""
    return -10 * float((10 ** (-values.double() / 10)).mean().log10())


def comparison(psnr: Mapping[str, Tensor], reports: Reports) -> str:
    """In words: how far each strays from the first, then what each remembered with."""
    lines: list[str] = []
    for letter, values in psnr.items():
        same = int((values >= PSNR_CAP_DB).sum())
        if same == len(values):
            lines.append("The two videos are identical." if len(psnr) == 1 else f"{letter} is identical to A.")
        else:
            lines.append(f"PSNR of {letter} against A, error pooled over all frames: {_pooled(values):.1f} dB")
        lines.append(f"{same} of {len(values)} frames are identical")
    for letter, report in reports.items():
        size = f"{report.cache_bytes[-1] / 1e6:.2f} MB at the end, {report.ratio:.2f}x"
        lines.append(f"{letter}: {report.label()}, {size}, {report.seconds_per_frame:.3f} s/frame")
    return "\n".join(lines)
