"""Worlds to walk through: HY-WorldPlay's file, what a walk starts from, and the sampler that paints it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..qvg.errors import ConfigError
from ..qvg.models.common.world_memory import LAYOUTS
from ..qvg.models.common.world_schedule import CHUNK_FRAMES, MODES, MOST_FRAMES, check_frames
from ..qvg.models.family import WorldRule
from ..qvg.models.registry import by_world
from .api import CATEGORY, Camera, io, ui
from .camera import AnyCamera
from .causal_loaders import DTYPES
from .pictures import first_picture
from .widgets import Node, whole

NODE = "Load WorldPlay"
STARTS = ("image", "text", "extend")
# Pixels of a token's side; both sides of a video are whole tokens.
_TOKEN_PIXELS = 32


def _size(rule: WorldRule) -> str:
    return f"{rule.size[0]} x {rule.size[1]}"


def _vae(rule: WorldRule) -> str:
    return rule.vae


def _memory(rule: WorldRule) -> str:
    """What a chunk of a world sees, as the network was trained."""
    first = rule.frames.first_frames
    return f"{rule.frames.context_frames - first}" + (f" and, always, the first {first}" if first else "")


class QVGLoadWorldPlay(Node):
    """HY-WorldPlay's 5B or 8B, as released or converted, on ComfyUI's own Wan 2.2 or HunyuanVideo 1.5."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from .comfy.files import model_files

        return io.Schema(
            node_id="QVGLoadWorldPlay",
            display_name=NODE,
            category=CATEGORY,
            description="Loads HY-WorldPlay (HY-World 1.5) on Wan 2.2 5B or HunyuanVideo 1.5 (8B): a world that you walk through "
            "with a camera. The MODEL is ComfyUI's own network with WorldPlay's layers; LoRA nodes and QVG KV Cache work on it. "
            "Nothing is downloaded. The weights are under Tencent's community licence, which does not hold in the European "
            "Union, the United Kingdom and South Korea.",
            search_aliases=["qvg", "hy-worldplay", "hunyuan world", "world model", "unet loader"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=model_files(),
                    tooltip="From models/diffusion_models: wan_distilled_model/model.pt of tencent/HY-WorldPlay (40 GB), or what "
                    "qvg convert makes of it (10.6 GB). The 8B: the file of ar_distilled_action_model, ar_model or ar_rl_model, "
                    "in its folder.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default=DTYPES[0],
                    tooltip="What the weights are kept in. auto: bf16, in which it was trained, where the card computes it well, "
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
    def execute(cls, file: str, dtype: str = DTYPES[0]) -> io.NodeOutput:
        from .comfy.loading import load

        loaded = load(file, NODE, dtype=dtype)
        return io.NodeOutput(loaded.model, ui=ui.PreviewText(loaded.text))


class QVGWorldStart(Node):
    """Prompt, camera and first picture to conditioning and the latent that sampling starts from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        size = whole(64, 4096, _TOKEN_PIXELS)
        later = {"optional": True, "lazy": True}
        trained = f"Of the video, in pixels. Trained at {by_world(_size)}."
        return io.Schema(
            node_id="QVGWorldStart",
            display_name="World Start",
            category=CATEGORY,
            description="What a walk through a world starts from: a prompt, a camera, and a picture, the prompt alone, or a "
            "world that was walked through before. Four latent frames are a chunk: 13 video frames, then 16 each; 240 latent "
            "frames are a session.",
            search_aliases=["qvg", "worldplay", "image to world", "extend world", "empty latent"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning", lazy=True, tooltip="What there is to see: the prompt, from CLIP Text Encode."
                ),
                Camera.Input(
                    "camera", tooltip="From QVG Camera Path or QVG Camera Poses: a multiple of 4 latent frames, at most 240."
                ),
                io.Combo.Input(
                    "start",
                    options=list(STARTS),
                    default=STARTS[0],
                    tooltip="image: the world begins with a picture. text: it is made up from the prompt. extend: it goes on "
                    "from a sampled world, whose frames stay as they are; the camera walks all of it, from the first frame on.",
                ),
                io.Int.Input("width", default=1280, tooltip=trained, **size),
                io.Int.Input("height", default=704, tooltip=trained, **size),
                io.Vae.Input("vae", tooltip=f"For the picture: the VAE of {by_world(_vae)}.", **later),
                io.Image.Input("image", tooltip="The first picture, scaled and cut to the video's size.", **later),
                io.Latent.Input("extend", tooltip="A sampled world of whole chunks to go on from.", **later),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="Prompt and cameras; for BasicGuider."),
                io.Latent.Output(
                    display_name="latent", tooltip="Given frames, and room for the others; for SamplerCustomAdvanced."
                ),
            ],
        )

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        waiting = super().check_lazy_status(**inputs)
        complaint = _start_complaint(inputs["start"], inputs)
        if complaint:
            raise ConfigError(complaint)
        check_frames(inputs["camera"].frames)
        return waiting

    @classmethod
    def execute(
        cls,
        conditioning: Any,
        camera: AnyCamera,
        start: str,
        width: int,
        height: int,
        vae: Any = None,
        image: Any = None,
        extend: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        from .comfy.progress import say_what_is_left_out
        from .comfy.world.start import start_latent, walk_text, with_cameras

        conditioned = with_cameras(conditioning, camera.cameras())
        picture, left_out = (None, []) if image is None else first_picture("image", image, (width, height))
        latent = start_latent((width, height), camera.frames, vae, picture, extend)
        say_what_is_left_out(walk_text(camera.frames), left_out)
        return io.NodeOutput(conditioned, latent)


def _needed(start: str) -> dict[str, str]:
    """What it needs, by the name of the input."""
    if start == "image":
        return {"image": "a first picture", "vae": f"the VAE of {by_world(_vae)}"}
    return {"extend": "a sampled world"} if start == "extend" else {}


def _start_complaint(start: str, connected: Collection[str]) -> str | None:
    """What is connected too much or too little; what will come of it is not known yet."""
    needed = _needed(start)
    missing = next((name for name in needed if name not in connected), None)
    if missing:
        return f"start is {start}, but nothing is connected to {missing}; connect {needed[missing]}, or choose another start"
    spare = next((name for name in ("image", "extend") if name in connected and name not in needed), None)
    if spare:
        return f"start is {start}, but {spare} is connected and would be left out; choose {spare} as start, or disconnect it"
    return None


class QVGWorldSampler(Node):
    """The walk as a SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        frames = whole(0, MOST_FRAMES, CHUNK_FRAMES)
        return io.Schema(
            node_id="QVGWorldSampler",
            display_name="World Sampler",
            category=CATEGORY,
            description="Paints a world chunk after chunk, four latent frames each, while the camera walks. Connect it to "
            "SamplerCustomAdvanced with World Start and Trained Sigmas. An interrupt or a failure frees the memory and keeps the "
            "chunks finished so far.",
            search_aliases=["qvg", "worldplay sampler", "autoregressive sampler"],
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="vendor: before every chunk the frames that it should see are chosen and computed again; what the "
                    "official pipeline does. persistent: all earlier frames, each as first written, though all are run again; "
                    "what Quant-VideoGen does. incremental: only the new chunk is run; ours, much faster, but earlier frames "
                    "never see later ones, and nobody has judged the videos.",
                ),
                io.Int.Input(
                    "memory_frames",
                    default=16,
                    tooltip="vendor mode: latent frames that a chunk sees, the newest and those that look the same way. "
                    f"Trained with {by_world(_memory)}. 0: all.",
                    **frames,
                    optional=True,
                ),
                io.Int.Input(
                    "recent_frames",
                    default=12,
                    tooltip="vendor mode: how many of memory_frames are the newest; the others are found by where the camera "
                    "looks. 0: all but one clip of 4. At most memory_frames less 4.",
                    **frames,
                    advanced=True,
                    optional=True,
                ),
                io.Combo.Input(
                    "storage",
                    options=list(LAYOUTS),
                    default=LAYOUTS[0],
                    tooltip="once: keys and values as they are, rotated when read. vendor: rotated and kept twice, as the "
                    "official code and Quant-VideoGen keep them; twice the memory, to compare with.",
                    advanced=True,
                    optional=True,
                ),
                io.Boolean.Input(
                    "keep_finished",
                    default=True,
                    tooltip="After an interrupt or a failure, leave the finished frames as QVG/interrupted_*.latent in the "
                    "output folder; World Start goes on from them.",
                    advanced=True,
                    optional=True,
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        mode: str,
        memory_frames: int = 16,
        recent_frames: int = 12,
        storage: str = LAYOUTS[0],
        keep_finished: bool = True,
    ) -> io.NodeOutput:
        from .comfy.world.run import WorldOptions
        from .comfy.world.sampler import make_world_sampler

        return io.NodeOutput(make_world_sampler(WorldOptions(mode, memory_frames, recent_frames, storage, keep_finished)))
