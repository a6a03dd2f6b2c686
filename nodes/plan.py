"""What a run will take, before anything is loaded."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..qvg import PRESETS, QVGConfig
from ..qvg.models.common.shape import NetworkShape
from ..qvg.models.registry import networks
from ..qvg.plan import MOST_LATENT_FRAMES, WEIGHT_BYTES, Plan, Video, Weights, plan
from ..qvg.plan.advice import Setting, setting_that_fits
from ..qvg.plan.report import GB, report
from ..qvg.plan.ways import ways, ways_text
from .api import CATEGORY, io
from .cache import advanced_inputs
from .cards import card, size
from .widgets import Node, number, whole

_SIDE = whole(16, 8192, 16)


_DEFAULT = QVGConfig()


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
                *_cache_inputs(),
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
        sink_frames: int = _DEFAULT.sink_frames,
        recent_frames: int = _DEFAULT.recent_frames,
        window_frames: int = 0,
        offload: str = _DEFAULT.offload,
        model: Any = None,
    ) -> io.NodeOutput:
        from .comfy.attach import describe
        from .comfy.model_plan import device_bytes, device_type

        shape, kept, label = networks()[network], Weights(weights), f"preset {preset}"
        config = PRESETS[preset].with_changes(
            sink_frames=sink_frames, recent_frames=recent_frames, window_frames=window_frames or None, offload=offload
        )
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
        seconds = shape.frame_pictures / shape.pictures_per_second
        changed = partial(_changed, shape, video, room, "cuda" if vram_gb else device_type())
        others = ways(changed, config, kept, seconds, block_frames or shape.chunk_frames)
        text = "\n".join(filter(None, (text, ways_text(others, shape.pictures_per_second))))
        return io.NodeOutput(text, bool(found.fits), ui={"text": (text,), **plan_card(shape, label, found, room, setting, text)})


def _changed(shape: NetworkShape, video: Video, room: int | None, device: str, config: QVGConfig, weights: Weights) -> Plan:
    return plan(shape, video, config, room, weights, device_type=device)


def _cache_inputs() -> list[Any]:
    """Those of QVG KV Cache that change how many bytes there are, where no MODEL brings them."""
    found = {each.id: each for each in advanced_inputs()}
    return [found[name] for name in ("sink_frames", "recent_frames", "window_frames", "offload")]


def plan_card(
    shape: NetworkShape, label: str, found: Plan, room: int | None, setting: Setting | None, text: str
) -> dict[str, Any]:
    """What the run takes at its worst moment, what the cache saves, the longest video; below what that means for the card."""
    ratio = found.exact_cache_bytes / max(1, found.cache_end_bytes)
    figures = [
        (size(found.peak_bytes), "at the worst moment" if room is None else f"of {size(room)}"),
        (f"{ratio:.1f}×", "less cache" if ratio >= 1 else "of the exact cache"),
    ]
    if room is None:
        return card(figures, text, sentence="No card is known here: set vram_gb, such as 24.")
    seconds = found.longest_frames and found.longest_frames / shape.pictures_per_second
    longest = "any length" if seconds is None else f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    figures.append((longest, "longest"))
    if found.fits:
        sentence = f"Your card, {room / GB:.0f} GB: {longest} with {label}."
    else:
        sentence = f"Your card, {room / GB:.0f} GB: too small" + (f"; it fits with {setting.text()}." if setting else ".")
    return card(figures, text, sentence=sentence)
