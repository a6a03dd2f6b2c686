"""LongCat-Video: its file, what a video starts from, and the sampler that makes it segment after segment."""

from __future__ import annotations

from typing import Any

from ..qvg.errors import ConfigError
from ..qvg.models.common.found import AUTO
from ..qvg.models.longcat.config import CONDITION_PICTURES, LONG_CONDITION_PICTURES, SEGMENT_PICTURES, SegmentFrames
from ..qvg.models.longcat.variants import DISTILLED, LONGCAT
from .api import CATEGORY, io, ui
from .causal_loaders import DTYPES, NO_LORA
from .pictures import first_picture, in_colour
from .widgets import Node, whole

NODE = "Load LongCat"
FPS = 15
STARTS = ("text", "image", "video")
CARRIES = ("pictures", "latents")
ENHANCES = ("auto", "on", "off")
_TOKEN_PIXELS = 16
_MOST_PICTURES = 361


class QVGLoadLongCat(Node):
    """The 13.6B, as released, converted or repackaged, and its distill LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from .comfy.files import Listed, lora_files, model_files

        return io.Schema(
            node_id="QVGLoadLongCat",
            display_name=NODE,
            category=CATEGORY,
            description="Loads LongCat-Video 13.6B, which makes videos of any length segment after segment, each conditioned on "
            "the end of the one before. ComfyUI has no such network: this is QVG's own, made of ComfyUI's layers, so LoRA, fp8 "
            "and offloading work on it. Nothing is downloaded. The weights are under the MIT licence.",
            search_aliases=["qvg", "longcat", "longcat-video", "long video", "unet loader"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=model_files(),
                    tooltip="From models/diffusion_models: any part of the folder dit of meituan-longcat/LongCat-Video, the "
                    "whole folder being there; or one file, made by qvg convert or repackaged.",
                ),
                io.Combo.Input(
                    "variant",
                    options=[AUTO, LONGCAT.name, DISTILLED.name],
                    default=AUTO,
                    tooltip="How it is run: with guidance in 50 steps, or distilled, without guidance in 16. auto: by the file's "
                    "metadata and the LoRA's name.",
                    advanced=True,
                    optional=True,
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default=AUTO,
                    tooltip="What the weights are kept in. auto: bf16, in which it was trained, where the card computes it well; "
                    "weights of 8 bits stay as they are.",
                    advanced=True,
                    optional=True,
                ),
                io.Combo.Input(
                    "lora",
                    options=Listed([NO_LORA, *lora_files()]),
                    default=NO_LORA,
                    tooltip="cfg_step_lora.safetensors distils the model to 16 steps without guidance. From models/loras, in its "
                    "authors' format or in others'.",
                    optional=True,
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Remembers exactly; QVG KV Cache behind it compresses that."),
            ],
        )

    @classmethod
    def execute(cls, file: str, variant: str = AUTO, dtype: str = AUTO, lora: str = NO_LORA) -> io.NodeOutput:
        from .comfy.loading import load

        loaded = load(file, NODE, variant, dtype=dtype, lora=None if lora == NO_LORA else lora)
        return io.NodeOutput(loaded.model, ui=ui.PreviewText(loaded.text))


class QVGLongCatStart(Node):
    """Prompt, and a picture or a video, to conditioning and the latent that sampling starts from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        size = whole(64, 4096, _TOKEN_PIXELS)
        later = {"optional": True, "lazy": True}
        return io.Schema(
            node_id="QVGLongCatStart",
            display_name="LongCat Start",
            category=CATEGORY,
            description="What a LongCat video starts from: the prompt alone, a picture, or the end of a video to go on from; and "
            "how long it becomes. The first segment has 93 pictures, every further one 80 new ones, at 15 a second: 11 segments "
            "are a minute.",
            search_aliases=["qvg", "longcat", "image to video", "extend video", "video continuation", "empty latent"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning", lazy=True, tooltip="The prompt, from CLIP Text Encode, or prompts from Prompt at Frame."
                ),
                io.Combo.Input(
                    "start",
                    options=list(STARTS),
                    default=STARTS[0],
                    tooltip="text: made up from the prompt. image: begins with a picture. video: goes on from the last pictures "
                    "of one.",
                ),
                io.Int.Input("width", default=832, tooltip="Of the video, in pixels. Trained at 832 x 480.", **size),
                io.Int.Input("height", default=480, tooltip="Of the video, in pixels. Trained at 832 x 480.", **size),
                io.Int.Input(
                    "segments",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="How many; each goes on from the one before. 11 are a minute.",
                ),
                io.Int.Input(
                    "segment_pictures",
                    default=SEGMENT_PICTURES,
                    min=5,
                    max=_MOST_PICTURES,
                    step=4,
                    tooltip="Of one segment, those that it is conditioned on included: 1 and then fours. Trained with 93.",
                    advanced=True,
                    optional=True,
                ),
                io.Int.Input(
                    "condition_pictures",
                    default=CONDITION_PICTURES,
                    min=1,
                    max=_MOST_PICTURES,
                    step=4,
                    tooltip=f"How many pictures at the end of a segment the next one is conditioned on. {CONDITION_PICTURES} as "
                    f"released; {LONG_CONDITION_PICTURES} is what Quant VideoGen measures, with 20 new pictures a segment. They "
                    "are what the cache holds.",
                    advanced=True,
                    optional=True,
                ),
                io.Vae.Input("vae", tooltip="For a picture or a video: Wan 2.1's.", **later),
                io.Image.Input("image", tooltip="The first picture, scaled and cut to the video's size.", **later),
                io.Image.Input("video", tooltip="Pictures of a video, in order; the last ones are taken.", **later),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="The prompt, and how long a segment is; for a guider."
                ),
                io.Latent.Output(
                    display_name="latent", tooltip="Given frames, and room for the others; for SamplerCustomAdvanced."
                ),
            ],
        )

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        waiting = super().check_lazy_status(**inputs)
        frames = _frames(inputs)
        if (wrong := _start_complaint(inputs["start"], inputs)) is not None:
            raise ConfigError(wrong)
        if inputs.get("video") is not None:
            frames.require_video(len(inputs["video"]))
        return waiting

    @classmethod
    def execute(
        cls,
        conditioning: Any,
        start: str,
        width: int,
        height: int,
        segments: int,
        segment_pictures: int = SEGMENT_PICTURES,
        condition_pictures: int = CONDITION_PICTURES,
        vae: Any = None,
        image: Any = None,
        video: Any = None,
    ) -> io.NodeOutput:
        from .comfy.longcat.pictures import start_latent, with_frames
        from .comfy.progress import say_what_is_left_out

        frames = SegmentFrames(segment_pictures, condition_pictures)
        pictures, left_out = None, list[str]()
        if start == "image":
            pictures, left_out = first_picture("image", image, (width, height))
        elif start == "video":
            frames.require_video(len(video))
            pictures, alpha = in_colour("video", video[-condition_pictures:])
            left_out = [alpha] if alpha else []
        latent = start_latent((width, height), segments, frames, vae, pictures)
        total = segment_pictures + (segments - 1) * frames.new_pictures
        text = f"{segments} segment{'s' if segments > 1 else ''}, {total} pictures, {total / FPS:.1f} s at {FPS} a second"
        say_what_is_left_out(f"{text}; {latent['samples'].shape[2]} latent frames", left_out)
        return io.NodeOutput(with_frames(conditioning, frames), latent)


