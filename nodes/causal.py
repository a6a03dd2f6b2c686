"""Causal Wan video (Self-Forcing and its family): what it starts from, and the sampler that makes it."""

from __future__ import annotations

from typing import Any

from ..qvg.errors import ConfigError
from ..qvg.models.registry import titles, trained_blocks
from ..qvg.models.wan.family import FAMILY
from .api import CATEGORY, io
from .pictures import first_picture
from .widgets import Node, number, whole

FPS = 16
MEMORIES = ("grow", "recompute")
POSITIONS = ("absolute", "reindexed")
SIDES = (16, 8192)  # the shortest, which all are a multiple of, and the longest


class QVGVideoStart(Node):
    """An empty video of any length, or one that begins with given frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        size = whole(*SIDES, SIDES[0])
        return io.Schema(
            node_id="QVGVideoStart",
            display_name="Causal Video Start",
            category=CATEGORY,
            description="The latent that a causal Wan video starts from, of any length: empty, or with a start image, or with a "
            "video to go on from. For SamplerCustomAdvanced with QVG Causal Sampler.",
            search_aliases=["qvg", "empty latent video", "image to video", "extend video"],
            inputs=[
                io.Int.Input("width", default=832, tooltip="Of the video, in pixels.", **size),
                io.Int.Input("height", default=480, tooltip="Of the video, in pixels.", **size),
                io.Int.Input(
                    "frames",
                    default=81,
                    min=1,
                    max=1_000_000,
                    step=4,
                    tooltip="Of the whole video, given ones included, at 16 a second: 81 are 5 seconds. 1 and then fours; others "
                    "are rounded down.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Videos made at once, each with noise of its own."),
                io.Vae.Input("vae", tooltip="Wan 2.1's VAE, for the start image.", optional=True, lazy=True),
                io.Image.Input(
                    "start_image",
                    tooltip="The picture that the video begins with, cut to its size. Frame-wise models are made for it.",
                    optional=True,
                    lazy=True,
                ),
                io.Latent.Input(
                    "extend",
                    tooltip="A sampled video to go on from: it becomes the beginning of this one.",
                    optional=True,
                    lazy=True,
                ),
                io.Model.Input(
                    "model",
                    tooltip="The model that the video is for, where that is not on Wan 2.1: LongLive 2.0 has Wan 2.2's latents.",
                    optional=True,
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="For SamplerCustomAdvanced; its noise mask keeps given frames.")
            ],
        )

    @classmethod
    def execute(
        cls,
        width: int,
        height: int,
        frames: int,
        batch_size: int,
        vae: Any = None,
        start_image: Any = None,
        extend: dict[str, Any] | None = None,
        model: Any = None,
    ) -> io.NodeOutput:
        if start_image is not None and extend is not None:
            raise ConfigError(
                "a start image and a video to extend are both connected, but a video begins with one of them; take one out"
            )
        if start_image is not None and vae is None:
            raise ConfigError("a start image needs the VAE that makes a latent of it; connect Wan 2.1's VAE")
        from .comfy.causal.video_start import kind_of, start_latent
        from .comfy.progress import say_what_is_left_out

        picture, left_out = (None, []) if start_image is None else first_picture("start_image", start_image, (width, height))
        latents = (frames - 1) // 4 + 1
        latent = start_latent((width, height), latents, batch_size, vae, picture, extend, kind_of(model))
        pixels = 4 * latents - 3
        say_what_is_left_out(f"{pixels} frames, {pixels / FPS:.1f} s at {FPS} a second; {latents} latent frames", left_out)
        return io.NodeOutput(latent)


class QVGCausalSampler(Node):
    """Our loop for ComfyUI's causal Wan as a SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        advanced = {"advanced": True, "optional": True}
        return io.Schema(
            node_id="QVGCausalSampler",
            display_name="QVG Causal Sampler",
            category=CATEGORY,
            description=f"Samples {titles(FAMILY.load_with)} on ComfyUI's causal Wan block after block, as "
            "Sampler AR Video does, at any length. Goes on from given frames, follows Prompt at Frame, and keeps finished frames "
            "when it is interrupted. Connect it to SamplerCustomAdvanced, and QVG KV Cache to the model.",
            search_aliases=["qvg", "autoregressive sampler", "ar video", "self-forcing", "causal-forcing", "longlive"],
            inputs=[
                io.Int.Input(
                    "frames_per_block",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Latent frames made together. 0: as the model was trained, if its loader knows; else "
                    f"{trained_blocks(FAMILY.load_with)}.",
                    optional=True,
                ),
                io.Combo.Input(
                    "positions",
                    options=list(POSITIONS),
                    default="absolute",
                    tooltip="With window_frames on QVG KV Cache. absolute: frames keep their place in the video, so the "
                    "first ones get ever farther away. reindexed: frames in memory are counted from 0, so distances "
                    "stay as trained.",
                    optional=True,
                ),
                io.Sigmas.Input(
                    "first_block_sigmas",
                    tooltip="Steps of the first block alone, for models trained so (Causal-Forcing++). Not connected: as the "
                    "model's loader knows.",
                    optional=True,
                    lazy=True,
                ),
                io.Float.Input(
                    "context_noise",
                    default=0.0,
                    **number(0.0, 0.99, 0.01),
                    tooltip="Noise level, from 0 to 1, that finished blocks are remembered at. 0 for every model known so far.",
                    **advanced,
                ),
                io.Boolean.Input(
                    "keep_finished",
                    default=True,
                    tooltip="After an interrupt or a failure, leave the finished frames as QVG/interrupted_*.latent in the "
                    "output folder.",
                    **advanced,
                ),
                io.Combo.Input(
                    "memory",
                    options=list(MEMORIES),
                    default=MEMORIES[0],
                    tooltip="grow: every finished block is remembered, as models are trained. recompute: before each block, "
                    "memory is made anew of the first frame and the newest two, as Krea Realtime's own server does: it never "
                    "grows, and nothing older is seen.",
                    **advanced,
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="Wan 2.1's VAE, for recompute: the oldest of the newest nine pictures takes the first frame's place, "
                    "so the scene may change. Not connected: the first frame stays for ever.",
                    optional=True,
                    lazy=True,
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        frames_per_block: int = 0,
        positions: str = "absolute",
        first_block_sigmas: Any = None,
        context_noise: float = 0.0,
        keep_finished: bool = True,
        memory: str = MEMORIES[0],
        vae: Any = None,
    ) -> io.NodeOutput:
        if vae is not None and memory != "recompute":
            raise ConfigError(f"memory is {memory}, which needs no VAE; choose recompute, or disconnect vae")
        from .comfy.causal.plan import CausalOptions
        from .comfy.causal.sampler import make_causal_sampler

        first = None if first_block_sigmas is None else tuple(first_block_sigmas.tolist())
        options = CausalOptions(frames_per_block, context_noise, first, positions == "reindexed", keep_finished, memory, vae)
        return io.NodeOutput(make_causal_sampler(options))