def _frames(inputs: dict[str, Any]) -> SegmentFrames:
    """Raises ConfigError for numbers that are not whole latent frames, and for segments that add nothing."""
    pictures = inputs.get("segment_pictures", SEGMENT_PICTURES)
    return SegmentFrames(pictures, inputs.get("condition_pictures", CONDITION_PICTURES))


def _start_complaint(start: str, connected: dict[str, Any]) -> str | None:
    """What is connected too much or too little; what will come of it is not known yet."""
    what = {"image": "a first picture", "video": "the pictures of a video"}
    needed = {start: what[start], "vae": "Wan 2.1's VAE"} if start in what else {}
    missing = next((name for name in needed if name not in connected), None)
    if missing is not None:
        return f"start is {start}, but nothing is connected to {missing}; connect {needed[missing]}, or choose another start"
    spare = next((name for name in what if name in connected and name not in needed), None)
    if spare is not None:
        return f"start is {start}, but {spare} is connected and would be left out; choose {spare} as start, or disconnect it"
    return None


class QVGLongCatSampler(Node):
    """The video as a SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        advanced = {"advanced": True, "optional": True}
        return io.Schema(
            node_id="QVGLongCatSampler",
            display_name="LongCat Sampler",
            category=CATEGORY,
            description="Makes a LongCat video segment after segment; what a segment is conditioned on is remembered once and "
            "read by all its steps. Connect it to SamplerCustomAdvanced with LongCat Start and Trained Sigmas, and QVG KV Cache "
            "to the model. An interrupt or a failure frees the memory and keeps the segments finished so far. Videos are not "
            "refined to 720p.",
            search_aliases=["qvg", "longcat", "video continuation sampler", "long video sampler"],
            inputs=[
                io.Combo.Input(
                    "carry",
                    options=list(CARRIES),
                    default=CARRIES[0],
                    tooltip="What of a segment the next one is conditioned on. pictures: its last ones, through the VAE and "
                    "back, as released; needs vae. latents: its last latents as they are; ours, quicker, but the first of them "
                    "stands for four pictures where the model was trained with one, and nobody has judged the videos.",
                ),
                io.Vae.Input(
                    "vae", tooltip="Wan 2.1's, for carry pictures with more than one segment.", optional=True, lazy=True
                ),
                io.Combo.Input(
                    "enhance_hf",
                    options=list(ENHANCES),
                    default=ENHANCES[0],
                    tooltip="Ten fine steps at low noise in place of the last ones, in segments that go on from others. auto: as "
                    "released, on unless the model is distilled.",
                    **advanced,
                ),
                io.Boolean.Input(
                    "exact_timesteps",
                    default=False,
                    tooltip="Tell the network its noise levels as they are. Off: rounded to bf16 first, as the released program "
                    "does.",
                    **advanced,
                ),
                io.Boolean.Input(
                    "keep_finished",
                    default=True,
                    tooltip="After an interrupt or a failure, leave the finished segments as QVG/interrupted_*.latent in the "
                    "output folder.",
                    **advanced,
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        carry: str,
        vae: Any = None,
        enhance_hf: str = ENHANCES[0],
        exact_timesteps: bool = False,
        keep_finished: bool = True,
    ) -> io.NodeOutput:
        from .comfy.longcat.run import LongCatOptions
        from .comfy.longcat.sampler import make_longcat_sampler

        return io.NodeOutput(make_longcat_sampler(LongCatOptions(carry, vae, enhance_hf, exact_timesteps, keep_finished)))
